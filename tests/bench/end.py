"""From the container's last word to its status in a file, beside conmon's exit file.

Both are on a file system in memory. An engine's state directories and conmon's exit directory are
under /run, which is one; elsewhere the time is the disk's, since ours is fsync'ed and conmon's is
not. Each side's clock is stopped by the whole file's name in its directory (inotify).
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
    """The one case."""
    yield Case(
        "end",
        "exit to exitStatus, on tmpfs",
        [
            Variant("forkshim", partial(_forkshim, setting.rootfs, setting.programs), is_ours=True),
            Variant("conmon", partial(_conmon, setting.rootfs), peers.need(peers.CONMON)),
        ],
        [at_most(1, "ms", beside="conmon")],
        times=3,
    )


def _forkshim(rootfs: Path, programs: Programs) -> Sample:
    """`exitStatus` of forkshim-shim."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        directory = Path(name)
        bundle = make_site(directory, rootfs, b"", _SCRIPT)
        with Engine(directory / "state", bundles.fresh_id("end"), bundle) as engine:
            engine.attach("stdout", "stderr")
            engine.run(shim=programs.shim)
            for name in ("stdout", "stderr"):
                waiting.read_until(engine.fd(name), _BEGUN)
            took = _measure(directory, directory / "state/exitStatus", Path.exists)
            engine.wait_end()
            engine.wait_shim()
        return took


def _conmon(rootfs: Path) -> Sample:
    """The file in conmon's --exit-dir."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        directory = Path(name)
        bundle, log = make_site(directory, rootfs, b"", _SCRIPT), directory / "log"
        with peers.conmon(directory, bundle, f"k8s-file:{log}"):
            waiting.wait_path(log, lambda log: log.exists() and log.read_bytes().count(_BEGUN) == 2)
            return _measure(directory, directory / "exits" / "any", _has_sibling)


def _has_sibling(path: Path) -> bool:
    """Say whether a file is there whose name is an ID: conmon's temporary one ends in .XXXXXX."""
    return any("." not in name for name in os.listdir(path.parent))


def _measure(directory: Path, path: Path, is_there: Callable[[Path], bool]) -> Sample:
    let_go(directory)
    began = time.perf_counter()
    return {"ms": (arrival_s(path, is_there) - began) * 1e3}
