"""The control group a bed lives in, and the program that ends it: the bed's janitor.

Whoever is in the group ends with it, systemd included, which a dead nspawn leaves running. A lock
on the group's directory tells a living bed from what a killed run left: the kernel drops it with
the process that held it.

Started as a program (`nspawn_cgroup.py OWNER CGROUP NOTIFY`), this is the janitor. It has nothing
but the standard library then.
"""

from __future__ import annotations

import fcntl
import os
import re
import select
import socket
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_PREFIX = "forkshim-bed-"
_REMOVAL_S = 30.0
_PAUSE_S = 0.02  # between two looks at whether the killed have left the group


def _mount_point(kind: str, option: str) -> Path | None:
    """Where a file system of this type with this mount option is mounted; the first such place."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _source, target, type_, options = line.split()[:4]
        if type_ == kind and option in options.split(","):
            # Blanks in it are written as \040.
            return Path(re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), target))
    return None


def root() -> Path:
    """Where cgroup v2 is mounted: by itself, or beside the hierarchies of version 1.

    Raises:
        FileNotFoundError: nowhere.
    """
    if (found := _mount_point("cgroup2", "rw")) is None:
        raise FileNotFoundError("cgroup v2 is not mounted, or may not be written to")
    return found


@contextmanager
def new() -> Iterator[Path]:
    """A control group of one's own, claimed for the length of the block; the janitor removes it.

    What killed runs left of theirs is removed at first.
    """
    with _taking_turns():
        _sweep()
        group = root() / f"{_PREFIX}{os.getpid()}-{os.urandom(3).hex()}"
        group.mkdir()
        claim = os.open(group, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(claim, fcntl.LOCK_EX)
    try:
        yield group
    finally:
        os.close(claim)


def sweep() -> None:
    """Remove what killed runs left of theirs."""
    with _taking_turns():
        _sweep()


@contextmanager
def _taking_turns() -> Iterator[None]:
    """Between making a group and claiming it, another run would take it for a dead one's."""
    top = os.open(root(), os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(top, fcntl.LOCK_EX)
        yield
    finally:
        os.close(top)


def _sweep() -> None:
    for old in root().glob(f"{_PREFIX}*"):
        _remove_unclaimed(old)


def _remove_unclaimed(group: Path) -> None:
    try:
        fd = os.open(group, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    else:
        remove(group)
    finally:
        os.close(fd)


def remove(group: Path) -> None:
    """Kill all that is in a group and below, and remove it; no error if it has gone.

    Raises:
        TimeoutError: it could not be removed.
    """
    with suppress(FileNotFoundError):
        (group / "cgroup.kill").write_text("1")
    trees = [group]
    # Beside version 1, nspawn makes a group of the same name for systemd's own hierarchy.
    if (legacy := _mount_point("cgroup", "name=systemd")) is not None:
        trees.append(legacy / group.name)
    deadline_s = time.monotonic() + _REMOVAL_S
    while left := [tree for tree in trees if not _removed(tree)]:
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"still in use: {left}")
        time.sleep(_PAUSE_S)


def _removed(tree: Path) -> bool:
    """Remove what can be removed of a tree of groups; says whether that was all."""
    for folder, _folders, _files in os.walk(tree, topdown=False):
        with suppress(OSError):
            os.rmdir(folder)
    return not tree.exists()


def _await_end_of(owner: int, notify: socket.socket) -> None:
    """Wait until the owner closes our stdin, or ends in whatever way.

    Its end is watched for as well, because a child it forked may hold the other end of stdin.

    From the first byte of stdin on, what the bed tells is read and dropped: PID 1 of a bed whose
    socket is full sleeps until it is read.
    """
    try:
        pidfd = os.pidfd_open(owner)
    except ProcessLookupError:
        return
    if os.getppid() != owner:
        return  # it has ended before we looked, and the number is another process's
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    poller.register(0, select.POLLIN)
    while True:
        ready = [fd for fd, _event in poller.poll()]
        if pidfd in ready or (0 in ready and not os.read(0, 1)):
            return
        if 0 in ready:
            poller.register(notify, select.POLLIN)
        if notify.fileno() in ready:
            notify.recv(1)


if __name__ == "__main__":
    _await_end_of(int(sys.argv[1]), socket.socket(fileno=int(sys.argv[3])))
    remove(Path(sys.argv[2]))
