"""A network namespace of a test's own, where the queues of sockets are as long as it says."""

from __future__ import annotations

import ctypes
import os
import socket
from pathlib import Path

SYSTEMDS_QUEUE = 512
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def make_private(queue_datagrams: int) -> None:
    """Give this process one; a datagram socket that is made in it takes so many unread ones.

    A new one has 10 by the kernel; systemd makes it 512.
    """
    if _libc.unshare(_CLONE_NEWNET) != 0:
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno))
    Path("/proc/sys/net/unix/max_dgram_qlen").write_text(f"{queue_datagrams}\n")


def long_queue() -> socket.socket:
    """Return a datagram socket that takes as many unread messages as systemd's own."""
    ours = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        make_private(SYSTEMDS_QUEUE)
        try:
            return socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        finally:
            if _libc.setns(ours, _CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "cannot return to the network namespace")
    finally:
        os.close(ours)
