"""Paths that a person or an engine names, made independent of the current directory.

What forkshim writes (documents, records, environments) is UTF-8, so a path is UTF-8, too. A word of
the command line is checked as it is read. The current directory, which a relative path adds, is
checked here.
"""

from __future__ import annotations

import os

from supervisor.linux.errors import UsageError, reason


class PathError(UsageError, ValueError):
    """The path cannot be made absolute, or is not UTF-8. `ValueError`: a reader of options."""


def joined(path: str) -> str:
    """Return `path` below the current directory, or itself if it is absolute; no `..` is resolved.

    Raises:
        PathError: The current directory is gone, or one of both is not UTF-8.
    """
    try:
        found = path if path.startswith("/") else os.path.join(os.getcwd(), path)
    except OSError as error:
        raise PathError(f"{path!r} in the current directory: {reason(error)}") from error
    if any("\udc80" <= character <= "\udcff" for character in found):
        raise PathError(f"not UTF-8: {found!r}")
    return found


def absolute(path: str) -> str:
    """Return `path` as os.path.abspath does.

    Raises:
        PathError: As `joined`.
    """
    return os.path.normpath(joined(path))
