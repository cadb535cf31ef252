"""A log file that several workers append records to, each record exactly once.

What is to be written is committed before it is written (whose bytes, how many, at what size of the
file, with what time) and again when it has been. Formatting is a function of the bytes and
the time, so whoever comes next can make the same records again, see how far they got in the file,
and write the rest: a killed worker's successor, or the worker of the other stream if it
gets the lock first. A reader that follows the file never sees a record vanish or come back.

One lock for each file (fcntl(2), F_SETLKW on the shared memory: the kernel takes it from a killed
holder), so there is at most one unfinished write. The file in question lies in the slot: its
name may belong to another file by now. Nothing is fsync'ed: what a batch would gain, a
power cut, is paid for by every batch.

Only what strangers do to the file is beyond this: one that appends while a killed worker's write
is unfinished, or truncates the file then (logrotate's `copytruncate`), gets that write again.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from contextlib import contextmanager
from typing import NamedTuple

from workers.common.fd_slot import FdSlot, same_file
from workers.common.shared_memory import Memory, Record
from workers.lines import framing
from workers.lines.buffer import BLOCK, LineBuffer
from workers.sinks import rotation

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Protocol

    class Format(Protocol):
        """How bytes become records: `limit_bytes` is the longest record's share of them."""

        @property
        def limit_bytes(self) -> int:
            """The longest line that is one record, without its newline."""

        def rewrite(self, content: bytes, stamp_ns: int, /) -> bytes:
            """Return the records; the same arguments give the same bytes."""

        def source_bytes(self, content: bytes, written: bytes, /) -> int:
            """Return how much of `content` the whole records in `written` stand for."""


NOBODY = 0


class FileState(NamedTuple):
    """What the workers of one file agree on.

    Attributes:
        generation: Goes up before another file comes into the slot.
        writer: NOBODY, or 1 + the index of the stream whose write has begun. Then:
        before: The file's size when it began.
        length: Bytes to be written.
        stamp_ns: The records' time.
        until: What is consumed of the stream after it.
        consumed: By stream, the position up to which its bytes are in a file.
    """

    generation: int
    writer: int
    before: int
    length: int
    stamp_ns: int
    until: int
    consumed: tuple[int, ...]


