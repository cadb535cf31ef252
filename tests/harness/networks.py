"""A network namespace of a test's own, where the queues of sockets are as long as it says."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

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
