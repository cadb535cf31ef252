"""From exec to the pid file: `forkshim-shim` against the runtime alone."""

from __future__ import annotations

import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.harness import bundles, waiting
from tests.harness.engine import Engine


@dataclass
class Start:
    """One root file system; each method is one measurement, in milliseconds."""

    rootfs: Path

    def with_shim(self) -> float:
        """forkshim-shim in a prepared state directory, streams on fifos with a reader."""
        with tempfile.TemporaryDirectory() as directory:
            bundle = self._bundle(Path(directory))
            state_dir = Path(directory) / "state"
            with Engine(state_dir, bundles.fresh_id("bench"), bundle) as engine:
                engine.attach("stdout", "stderr")
                began = time.perf_counter()
                engine.launch()
                waiting.wait_path(state_dir / "pid", _has_content)
                took_ms = (time.perf_counter() - began) * 1e3
                engine.created()
                engine.start()
                engine.wait_end()
                engine.wait_shim()
                return took_ms

    def without(self) -> float:
        """`runc create --pid-file`."""
        container_id = bundles.fresh_id("bare")
        with tempfile.TemporaryDirectory() as directory:
            bundle = self._bundle(Path(directory))
            pid_path = Path(directory) / "pid"
            began = time.perf_counter()
            command: list[str | Path] = [
                "runc",
                "create",
                "--bundle",
                bundle,
                "--pid-file",
                pid_path,
                container_id,
            ]
            null = subprocess.DEVNULL
            with subprocess.Popen(command, stdin=null, stdout=null, stderr=null) as runtime:
                waiting.wait_path(pid_path, _has_content)
                took_ms = (time.perf_counter() - began) * 1e3
                assert runtime.wait() == 0
            subprocess.run(["runc", "delete", "--force", container_id], check=True)
            return took_ms

    def _bundle(self, directory: Path) -> Path:
        document = bundles.config(self.rootfs, ["true"])
        return bundles.make_bundle(directory / "bundle", document)


def _has_content(path: Path) -> bool:
    try:
        return path.stat().st_size > 0
    except FileNotFoundError:
        return False
