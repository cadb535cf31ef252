"""The folder in which the beds keep what is slow to make, shared by all test runs of a machine.

Every claim on something in it is a flock: the kernel drops it with the process that held it, so a
killed test run blocks nobody, and what it left can be told from what is in use.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


def directory() -> Path:
    """The cache folder (FORKSHIM_BED_CACHE, or a folder under /var/cache); made if need be."""
    path = Path(os.environ.get("FORKSHIM_BED_CACHE") or "/var/cache/forkshim-beds").absolute()
    path.mkdir(parents=True, exist_ok=True)
    return path


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a lock file, waiting for it as long as it takes."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


@contextmanager
def build_lock() -> Iterator[None]:
    """Hold the lock under which things are put into the cache or taken out of it."""
    with locked(directory() / "build.lock"):
        yield


@contextmanager
def in_use(folder: Path) -> Iterator[None]:
    """Keep a folder of the cache from being discarded; begin this under the build lock."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH)
        yield
    finally:
        os.close(fd)


def discard(folder: Path) -> bool:
    """Remove a folder unless another process holds it; tells whether it is gone."""
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


@contextmanager
def building(final: Path) -> Iterator[Path]:
    """A new folder that becomes `final` at the end of the block, whole or not at all.

    The caller holds the build lock: any other unfinished folder is therefore a dead run's.
    """
    for old in final.parent.glob("unfinished-*"):
        shutil.rmtree(old, ignore_errors=True)
    made = Path(tempfile.mkdtemp(dir=final.parent, prefix="unfinished-"))
    made.chmod(0o755)
    try:
        yield made
        made.rename(final)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise


@contextmanager
def run_folder() -> Iterator[Path]:
    """A folder for one run, which goes with it; also clears what killed runs left."""
    root = directory()
    # Between the making of the folder and the lock on it, another run could take it for a dead one.
    with locked(root / "runs.lock"):
        for old in root.glob("run-*"):
            discard(old)
        folder = Path(tempfile.mkdtemp(dir=root, prefix="run-"))
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(fd, fcntl.LOCK_EX)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(fd)
