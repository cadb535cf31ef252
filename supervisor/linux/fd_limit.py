"""Checks RLIMIT_NOFILE before the runtime creates anything, and raises it for many containers.

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


_given: int | None = None
"""The soft limit before `raise_soft`. Every fork and no execve keeps it, like the limit's owner."""


def raise_soft() -> None:
    """Raise the soft limit to the hard one. Other programs get the old one by `give_back`.

    One process has the descriptors of many containers. A program that uses select(2) relies on the
    soft limit that the service manager has set.
    """
    global _given
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        _given = soft
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def give_back() -> None:
    """Lower the soft limit again, in a process that is about to execute another program."""
    if _given is not None:
        _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (_given, hard))


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
