"""Renames full log files: `log` becomes `log.1`, `log.1` becomes `log.2`, and so on.

Renames go from the highest number down, and only up to the first free number. So an interrupted
rotation leaves a gap. The next rotation shifts only the files below the gap: no file is shifted
twice, and only the oldest is ever replaced.
"""

from __future__ import annotations

import os


def rotate(dir_fd: int, name: str, keep: int) -> None:
    """Rename `name` to `name.1`. Afterwards there are at most `keep` old files.

    A worker may be killed in this function, and another call it again, unless `name` is a new file
    by then.

    Args:
        dir_fd: The directory, borrowed.
        name: The name of the log in it.
        keep: At least 1.

    Raises:
        OSError: As rename(2).
    """
    free = next((n for n in range(1, keep) if not _exists(dir_fd, f"{name}.{n}")), keep)
    for number in range(free, 1, -1):
        _rename(dir_fd, f"{name}.{number - 1}", f"{name}.{number}")
    _rename(dir_fd, name, f"{name}.1")


def replace(dir_fd: int, name: str) -> None:
    """Replace `name` by an empty file. A process that has the old file open keeps it.

    A worker may be killed in this function, and another call it again.

    Args:
        dir_fd: The directory, borrowed.
        name: The name of the log in it.

    Raises:
        OSError: As open(2) or rename(2).
    """
    fresh = f"{name}.tmp"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    os.close(os.open(fresh, flags, 0o640, dir_fd=dir_fd))
    _rename(dir_fd, fresh, name)


def _exists(dir_fd: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _rename(dir_fd: int, old: str, new: str) -> None:
    os.rename(old, new, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
