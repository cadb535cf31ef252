"""From the container's last word to its status on the disk, beside conmon's exit file."""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench import logs
from tests.harness import bundles
from tests.harness.engine import Engine

if TYPE_CHECKING:
    from collections.abc import Callable

_SCRIPT = "read go < /tmp/c/go"
_LOOK_S = 0.0002


@dataclass(frozen=True)
class End:
    """One root file system; each method is one measurement, in milliseconds."""

    rootfs: Path

    def forkshim(self) -> float:
        """`exitStatus` of forkshim-shim."""
        with tempfile.TemporaryDirectory() as name:
            directory = Path(name)
            bundle = logs.make_site(directory, self.rootfs, b"", _SCRIPT)
            with Engine(directory / "state", bundles.fresh_id("end"), bundle) as engine:
                engine.run_attached()
                took_ms = _measure(directory, (directory / "state/exitStatus").exists)
                engine.wait_end()
                engine.wait_shim()
            return took_ms

    def conmon(self) -> float:
        """The file in conmon's --exit-dir."""
        with tempfile.TemporaryDirectory() as name:
            directory = Path(name)
            bundle = logs.make_site(directory, self.rootfs, b"", _SCRIPT)
            with logs.conmon(directory, bundle, f"k8s-file:{directory / 'log'}"):
                return _measure(directory, lambda: bool(os.listdir(directory / "exits")))


def _measure(directory: Path, is_there: Callable[[], bool]) -> float:
    logs.let_go(directory)
    began = time.perf_counter()
    while not is_there():
        time.sleep(_LOOK_S)
    return (time.perf_counter() - began) * 1e3
