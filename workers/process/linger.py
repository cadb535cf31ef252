"""Waits until the peer of a socket has read everything.

journald looks up a sender's name when it reads. A sender that has exited by then has no name.
"""

from __future__ import annotations

import time

from workers.common.fd_state import unread_bytes

LINGER_S = 2.0
_SHORTEST_PAUSE_S = 0.001
_LONGEST_PAUSE_S = 0.05


def wait_until_read(fd: int, limit_s: float = LINGER_S) -> bool:
    """Wait until the peer of a socket has read everything. Return False after `limit_s`.

    No event reports it, so the worker looks after 1 ms, 2 ms, ... 50 ms.
    """
    deadline_s = time.monotonic() + limit_s
    pause_s = _SHORTEST_PAUSE_S
    while unread_bytes(fd):
        if time.monotonic() >= deadline_s:
            return False
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
    return True
