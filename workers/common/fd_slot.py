"""A place for one open file that outlives the worker who opened it.

A name says too little about the file that a killed worker was writing to: somebody may have
renamed or unlinked it since (logrotate, the kubelet). So the worker leaves a duplicate of its
descriptor in a socket of the parent's, where the kernel keeps it (unix(7), SCM_RIGHTS), and any
worker may look at it again and again (recv(2), MSG_PEEK).
"""

from __future__ import annotations

import array
import os
import socket


class FdSlot:
    """A socket pair with at most one descriptor in it. The parent makes and owns it."""

    def __init__(self, *, fds: tuple[int, int] | None = None) -> None:
        """Make an empty one; or take over the `fds` of another, with what is in it."""
        if fds is None:
            self._front, self._back = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        else:
            self._front, self._back = (socket.socket(fileno=fd) for fd in fds)

    @property
    def fds(self) -> tuple[int, ...]:
        """What a worker keeps."""
        return (self._front.fileno(), self._back.fileno())

    def put(self, fd: int) -> None:
        """Put a duplicate of `fd` in the place of what was there.

        A worker that is killed in here leaves the old one, none, or the new one.
        """
        self.clear()
        rights = array.array("i", [fd])
        self._back.sendmsg([b"f"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])

    def clear(self) -> None:
        """Let go of what is there."""
        while True:
            try:
                self._front.recv(1, socket.MSG_DONTWAIT)  # descriptors not asked for are closed
            except BlockingIOError:
                return

    def peek(self) -> int | None:
        """Return a new descriptor of what is there, close-on-exec; the caller owns it."""
        # Not socket.recv_fds: up to Python 3.12 it forgets its flags.
        try:
            _byte, control, _flags, _address = self._front.recvmsg(
                1,
                socket.CMSG_SPACE(4),
                socket.MSG_PEEK | socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC,
            )
        except BlockingIOError:
            return None
        rights = array.array("i", control[0][2][:4])
        return rights[0]

    def close(self) -> None:
        """Close both ends, and what is in there."""
        self._front.close()
        self._back.close()


def same_file(fd: int, name: str, dir_fd: int) -> bool:
    """Say whether `name` is the file that `fd` has open; False if there is none of that name."""
    try:
        named = os.stat(name, dir_fd=dir_fd)
    except FileNotFoundError:
        return False
    return os.path.samestat(named, os.fstat(fd))
