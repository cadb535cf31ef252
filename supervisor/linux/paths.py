"""Makes paths absolute and checks that they are UTF-8.

forkshim writes paths to documents, records and environments in UTF-8. `cli.options` checks the
words of the command line. This module checks the working directory, which a relative path adds.
"""

from __future__ import annotations

import os

from supervisor.linux.errors import UsageError, reason


class PathError(UsageError, ValueError):
    """The path cannot be made absolute, or is not UTF-8. Options report a `ValueError`."""


def joined(path: str) -> str:
    """Return `path` joined to the working directory; an absolute path unchanged. Keeps `..`.

    Raises:
        PathError: The working directory was removed, or the result is not UTF-8.
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
