"""From the container's last word to its status on the disk, beside conmon's exit file.

Ours is fsync'ed, and its directory as well.
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
from tests.bench.sites import LOOK_S, WAIT, let_go, make_site
from tests.bench.ways import NEW_SESSION
from tests.harness import bundles
from tests.harness.engine import Engine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.bench.ways import Way


def cases(setting: Setting) -> Iterator[Case]:
    """The one case."""
    yield Case(
        "end",
        "exit to the status on the disk",
        [
            *(
                Variant(
                    way.who,
                    partial(_forkshim, setting.rootfs, way),
                    is_ours=True,
                    around=way.around,
                )
                for way in setting.ways
            ),
            Variant("conmon", partial(_conmon, setting.rootfs), peers.need(peers.CONMON)),
        ],
        [at_most(1, "ms", beside="conmon")],
        times=3,
    )


def _forkshim(rootfs: Path, way: Way) -> Sample:
    """`exitStatus` of forkshim-shim."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        bundle = make_site(directory, rootfs, b"", WAIT)
        with Engine(directory / "state", bundles.fresh_id("end"), bundle) as engine:
            engine.attach("stdout", "stderr")
            engine.run(shim=way.shim, **NEW_SESSION)
            took = _measure(directory, (directory / "state/exitStatus").exists)
            engine.wait_end()
            way.check(engine.shim_pid)
            engine.wait_shim()
        return took


def _conmon(rootfs: Path) -> Sample:
    """The file in conmon's --exit-dir."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        bundle = make_site(directory, rootfs, b"", WAIT)
        with peers.conmon(directory, bundle, f"k8s-file:{directory / 'log'}"):
            return _measure(directory, lambda: bool(os.listdir(directory / "exits")))


def _measure(directory: Path, is_there: Callable[[], bool]) -> Sample:
    let_go(directory)
    began = time.perf_counter()
    while not is_there():
        time.sleep(LOOK_S)
    return {"ms": (time.perf_counter() - began) * 1e3}
