"""Whether there are descriptors enough for a whole life, asked before anything is created.

A runtime that has created a container, and a supervisor that then finds no descriptor for its
clean-up, leave that container behind. The limit is that of this process alone, so what is free
now stays free: nothing has to be held.
"""

from __future__ import annotations

import os
import resource

from supervisor.linux.errors import MachineError

_LIFE = 24
"""Handover, runtime calls, pidfds, the clean-up, and the imports in between."""
_PER_STREAM = 8
"""Two ends, report pipe, staging pipe, and what a log or the journal needs."""


def check(streams: int) -> None:
    """Refuse to begin with too few descriptors.

    Raises:
        MachineError: The limit is too low.
    """
    limit, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return
    used = sum(int(name) < limit for name in os.listdir("/proc/self/fd")) - 1
    needed = used + _LIFE + _PER_STREAM * streams
    if limit < needed:
        raise MachineError(
            f"RLIMIT_NOFILE is {limit}, and {needed} descriptors are needed ({used} are open)"
        )