class LogFile:
    """The parent's side: made before the fork, shared with the workers, owned until `close`."""

    def __init__(
        self,
        dir_fd: int,
        name: str,
        formats: Mapping[str, Format],
        *,
        max_bytes: int = 0,
        keep: int = 1,
        policy: str = BLOCK,
        buffer_bytes: int = 0,
        inherited: Sequence[int] = (),
    ) -> None:
        """Describe the file; the workers open it.

        Args:
            dir_fd: The directory, borrowed; `dir_fd` may be set anew for the next worker.
            name: The file's name in it; created with mode 0640 if missing.
            formats: By stream name, for each stream that goes into this file.
            max_bytes: Where the file is rotated; 0 is nowhere.
            keep: How many old files there may be, at least 1.
            policy: For when the file cannot be written, see `LineBuffer`.
            buffer_bytes: What then waits, at least a line.
            inherited: The `fds` of an earlier one of the same description, which are taken over.
        """
        if max_bytes and max_bytes < max(map(_longest_record, formats.values())):
            raise ValueError(f"{max_bytes} bytes do not hold the longest record")
        self.dir_fd = dir_fd
        self.name = name
        self.formats = tuple(formats.values())
        self.streams = tuple(formats)
        self.max_bytes = max_bytes
        self.keep = keep
        memory_fd, front_fd, back_fd, *buffer_fds = inherited or (-1,) * (3 + len(formats))
        self.buffers = tuple(
            LineBuffer(
                f"forkshim:{stream}", max(form.limit_bytes, buffer_bytes), policy=policy, fd=fd
            )
            for (stream, form), fd in zip(formats.items(), buffer_fds, strict=True)
        )
        self.fd_slot = FdSlot(fds=(front_fd, back_fd) if inherited else None)
        self._memory = Memory("forkshim:log", fd=memory_fd)
        self._record = Record(self._memory.words, len(FileState._fields) - 1 + len(self.streams))

    @property
    def fds(self) -> tuple[int, ...]:
        """What a worker keeps."""
        buffers = (fd for buffer in self.buffers for fd in buffer.fds)
        return (self.dir_fd, self._memory.fd, *self.fd_slot.fds, *buffers)

    def read(self) -> FileState:
        """Return what was committed last."""
        generation, writer, before, length, stamp_ns, until, *consumed = self._record.read()
        return FileState(generation, writer, before, length, stamp_ns, until, tuple(consumed))

    def commit(self, state: FileState) -> None:
        """Make `state` the one that counts; only under the lock."""
        self._record.commit((*state[:6], *state.consumed))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep the other workers of the file out."""
        fcntl.lockf(self._memory.fd, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._memory.fd, fcntl.LOCK_UN)

    def close(self) -> None:
        """Give the shared memory back, and the file if there is one in the slot."""
        self._record.release()
        self._memory.close()
        self.fd_slot.close()
        for buffer in self.buffers:
            buffer.close()


class LogWriter:
    """One worker's hand on the file. Opening it is also how a renamed file is let go."""

    stall_fd = -1
    rest_bytes = 0

    def __init__(self, log: LogFile, stream: str) -> None:
        """Borrow `log`; nothing is opened yet."""
        self._log = log
        self._index = log.streams.index(stream)
        self._format = log.formats[self._index]
        self._buffer = log.buffers[self._index]
        self._fd = -1
        self._generation = 0
        with log.locked():
            self.consumed = self._read_consumed()

    def open(self) -> None:
        """Finish what a killed worker has begun, in its file, then open the file of that name.

        Raises:
            OSError: The file cannot be opened or written.
        """
        with self._log.locked():
            self._open(self._finish_others())
            self.consumed = self._read_consumed()

    def _read_consumed(self) -> int:
        return max(self._log.read().consumed[self._index], self._buffer.read().front)

    @property
    def is_unfinished(self) -> bool:
        """Whether bytes after `consumed` are in the file, or may be; the latter is seen to."""
        with self._log.locked():
            self.consumed = self._read_consumed()
            return self._log.read().writer == 1 + self._index

    def pass_over(self, position: int) -> None:
        """Go on from `position`; no write is unfinished."""
        self.consumed = position

    def flush(self) -> None:
        """Do nothing: a file takes all."""

    def close(self) -> None:
        """Do nothing: what is written is there."""

    def take_back(self) -> bytes:
        """Return nothing, as `flush`."""
        return b""

    @property
    def limit_bytes(self) -> int:
        """See `Format`."""
        return self._format.limit_bytes

    def hold(self, end: int) -> int:
        """Return `end`: a line is a record."""
        return end

    def write(self, end: int) -> None:
        """Write some records, at least one, of what is between `consumed` and `end`.

        Raises:
            OSError: What was written is finished by whoever comes next; the file ends with a
                whole record meanwhile.
        """
        with self._log.locked():
            self._take_the_current_file(self._finish_others())
            stamp_ns = time.time_ns()
            content, payload = self._fit(self._buffer.copy(self.consumed, end), stamp_ns)
            state = self._log.read()
            until = self.consumed + len(content)
            consumed = list(state.consumed)
            consumed[self._index] = self.consumed  # some may have been passed over
            state = state._replace(
                consumed=tuple(consumed),
                writer=1 + self._index,
                before=os.fstat(self._fd).st_size,
                length=len(payload),
                stamp_ns=stamp_ns,
                until=until,
            )
            self._log.commit(state)
            self._append(self._fd, state, payload, 0)
            self.consumed = until

    def _fit(self, content: bytes, stamp_ns: int) -> tuple[bytes, bytes]:
        """Return as much content as may be written now, and its records; rotate for none."""
        payload = self._format.rewrite(content, stamp_ns)
        if not self._log.max_bytes:
            return content, payload
        while len(payload) > (room := self._log.max_bytes - os.fstat(self._fd).st_size):
            # A guess from the average, always short of what did not fit.
            guess = len(content) * max(room, 0) // len(payload)
            fitting = content.rfind(b"\n", 0, guess) + 1
            if fitting == 0 and room < self._log.max_bytes:
                self._rotate()
                continue
            content = content[: fitting or framing.end_of_first(content, self.limit_bytes)]
            payload = self._format.rewrite(content, stamp_ns)
            if fitting == 0:
                break
        return content, payload

    def _rotate(self) -> None:
        if same_file(self._fd, self._log.name, self._log.dir_fd):
            rotation.rotate(self._log.dir_fd, self._log.name, self._log.keep)
        self._open(self._log.read())

    def _open(self, state: FileState) -> None:
        """Put the file of that name into the slot; no write is unfinished now."""
        # The generation first: from here on nobody trusts the descriptor that he has.
        state = state._replace(generation=state.generation + 1)
        self._log.commit(state)
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
        # Whoever may write to the directory must not lead us, who are root, to another file.
        flags |= os.O_NOFOLLOW
        fd = os.open(self._log.name, flags, 0o640, dir_fd=self._log.dir_fd)
        attributes = os.fstat(fd)
        if not stat.S_ISREG(attributes.st_mode) or attributes.st_nlink > 1:
            # A hard link is another file's name: what root writes there may be /etc/passwd.
            os.close(fd)
            number = errno.EMLINK if stat.S_ISREG(attributes.st_mode) else errno.EINVAL
            raise OSError(number, os.strerror(number), self._log.name)
        self._log.fd_slot.put(fd)
        self._hold(fd, state.generation)

    def _take_the_current_file(self, state: FileState) -> None:
        """Follow the other worker to the file that it has opened."""
        if state.generation == self._generation:
            return
        fd = self._log.fd_slot.peek()
        if fd is None:  # it was killed just there
            self._open(state)
        else:
            self._hold(fd, state.generation)

    def _hold(self, fd: int, generation: int) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = fd
        self._generation = generation

    def _finish_others(self) -> FileState:
        """Finish the write of a killed worker, if there is one; returns the state after it."""
        state = self._log.read()
        if state.writer == NOBODY:
            return state
        index = state.writer - 1
        content = self._log.buffers[index].copy(state.consumed[index], state.until)
        payload = self._log.formats[index].rewrite(content, state.stamp_ns)
        fd = self._log.fd_slot.peek()
        if fd is None or len(payload) != state.length:
            raise RuntimeError("an unfinished write that nobody has begun")
        try:
            written = _written(fd, state.before, payload)
            if written is None:
                state = state._replace(before=os.fstat(fd).st_size)
                self._log.commit(state)
                written = 0
            return self._append(fd, state, payload, written)
        finally:
            os.close(fd)

    def _append(self, fd: int, state: FileState, payload: bytes, written: int) -> FileState:
        """Write what is not yet written of `payload`, and commit that it is."""
        rest = memoryview(payload)[written:]
        try:
            while rest:
                rest = rest[os.write(fd, rest) :]
        except OSError:
            self._cut(fd, state, payload[: len(payload) - len(rest)])
            raise
        return self._finished(state, state.until)

    def _finished(self, state: FileState, until: int) -> FileState:
        consumed = list(state.consumed)
        consumed[state.writer - 1] = until
        state = state._replace(writer=NOBODY, consumed=tuple(consumed))
        self._log.commit(state)
        return state

    def _cut(self, fd: int, state: FileState, written: bytes) -> None:
        """Leave whole records, where the file may stay like this for long, and count them."""
        if os.fstat(fd).st_size != state.before + len(written):
            return  # somebody else has written: whoever comes next looks what there is
        whole = written[: written.rfind(b"\n") + 1]
        os.ftruncate(fd, state.before + len(whole))
        index = state.writer - 1
        content = self._log.buffers[index].copy(state.consumed[index], state.until)
        done = self._log.formats[index].source_bytes(content, whole)
        self._finished(state, state.consumed[index] + done)


def _longest_record(form: Format) -> int:
    return len(form.rewrite(bytes(form.limit_bytes) + b"\n", 0))


def _written(fd: int, before: int, payload: bytes) -> int | None:
    """Return how much of `payload` is in the file, or None if what is there is not ours."""
    if os.fstat(fd).st_size < before:
        return None
    there = os.pread(fd, len(payload), before)
    return len(there) if payload.startswith(there) else None
