"""What the kernel says of one process in /proc/PID/stat.

Source: proc(5), fields 9 and 22; sched.h.
"""

from __future__ import annotations

PF_EXITING = 0x4
"""It is ending, or is a zombie."""
PF_FORKNOEXEC = 0x40
"""It was forked and has executed no program since. A zombie keeps the flag."""


def flags(pid: int) -> int | None:
    """Return the flags of the process, None if it was reaped.

    Raises:
        OSError: EMFILE, say.
    """
    return _number(pid, 9)


def began(pid: int) -> int | None:
    """Return when the process began, in clock ticks since the boot; None if it was reaped.

    Raises:
        OSError: As `flags`.
    """
    return _number(pid, 22)


def _number(pid: int, field: int) -> int | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[field - 3])
    except (FileNotFoundError, ProcessLookupError):
        return None


def is_ending(pid: int) -> bool:
    """Say whether the process is ending or has ended.

    Raises:
        OSError: As `flags`.
    """
    found = flags(pid)
    return found is None or bool(found & PF_EXITING)
