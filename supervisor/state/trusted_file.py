"""Opens the files that a user names as sinks, in directories that are trusted, see `trust`."""

from __future__ import annotations

import os
import stat

from supervisor.linux import fds
from supervisor.linux.errors import ShimError, UntrustedError, reason
from supervisor.state import trust


def open_log_file(path: str) -> fds.Fd:
    """Open or create a regular file for writing; the caller owns it.

    A symbolic link in its place is not followed, see `trust`. A hard link is refused, too: it is a
    name of another file.

    The flags have no O_APPEND: splice(2) refuses such files. The workers write at the end, see
    `workers.common.position`.

    Raises:
        ShimError: The file or a directory is not trusted, the file is not regular, or open(2)
            failed.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK | os.O_NOFOLLOW
    parent, name = os.path.split(path)
    directory = fds.Fd(-1)
    try:
        directory = trust.open_directory(parent)
        file = fds.Fd(os.open(name, flags, 0o640, dir_fd=directory.fileno()))
    except UntrustedError as error:
        raise ShimError(f"open {path}: {error}") from error
    except OSError as error:
        raise ShimError(f"open {path}: {reason(error)}") from error
    finally:
        directory.close()
    attributes = os.fstat(file.fileno())
    if not stat.S_ISREG(attributes.st_mode):
        file.close()
        raise ShimError(f"open {path}: not a regular file")
    if attributes.st_nlink > 1:
        file.close()
        raise ShimError(f"open {path}: not trusted: the file has another name, too (a hard link)")
    os.set_blocking(file.fileno(), True)
    return file


def open_typed(path: str) -> fds.Fd:
    """Open an existing fifo, device or file, with O_PATH; the caller owns it.

    Raises:
        ShimError: It does not exist, or is not trusted.
    """
    try:
        return trust.open_path(path)
    except UntrustedError as error:
        raise ShimError(f"open {error}") from error
    except OSError as error:
        raise ShimError(f"stat {path}: {reason(error)}") from error
