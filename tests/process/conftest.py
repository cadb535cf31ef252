"""Fixtures that put this process's signals back, and a yard for the parts of a shim."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.harness.rig import Rig
from tests.harness.stream_site import Site

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def signal_state(no_leaks: None) -> Iterator[None]:
    """Put every handler, the mask and the wakeup descriptor back as they were."""
    handlers = {signum: signal.getsignal(signum) for signum in signal.valid_signals()}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    yield
    signal.set_wakeup_fd(-1)
    for signum, handler in handlers.items():
        if handler is not None and signal.getsignal(signum) != handler:
            signal.signal(signum, handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@pytest.fixture
def rig(signal_state: None, tmp_path: Path) -> Iterator[Rig]:
    """Return a loop, a reaper, a log and /dev/null, wired as in a shim."""
    made = Rig(tmp_path)
    yield made
    made.close()


@pytest.fixture
def site(rig: Rig) -> Iterator[Site]:
    """Return a crew that has no streams yet."""
    made = Site(rig)
    yield made
    made.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return the mount point of a file system of 1 MiB (root)."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount")
    point = tmp_path / "disk"
    point.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", point], check=True)
    yield point
    subprocess.run(["umount", point], check=True)
