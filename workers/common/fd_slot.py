"""A slot for one open file that outlives the worker that opened it.

A name is not enough to find the file that a killed worker was writing to: logrotate or the kubelet
may have renamed or unlinked it since. So the worker leaves a duplicate of its descriptor in a
socket pair of the supervisor. The kernel keeps it there (unix(7), SCM_RIGHTS), and every worker can
peek at it again and again (recv(2), MSG_PEEK).
"""

from __future__ import annotations

import array
import socket


class FdSlot:
    """A socket pair that holds at most one descriptor. The supervisor makes and owns it."""

    def __init__(self, *, fds: tuple[int, int] | None = None) -> None:
        """Make an empty slot, or take over `fds` of another slot with its content."""
        if fds is None:
            self._front, self._back = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        else:
            self._front, self._back = (socket.socket(fileno=fd) for fd in fds)

    @property
    def fds(self) -> tuple[int, ...]:
        """Descriptors that a worker keeps open."""
        return (self._front.fileno(), self._back.fileno())

    def put(self, fd: int) -> None:
        """Replace the content of the slot with a duplicate of `fd`.

        A worker that is killed in here leaves the old descriptor, none, or the new one.
        """
        self.clear()
        socket.send_fds(self._back, [b"f"], [fd])

    def clear(self) -> None:
        """Empty the slot."""
        while True:
            try:
                # The kernel closes descriptors that the receiver leaves no room for.
                self._front.recv(1, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return

    def peek(self) -> int | None:
        """Return a new close-on-exec descriptor of the file, None if the slot is empty.

        The caller owns the descriptor.
        """
        # Not socket.recv_fds: up to Python 3.12 it ignores its flags.
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
        """Close both ends and the descriptor between them."""
        self._front.close()
        self._back.close()
