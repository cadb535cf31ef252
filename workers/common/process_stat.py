"""The only parser of /proc/PID/stat, for supervisor and workers.

The second field is the program's name in parentheses. It may contain blanks and parentheses, so the
parser counts the fields after the last `)`.

Source: proc(5), /proc/PID/stat; sched.h for the flags.
"""

from __future__ import annotations

_FIRST = 3
STATE, FLAGS, BEGAN, EXIT_CODE = 3, 9, 22, 52
"""Numbers of fields in proc(5)."""

PF_EXITING = 0x4
"""The process is ending, or is a zombie."""


def fields(pid: int) -> dict[int, bytes] | None:
    """Return the fields from the third on, by their numbers in proc(5); None if reaped already.

    Raises:
        OSError: EMFILE, ENFILE or ENOMEM.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return parse(file.read())
    except (FileNotFoundError, ProcessLookupError):
        return None


def parse(stat: bytes) -> dict[int, bytes]:
    """Return the fields of the file's content. Pure."""
    return dict(enumerate(stat.rpartition(b")")[2].split(), _FIRST))


def is_ending(pid: int) -> bool:
    """Return whether the process is ending, is a zombie or was reaped.

    Raises:
        OSError: As `fields`.
    """
    found = fields(pid)
    return found is None or bool(int(found[FLAGS]) & PF_EXITING)
