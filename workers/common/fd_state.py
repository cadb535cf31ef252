"""What the kernel knows about a descriptor: pending bytes, poll(2) events, its file."""

from __future__ import annotations

import fcntl
import os
import select
import sys
import termios


def pending_bytes(fd: int) -> int:
    """Return how many bytes read(2) can take at once. Source: FIONREAD in pipe(7), ioctl_tty(2).

    It takes the pipe's lock, so it sleeps while another process sleeps in splice(2) on the pipe.

    Raises:
        OSError: ENOTTY or EINVAL, where the file has no such count; EIO on a hung-up terminal.
    """
    return _count(fd, termios.FIONREAD)


def unread_bytes(socket_fd: int) -> int:
    """Return how many bytes the peer has not read yet. Source: SIOCOUTQ in unix(7)."""
    return _count(socket_fd, termios.TIOCOUTQ)


def _count(fd: int, request: int) -> int:
    return int.from_bytes(fcntl.ioctl(fd, request, bytes(4)), sys.byteorder)


def is_readable(fd: int) -> bool:
    """Return whether read(2) would return at once, with data or at end of file.

    It takes no lock. Source: poll(2), POLLIN and POLLHUP.
    """
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(0))


def is_writable(fd: int) -> bool:
    """Return whether write(2) of up to PIPE_BUF bytes would not wait. Source: poll(2), POLLOUT."""
    poller = select.poll()
    poller.register(fd, select.POLLOUT)
    return any(events & select.POLLOUT for _fd, events in poller.poll(0))


def would_wait(fd: int, events: int) -> bool:
    """Return whether `wait_for` would wait. It does not wait where write(2) would fail (EPIPE)."""
    poller = select.poll()
    poller.register(fd, events)
    return not poller.poll(0)


def wait_for(fd: int, events: int) -> None:
    """Wait until poll(2) reports `events`, an error or a hang-up."""
    poller = select.poll()
    poller.register(fd, events)
    poller.poll()


def has_name(fd: int, name: str, dir_fd: int) -> bool:
    """Return whether `name` in `dir_fd` is the file of `fd`; False if it does not exist."""
    try:
        named = os.stat(name, dir_fd=dir_fd)
    except FileNotFoundError:
        return False
    return os.path.samestat(named, os.fstat(fd))
