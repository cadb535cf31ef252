"""One worker's access to a log file: it opens, appends, rotates, and finishes killed writes."""

from __future__ import annotations

import errno
import os
import stat
import time

from workers.common.fd_state import has_name
from workers.common.policy import BLOCK
from workers.lines import framing
from workers.lines.sink import RecordSink
from workers.sinks import rotation
from workers.sinks.log_file import NO_WRITER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from workers.sinks.log_file import FileState, LogFile


class LogWriter(RecordSink):
    """Appends the records of one stream. Each worker opens the name, so it follows a rotation.

    `workers.sinks.log_file` explains the protocol of the shared state.
    """

    def __init__(self, log: LogFile, stream: str) -> None:
        """Borrow `log`. `open` opens the file."""
        self._log = log
        self._index = log.streams.index(stream)
        self._format = log.formats[self._index]
        self._buffer = log.buffers[self._index]
        self._fd = -1
        self._is_regular = True
        self._generation = 0
        with log.locked():
            self.consumed = self._read_consumed()

    def open(self) -> None:
        """Finish the write of a killed worker in its file, then open the file by its name.

        Raises:
            OSError: The file cannot be opened or written.
        """
        with self._log.locked():
            self._open(self._finish_killed_write())
            self.consumed = self._read_consumed()

    def _read_consumed(self) -> int:
        return max(self._log.read().consumed[self._index], self._buffer.read().dropped_to)

    @property
    def is_unfinished(self) -> bool:
        """Whether bytes after `consumed` may be in the file. Updates `consumed` first."""
        with self._log.locked():
            self.consumed = self._read_consumed()
            return self._log.read().writer == 1 + self._index

    @property
    def limit_bytes(self) -> int:
        """The longest line that is one record."""
        return self._format.limit_bytes

    def write(self, end: int) -> None:
        """Write at least one of the records between `consumed` and `end`.

        Raises:
            OSError: A write failed. The file ends with a whole record, and the next writer
                continues there.
        """
        with self._log.locked():
            self._follow_current_file(self._finish_killed_write())
            stamp_ns = time.time_ns()
            content, payload = self._fit(self._buffer.copy(self.consumed, end), stamp_ns)
            if self._log.total_max_bytes:
                content, payload = self._fit_total(content, payload, stamp_ns)
                if not content or self._has_dropped:
                    self._drop(end)
                    return
            until = self.consumed + len(content)
            # The state's `consumed` does not include dropped lines.
            state = self._log.read().with_consumed(self._index, self.consumed)
            state = state._replace(
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
        """Return the content that fits into the file, and its records. Rotate if none fits."""
        payload = self._format.rewrite(content, stamp_ns)
        if not self._log.max_bytes or not self._is_regular:
            return content, payload
        while len(payload) > (room := self._log.max_bytes - os.fstat(self._fd).st_size):
            # An estimate from the average, always less than what did not fit.
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

    def _fit_total(self, content: bytes, payload: bytes, stamp_ns: int) -> tuple[bytes, bytes]:
        """Return the whole records that fit into the limit of all files, possibly none."""
        room = self._log.total_max_bytes - self._log.read().total_bytes
        while len(payload) > room:
            guess = len(content) * max(room, 0) // len(payload)
            content = content[: content.rfind(b"\n", 0, guess) + 1]
            payload = self._format.rewrite(content, stamp_ns)
        return content, payload

    @property
    def _has_dropped(self) -> bool:
        """Whether the limit of all files was reached: no bytes are written after a gap."""
        return self._buffer.policy == BLOCK and self._buffer.read().dropped_bytes > 0

    def _drop(self, end: int) -> None:
        """Drop and count the bytes after the limit of all files."""
        state = self._buffer.read()
        dropped = self._buffer.copy(self.consumed, end)
        self._buffer.commit(
            state._replace(
                dropped_to=end,
                passed_bytes=state.passed_bytes + len(dropped),
                dropped_bytes=state.dropped_bytes + len(dropped),
                dropped_lines=state.dropped_lines + dropped.count(b"\n"),
            )
        )
        self.consumed = end

    def _rotate(self) -> None:
        if has_name(self._fd, self._log.name, self._log.dir_fd):
            if self._log.keep:
                rotation.rotate(self._log.dir_fd, self._log.name, self._log.keep)
            else:
                rotation.replace(self._log.dir_fd, self._log.name)
        self._open(self._log.read())

    def close(self) -> None:
        """Sync the file, if the setting asks for it."""
        if self._log.is_synced and self._fd >= 0 and self._is_regular:
            os.fsync(self._fd)

    def _open(self, state: FileState) -> None:
        """Open the file by its name, and put it into the slot. Called without unfinished writes."""
        # The generation first: the other worker then uses its descriptor no more.
        is_first = state.total_bytes == 0
        state = state._replace(generation=state.generation + 1)
        self._log.commit(state)
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
        # A user who may write to the directory must not redirect root to another file.
        flags |= os.O_NOFOLLOW
        fd = os.open(self._log.name, flags, 0o640, dir_fd=self._log.dir_fd)
        attributes = os.fstat(fd)
        is_regular = stat.S_ISREG(attributes.st_mode)
        if self._log.is_any_file and not is_regular:
            os.set_blocking(fd, True)
        elif not is_regular or attributes.st_nlink > 1:
            # A hard link is a name of another file, which may be /etc/passwd.
            os.close(fd)
            number = errno.EMLINK if is_regular else errno.EINVAL
            raise OSError(number, os.strerror(number), self._log.name)
        if is_first and is_regular and self._log.total_max_bytes:
            # The content of the file at the start counts, too.
            state = state._replace(total_bytes=attributes.st_size)
            self._log.commit(state)
        self._log.fd_slot.put(fd)
        self._use(fd, state.generation)

    def _follow_current_file(self, state: FileState) -> None:
        """Use the file that the other worker has opened."""
        if state.generation == self._generation:
            return
        fd = self._log.fd_slot.peek()
        if fd is None:  # the other worker was killed in `_open`
            self._open(state)
        else:
            self._use(fd, state.generation)

    def _use(self, fd: int, generation: int) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = fd
        self._is_regular = stat.S_ISREG(os.fstat(fd).st_mode)
        self._generation = generation

    def _finish_killed_write(self) -> FileState:
        """Finish the write of a killed worker, if there is one. Return the state after it."""
        state = self._log.read()
        if state.writer == NO_WRITER:
            return state
        index = state.writer - 1
        content = self._log.buffers[index].copy(state.consumed[index], state.until)
        payload = self._log.formats[index].rewrite(content, state.stamp_ns)
        fd = self._log.fd_slot.peek()
        if fd is None or len(payload) != state.length:
            raise RuntimeError("an unfinished write that no worker has begun")
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
        """Write the rest of `payload` after `written` bytes, and commit that the write is done."""
        rest = memoryview(payload)[written:]
        try:
            while rest:
                rest = rest[os.write(fd, rest) :]
        except OSError:
            self._cut(fd, state, payload[: len(payload) - len(rest)])
            raise
        return self._finish(state, state.until, len(payload))

    def _finish(self, state: FileState, until: int, written: int) -> FileState:
        state = state.with_consumed(state.writer - 1, until)._replace(
            writer=NO_WRITER, total_bytes=state.total_bytes + written
        )
        self._log.commit(state)
        return state

    def _cut(self, fd: int, state: FileState, written: bytes) -> None:
        """Truncate the file to whole records, and count them: the next write may be much later."""
        attributes = os.fstat(fd)
        if not stat.S_ISREG(attributes.st_mode):
            return  # a fifo or device does not tell how much it got: all is written again
        if attributes.st_size != state.before + len(written):
            return  # another process has written: the next writer compares the content
        whole = written[: written.rfind(b"\n") + 1]
        os.ftruncate(fd, state.before + len(whole))
        index = state.writer - 1
        content = self._log.buffers[index].copy(state.consumed[index], state.until)
        done = self._log.formats[index].source_bytes(content, whole)
        self._finish(state, state.consumed[index] + done, len(whole))


def _written(fd: int, before: int, payload: bytes) -> int | None:
    """Return how many bytes of `payload` are in the file; None if other bytes are there.

    0 for a fifo or a device, which does not tell.
    """
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        return 0
    if os.fstat(fd).st_size < before:
        return None
    there = os.pread(fd, len(payload), before)
    return len(there) if payload.startswith(there) else None
