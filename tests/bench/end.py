"""From the container's last word to its status in a file, and to the supervisor's own end.

Beside conmon's exit file, and conmon's own end. Both files are on a file system in memory. An
engine's state directories and conmon's exit directory are under /run, which is in memory, too;
elsewhere the time is the disk's, since ours is fsync'ed and conmon's is not. The clock of `end` is
stopped by the whole file's name in its directory (inotify), the clock of `end-gone` by the
process's pidfd. Between the two forkshim drains the output and runs the runtime's `delete`, which
conmon leaves to its engine.
"""

from __future__ import annotations

import os
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench import peers
from tests.bench.case import Case, Sample, Setting, Variant, at_most
from tests.bench.sites import MEMORY, WAIT, arrival_s, let_go, make_site
from tests.harness import bundles, waiting
from tests.harness.engine import Engine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.bench.installed import Programs


_BEGUN = b"begun"
_SCRIPT = f"echo begun; echo begun >&2; {WAIT}"
"""A container that ends while its workers are still beginning would measure the beginning."""


def cases(setting: Setting) -> Iterator[Case]:
    """To the status, and to the end of the process."""
    yield Case(
        "end",
        "exit to exitStatus, on tmpfs",
        _sides(setting, is_gone=False),
        [at_most(1, "ms", beside="conmon")],
        times=3,
    )
    yield Case(
        "end-gone",
        "exit to the supervisor's own end",
        _sides(setting, is_gone=True),
        [at_most(10, "ms")],
        times=3,
    )


def _sides(setting: Setting, *, is_gone: bool) -> list[Variant]:
    ours = partial(_forkshim, setting.rootfs, setting.programs, is_gone=is_gone)
    theirs = partial(_conmon, setting.rootfs, is_gone=is_gone)
    return [
        Variant("forkshim", ours, is_ours=True),
        Variant("conmon", theirs, peers.need(peers.CONMON)),
    ]


def _forkshim(rootfs: Path, programs: Programs, *, is_gone: bool) -> Sample:
    """`exitStatus` of forkshim-shim, or its end."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        directory = Path(name)
        bundle = make_site(directory, rootfs, b"", _SCRIPT)
        with Engine(directory / "state", bundles.fresh_id("end"), bundle) as engine:
            engine.attach("stdout", "stderr")
            engine.run(shim=programs.shim)
            for name in ("stdout", "stderr"):
                waiting.read_until(engine.fd(name), _BEGUN)
            if is_gone:
                took = _measure_gone(directory, engine.shim_pid)
            else:
                took = _measure(directory, directory / "state/exitStatus", Path.exists)
            engine.wait_end()
            engine.wait_shim()
        return took


def _conmon(rootfs: Path, *, is_gone: bool) -> Sample:
    """The file in conmon's --exit-dir, or conmon's end."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        directory = Path(name)
        bundle, log = make_site(directory, rootfs, b"", _SCRIPT), directory / "log"
        with peers.conmon(directory, bundle, f"k8s-file:{log}") as monitor:
            waiting.wait_path(log, lambda log: log.exists() and log.read_bytes().count(_BEGUN) == 2)
            if is_gone:
                return _measure_gone(directory, monitor.pid)
            return _measure(directory, directory / "exits" / "any", _has_sibling)


def _has_sibling(path: Path) -> bool:
    """Say whether a file is there whose name is an ID: conmon's temporary one ends in .XXXXXX."""
    return any("." not in name for name in os.listdir(path.parent))


def _measure(directory: Path, path: Path, is_there: Callable[[Path], bool]) -> Sample:
    let_go(directory)
    began = time.perf_counter()
    return {"ms": (arrival_s(path, is_there) - began) * 1e3}


def _measure_gone(directory: Path, pid: int) -> Sample:
    pidfd = os.pidfd_open(pid)
    try:
        let_go(directory)
        began = time.perf_counter()
        waiting.wait_readable(pidfd)
        return {"ms": (time.perf_counter() - began) * 1e3}
    finally:
        os.close(pidfd)
