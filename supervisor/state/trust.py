"""Trusted directories: only root and this process's user can create a name in them.

Where other users may write to a directory, they can replace a name in it by a link or by another
directory. `open_directory` walks a path from the root directory with openat(2) and checks each
component, as logrotate does. Its owner must be root or this process's user, and only the owner or
the group root may write to it. In a directory with the sticky bit (/tmp) the walk enters only what
root or this process's user owns. The same holds for symbolic links.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress

from supervisor.linux import fds
from supervisor.linux.errors import UntrustedError

_MOST_LINKS = 40
"""The limit of the kernel, path_resolution(7)."""

_WALK = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PATH = os.O_PATH | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def check(fd: int, path: str, *, may_be_sticky: bool = True) -> None:
    """Refuse a directory in which other users can create a name. `path` is for the message.

    Raises:
        UntrustedError: Its owner is another user, or other users may write to it.
    """
    attributes = os.fstat(fd)
    if not _is_ours(attributes):
        raise UntrustedError(f"{path}: not trusted: it belongs to user {attributes.st_uid}")
    mode = attributes.st_mode
    writable = mode & (stat.S_IWOTH | (stat.S_IWGRP if attributes.st_gid != 0 else 0))
    if writable and not (may_be_sticky and mode & stat.S_ISVTX):
        raise UntrustedError(
            f"{path}: not trusted: others may write to it (mode {mode & 0o7777:o})"
        )


def open_directory(path: str, *, make: int | None = None) -> fds.Fd:
    """Open a directory by a walk that only root and this process's user can redirect.

    Args:
        path: The walk follows symbolic links of root and of this process's user.
        make: Create missing directories with this mode; None creates none.

    Returns:
        A descriptor for reading and for openat(2); the caller owns it.

    Raises:
        OSError: As open(2), with `filename`.
        UntrustedError: A component is not trusted, see `check`.

    Source: path_resolution(7); openat(2), O_NOFOLLOW; logrotate(8), `su`.
    """
    whole = path if path.startswith("/") else os.path.join(os.getcwd(), path)
    todo = [part for part in whole.split("/") if part not in ("", ".")]
    here, links = fds.Fd(os.open("/", _WALK)), 0
    try:
        check(here.fileno(), "/")
        while todo:
            name = todo.pop(0)
            try:
                target = _link_target(name, here.fileno(), path)
                if target is None:
                    entered = _enter(name, here.fileno(), make)
                    here.close()
                    here = entered
                    check(here.fileno(), os.readlink(f"/proc/self/fd/{here.fileno()}"))
                    continue
            except OSError as error:
                error.filename = path
                raise
            links += 1
            if links > _MOST_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
            if target.startswith("/"):
                here.close()
                here = fds.Fd(os.open("/", _WALK))
            todo[:0] = [part for part in target.split("/") if part not in ("", ".")]
        try:
            return fds.Fd(os.open(".", _READ, dir_fd=here.fileno()))
        except OSError as error:
            error.filename = path
            raise
    finally:
        here.close()


def open_path(path: str) -> fds.Fd:
    """Open an existing fifo, device or file by the same walk, with O_PATH. The caller owns it.

    The walk follows a link that belongs to root or to this process's user. In a directory with the
    sticky bit the file must belong to one of them, too. Below /proc the check is skipped: its files
    are the kernel's (/dev/stdout leads there).

    Raises:
        OSError: As `open_directory`.
        UntrustedError: As `open_directory`.
    """
    here = path
    for _each in range(_MOST_LINKS):
        parent, name = os.path.split(here)
        directory = open_directory(parent or ".")
        try:
            real_parent = os.readlink(f"/proc/self/fd/{directory.fileno()}")
            if real_parent.startswith("/proc/"):
                return fds.Fd(os.open(name, _PATH, dir_fd=directory.fileno()))
            target = _link_target(name, directory.fileno(), path)
            if target is None:
                return _open_entry(name, directory, path)
        except OSError as error:
            error.filename = path
            raise
        finally:
            directory.close()
        here = os.path.join(real_parent, target)
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)


def _open_entry(name: str, directory: fds.Fd, path: str) -> fds.Fd:
    entry = fds.Fd(os.open(name, _PATH | os.O_NOFOLLOW, dir_fd=directory.fileno()))
    attributes = os.fstat(entry.fileno())
    others_write = os.fstat(directory.fileno()).st_mode & (stat.S_IWOTH | stat.S_IWGRP)
    if others_write and not _is_ours(attributes):
        entry.close()
        raise UntrustedError(f"{path}: not trusted: it belongs to user {attributes.st_uid}")
    if stat.S_ISREG(attributes.st_mode) and attributes.st_nlink > 1:
        entry.close()
        raise UntrustedError(f"{path}: not trusted: the file has another name, too (a hard link)")
    return entry


def open_below(name: str, parent_fd: int, path: str) -> fds.Fd:
    """Open a directory below a trusted directory. Only its owner may write to it.

    Raises:
        OSError: As open(2); ENOTDIR: a symbolic link.
        UntrustedError: As `check`.
    """
    below = fds.Fd(os.open(name, _READ, dir_fd=parent_fd))
    try:
        check(below.fileno(), path, may_be_sticky=False)
    except UntrustedError:
        below.close()
        raise
    return below


def _is_ours(attributes: os.stat_result) -> bool:
    return attributes.st_uid in (0, os.geteuid())


def _link_target(name: str, here_fd: int, path: str) -> str | None:
    """Return the target of a trusted symbolic link; None if `name` is no link or does not exist."""
    try:
        attributes = os.stat(name, dir_fd=here_fd, follow_symlinks=False)
        if not stat.S_ISLNK(attributes.st_mode):
            return None
        if not _is_ours(attributes):
            raise UntrustedError(
                f"{path}: not trusted: the link {name!r} belongs to user {attributes.st_uid}"
            )
        return os.readlink(name, dir_fd=here_fd)
    except FileNotFoundError:
        return None


def _enter(name: str, here_fd: int, make: int | None) -> fds.Fd:
    try:
        return fds.Fd(os.open(name, _WALK, dir_fd=here_fd))
    except FileNotFoundError:
        if make is None:
            raise
    with suppress(FileExistsError):  # another process created it in between
        os.mkdir(name, make, dir_fd=here_fd)
    return fds.Fd(os.open(name, _WALK, dir_fd=here_fd))
