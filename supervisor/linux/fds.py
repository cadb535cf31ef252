"""Descriptors: their ownership, and functions that the standard library lacks.

An `Fd` is the only owner of its number. It forgets the number before it closes it, because the
kernel may assign the same number to another file at once. A plain int in a signature is borrowed.
"""

from __future__ import annotations

import fcntl
import os
import select
import stat
from contextlib import contextmanager

from workers.common.fd_state import is_readable as is_readable
from workers.common.fd_state import is_writable as is_writable
from workers.common.fd_state import pending_bytes as pending_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

PIPE_BYTES = 1 << 20
"""Capacity of each pipe and fifo that carries a stream: 64 KiB pipes halve the throughput
(2.9 against 1.2 GB/s measured through splice). It is fs.pipe-max-size's default, pipe(7)."""


class Fd:
    """The owner of one descriptor."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        """Own `fd`."""
        self._fd = fd

    def fileno(self) -> int:
        """Return the number, borrowed; -1 once closed, so that a late use fails with EBADF."""
        return self._fd

    @property
    def is_open(self) -> bool:
        """Whether the descriptor is still open."""
        return self._fd >= 0

    def take(self) -> int:
        """Return the number and give up its ownership."""
        fd, self._fd = self._fd, -1
        return fd

    def close(self) -> None:
        """Close the descriptor. A second call does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def pipe(capacity_bytes: int = PIPE_BYTES) -> tuple[Fd, Fd]:
    """Create a pipe, close-on-exec. Return its read end and its write end.

    Called in the supervisor: the kernel counts the pages of pipe(7) against the creator's user.

    Raises:
        OSError: EMFILE, ENFILE.
    """
    rfd, wfd = os.pipe2(os.O_CLOEXEC)
    grow_pipe(wfd, capacity_bytes)
    return Fd(rfd), Fd(wfd)


def grow_pipe(fd: int, capacity_bytes: int = PIPE_BYTES) -> None:
    """Grow the pipe or fifo to at least `capacity_bytes` if the kernel allows it."""
    if fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ) >= capacity_bytes:
        return
    try:
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, capacity_bytes)
    except PermissionError:
        # EPERM: over pipe-user-pages-soft or pipe-max-size. A small pipe works, only slower.
        return


@contextmanager
def in_memory(name: str, content: bytes) -> Iterator[int]:
    """Lend a descriptor of an unnamed file with this content. `name` is for /proc.

    Source: memfd_create(2).
    """
    file = Fd(os.memfd_create(name, os.MFD_CLOEXEC))
    try:
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(file.fileno(), rest) :]
        os.lseek(file.fileno(), 0, os.SEEK_SET)
        yield file.fileno()
    finally:
        file.close()


def take_pending(pipe_fd: int, null_fd: int, most_bytes: int) -> bytes:
    """Empty a pipe. Return the last `most_bytes` of its content, and move the rest to null_fd."""
    left = pending_bytes(pipe_fd)
    while left > most_bytes:
        left -= os.splice(pipe_fd, null_fd, left - most_bytes)
    return os.read(pipe_fd, left) if left else b""


def is_at_end(fd: int) -> bool:
    """Return whether a pipe or terminal has no writer and nothing left to read.

    Source: poll(2), POLLHUP without POLLIN. It polls twice: a writer may write and close while the
    kernel evaluates the two.
    """
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return all(
        any(
            events & select.POLLHUP and not events & select.POLLIN for _fd, events in poller.poll(0)
        )
        for _look in range(2)
    )


def capacity_bytes(fd: int) -> int:
    """Return the capacity of a pipe; `PIPE_BYTES` for any other file."""
    return fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ) if is_fifo(fd) else PIPE_BYTES


def is_fifo(fd: int) -> bool:
    """Return whether `fd` is a pipe or a fifo. splice(2) needs one."""
    return stat.S_ISFIFO(os.fstat(fd).st_mode)


def is_same_file(fd: int, other_fd: int) -> bool:
    """Return whether two descriptors refer to the same file. Source: inode(7), st_dev, st_ino."""
    return os.path.samestat(os.fstat(fd), os.fstat(other_fd))


def open_without_waiting(path: str, flags: int, *, dir_fd: int | None = None) -> int:
    """Open a file as the `opener` of open(), without blocking if it is a fifo."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=dir_fd)


def sync_directory(path: str) -> None:
    """Sync created and removed names of a directory to disk. Source: fsync(2)."""
    directory = Fd(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    try:
        os.fsync(directory.fileno())
    finally:
        directory.close()


def reopen(fd: int, flags: int) -> Fd:
    """Open the file of `fd` again, whatever its name is now; close-on-exec.

    `fd` may be an O_PATH descriptor.

    Raises:
        OSError: As open(2).

    Source: proc(5), /proc/[pid]/fd.
    """
    return Fd(os.open(f"/proc/self/fd/{fd}", flags | os.O_CLOEXEC | os.O_NOCTTY))


def has_reader(write_fd: int) -> bool:
    """Return whether a process has the read end of a pipe or fifo open.

    `write_fd` must be open with O_WRONLY: with O_RDWR this process would be a reader. Source:
    poll(2), POLLERR "is also set for a file descriptor referring to the write end of a pipe when
    the read end has been closed".
    """
    poller = select.poll()
    poller.register(write_fd, 0)
    return not any(events & select.POLLERR for _fd, events in poller.poll(0))


def ensure_stdio() -> None:
    """Open /dev/null on each of descriptors 0, 1 and 2 that is closed.

    Otherwise a later pipe could become the stdin of a child. Called at the start of a process.
    """
    while True:
        fd = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        if fd > 2:
            os.close(fd)
            return
        os.set_inheritable(fd, True)
