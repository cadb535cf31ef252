"""Checks RLIMIT_NOFILE before the runtime creates anything.

A supervisor without a free descriptor cannot delete a container that its runtime has created. The
limit is this process's own, so descriptors that are free now stay free. Nothing must be reserved.
"""

from __future__ import annotations

import os
import resource

from supervisor.linux.errors import MachineError

_LIFE = 24
"""For the handover, runtime calls, pidfds, the clean-up, and imports."""
_PER_STREAM = 8
"""Two ends, report pipe, staging pipe, and those of a log file or the journal."""


def check(streams: int) -> None:
    """Check that the limit allows a container with this number of streams.

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
