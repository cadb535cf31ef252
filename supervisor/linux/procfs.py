"""Reads /proc/PID/stat, /proc/PID/status and /proc/PID/task.

Source: proc(5); sched.h for the flags.
"""

from __future__ import annotations

import os

from workers.common import process_stat

PF_FORKNOEXEC = 0x40
"""The process has executed no program since it was forked. A zombie keeps the flag."""

CAP_SYS_PTRACE = 19
CAP_SYS_ADMIN = 21
"""Source: capabilities(7), linux/capability.h."""


def flags(pid: int) -> int | None:
    """Return the flags of the process; None if it was reaped.

    Raises:
        OSError: EMFILE, ENFILE or ENOMEM, as every function of this module.
    """
    found = process_stat.fields(pid)
    return None if found is None else int(found[process_stat.FLAGS])


def began(pid: int) -> int | None:
    """Return the start time of the process in clock ticks since boot; None if it was reaped."""
    found = process_stat.fields(pid)
    return None if found is None else int(found[process_stat.BEGAN])


def is_ending(pid: int) -> bool:
    """Return whether the process is ending, is a zombie or was reaped."""
    return process_stat.is_ending(pid)


def is_dead(pid: int) -> bool:
    """Return whether the process is a zombie or was reaped."""
    found = process_stat.fields(pid)
    return found is None or found[process_stat.STATE] in b"ZX"


def zombie_wait_status(pid: int) -> int | None:
    """Return the wait status of a zombie; None if the process is no zombie, or it is hidden.

    0 is ambiguous: a reader that may not trace the process reads 0, too. Source: ptrace(2),
    "Ptrace access mode checking".
    """
    found = process_stat.fields(pid)
    if found is None or found[process_stat.STATE] != b"Z":
        return None
    wait_status = int(found[process_stat.EXIT_CODE])
    return wait_status if wait_status or _may_trace(pid) else None


def _may_trace(pid: int) -> bool:
    """Say whether this process may trace another one, which may be a zombie.

    The kernel checks the same access for this link as for the wait status. Source: namespaces(7).
    """
    try:
        os.readlink(f"/proc/{pid}/ns/user")
    except OSError:
        return False
    return True


def status(pid: int | str) -> dict[str, str]:
    """Return the fields of /proc/PID/status by name. `pid` may be "self".

    Raises:
        OSError: ENOENT or ESRCH: the process was reaped.
    """
    with open(f"/proc/{pid}/status", "rb") as file:
        lines = file.read().decode("ascii", "replace").split("\n")
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def has_capability(number: int) -> bool:
    """Return whether a capability of this process is effective. False where /proc hides it."""
    return bool(int(status("self").get("CapEff", "0"), 16) >> number & 1)


def children(pid: int = 0) -> list[int]:
    """Return the pids of a thread's children, including zombies; of this thread by default."""
    pid = pid or os.getpid()
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(word) for word in file.read().split()]
