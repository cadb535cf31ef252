"""A slot for one open file that outlives the worker that opened it.

A name is not enough to find the file that a killed worker was writing to: logrotate or the kubelet
may have renamed or unlinked it since. So the worker leaves a duplicate of its descriptor in a
socket pair of the supervisor. The kernel keeps it there (unix(7), SCM_RIGHTS), and every worker can
peek at it repeatedly (recv(2), MSG_PEEK).
"""

from __future__ import annotations

import socket

from workers.common import fd_passing


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
                # The kernel closes descriptors for which the receiver has no buffer.
                self._front.recv(1, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return

    def peek(self) -> int | None:
        """Return a new close-on-exec descriptor of the file; None if the slot is empty.

        The caller owns the descriptor.
        """
        try:
            _byte, fds = fd_passing.receive(
                self._front, 1, 1, socket.MSG_PEEK | socket.MSG_DONTWAIT
            )
        except BlockingIOError:
            return None
        return fds[0]

    def close(self) -> None:
        """Close both ends and the descriptor between them."""
        self._front.close()
        self._back.close()
