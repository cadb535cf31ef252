"""Receives descriptors over a Unix socket, for supervisor and workers.

socket.recv_fds is not used: up to Python 3.12 it ignores its flags, so the descriptors are not
close-on-exec.

Source: unix(7), SCM_RIGHTS; recvmsg(2), MSG_CMSG_CLOEXEC.
"""

from __future__ import annotations

import array
import socket


def receive(
    receiver: socket.socket, most_bytes: int, most_fds: int, flags: int = 0
) -> tuple[bytes, list[int]]:
    """Return a message and its descriptors, close-on-exec, which the caller owns.

    The kernel closes descriptors beyond `most_fds`.

    Raises:
        OSError: As recvmsg(2); BlockingIOError with MSG_DONTWAIT.
    """
    message, ancillary, _flags, _address = receiver.recvmsg(
        most_bytes, socket.CMSG_SPACE(4 * most_fds), flags | socket.MSG_CMSG_CLOEXEC
    )
    fds = array.array("i")
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    return message, list(fds)
