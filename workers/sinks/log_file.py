"""A log file to which several workers append records: the supervisor's side and the shared state.

Before a write the worker commits its plan: which bytes, how many, at which file size, with which
time. After the write it commits again. Formatting is a function of the bytes and the time. So the
next writer can make the same records again, find how many of them are in the file, and write the
rest. The next writer is a killed worker's successor, or the worker of the other stream if it gets
the lock first. A reader that follows the file never sees a record vanish or come back.

Each file has one lock (fcntl(2), F_SETLKW on the shared memory), so there is at most one unfinished
write. The kernel releases the lock when its holder is killed. An `FdSlot` holds the open file,
because its name may belong to another file by now. No worker calls fsync(2) per batch: it would
help only in a power cut.

The protocol does not cover other processes that change the file. If a process appends while a
killed worker's write is unfinished, or truncates the file then (logrotate's `copytruncate`), the
file gets that write again.
"""

from __future__ import annotations

import fcntl
from contextlib import contextmanager
from typing import NamedTuple

from workers.common.fd_slot import FdSlot
from workers.common.policy import BLOCK
from workers.common.shared_memory import Memory, Record
from workers.lines.buffer import LineBuffer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Protocol

    class Format(Protocol):
        """How bytes become records."""

        @property
        def limit_bytes(self) -> int:
            """The longest line that is one record, without its newline."""

        def rewrite(self, content: bytes, stamp_ns: int, /) -> bytes:
            """Return the records. The same arguments give the same bytes."""

        def source_bytes(self, content: bytes, written: bytes, /) -> int:
            """Return how many bytes of `content` the whole records in `written` contain."""


NO_WRITER = 0


class FileState(NamedTuple):
    """State that the workers of one file share.

    Attributes:
        generation: Incremented before a worker puts another file into the slot.
        writer: NO_WRITER, or 1 + the index of the stream whose write has begun. The next four
            fields describe that write.
        before: Size of the file when the write began.
        length: Number of bytes to write.
        stamp_ns: Time of the records.
        until: `consumed` of the stream after the write.
        consumed: By stream, the position up to which a file has its bytes.
        total_bytes: Bytes written to all files; only if they are limited.
    """

    generation: int
    writer: int
    before: int
    length: int
    stamp_ns: int
    until: int
    consumed: tuple[int, ...]
    total_bytes: int = 0

    def with_consumed(self, index: int, position: int) -> FileState:
        """Return the state with another `consumed` of one stream."""
        consumed = (*self.consumed[:index], position, *self.consumed[index + 1 :])
        return self._replace(consumed=consumed)


class LogFile:
    """The supervisor's side. Made before fork(2) and shared; the owner calls `close`."""

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
        total_max_bytes: int = 0,
        is_synced: bool = False,
        is_any_file: bool = False,
        inherited: Sequence[int] = (),
    ) -> None:
        """Make the shared memory. The workers open the file.

        Args:
            dir_fd: The directory, borrowed. The owner may assign another for the next worker.
            name: The name of the file in it; created with mode 0640 if missing.
            formats: By stream name, for each stream that is written to this file.
            max_bytes: Size at which the file is rotated; 0 disables rotation.
            keep: How many old files to keep; 0 replaces a full file by an empty one.
            policy: What happens while the file cannot be written, see `LineBuffer`.
            buffer_bytes: Size of the line buffer then; at least one line fits.
            total_max_bytes: Limit for all bytes written, and those in the first file before. The
                workers drop and count later bytes. 0 for no limit.
            is_synced: fsync(2) at the end of each stream.
            is_any_file: `name` may be a fifo or a device. There a kill may repeat a batch.
            inherited: The `fds` of an earlier object with the same arguments, taken over.

        A record that is longer than `max_bytes` has a file of its own.

        Raises:
            OSError: EMFILE, ENOMEM.
        """
        self.dir_fd = dir_fd
        self.name = name
        self.formats = tuple(formats.values())
        self.streams = tuple(formats)
        self.max_bytes = max_bytes
        self.keep = keep
        self.total_max_bytes = total_max_bytes
        self.is_synced = is_synced
        self.is_any_file = is_any_file
        memory_fd, front_fd, back_fd, *buffer_fds = inherited or (-1,) * (3 + len(formats))
        self.buffers = tuple(
            LineBuffer(
                f"forkshim:{stream}", max(form.limit_bytes, buffer_bytes), policy=policy, fd=fd
            )
            for (stream, form), fd in zip(formats.items(), buffer_fds, strict=True)
        )
        self.fd_slot = FdSlot(fds=(front_fd, back_fd) if inherited else None)
        self._memory = Memory("forkshim:log", fd=memory_fd)
        words = len(FileState._fields) - 2 + len(self.streams) + (total_max_bytes > 0)
        self._record = Record(self._memory.words, words)

    @property
    def fds(self) -> tuple[int, ...]:
        """Descriptors that a worker keeps open."""
        buffers = (fd for buffer in self.buffers for fd in buffer.fds)
        return (self.dir_fd, self._memory.fd, *self.fd_slot.fds, *buffers)

    def read(self) -> FileState:
        """Return the state of the last commit."""
        generation, writer, before, length, stamp_ns, until, *rest = self._record.read()
        total = rest.pop() if self.total_max_bytes else 0
        return FileState(generation, writer, before, length, stamp_ns, until, tuple(rest), total)

    def commit(self, state: FileState) -> None:
        """Make `state` the current state. Called only with the lock held."""
        total = (state.total_bytes,) if self.total_max_bytes else ()
        self._record.commit((*state[:6], *state.consumed, *total))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock of the file."""
        fcntl.lockf(self._memory.fd, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._memory.fd, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close the shared memory, and the open file in the slot."""
        self._record.release()
        self._memory.close()
        self.fd_slot.close()
        for buffer in self.buffers:
            buffer.close()
