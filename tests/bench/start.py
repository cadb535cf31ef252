"""From exec to the pid file: forkshim-shim beside the runtime alone, and beside conmon.

Each side gets the same bundle, and has its clock stopped by the same event: the file that the
runtime's `create --pid-file` writes has come into its directory (inotify). forkshim-shim has a
prepared state directory and fifos with a reader; the runtime alone has /dev/null; conmon writes a
k8s-file, as under Podman. No side's end is measured.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench import peers
from tests.bench.case import Case, Sample, Setting, Variant, Wanted, at_most
from tests.bench.sites import arrival_s, has_content
from tests.harness import bundles
from tests.harness.engine import Engine

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.bench.installed import Programs

_NULL = subprocess.DEVNULL


def cases(setting: Setting) -> Iterator[Case]:
    """With runc, and with crun."""
    rootfs = setting.rootfs
    conmon = Variant("conmon", partial(_conmon, rootfs), peers.need(peers.CONMON))
    yield Case(
        "start",
        "exec to pid file",
        [*_sides(setting, "runc"), conmon],
        _wanted("runc"),
        times=3,
    )
    yield Case(
        "start-crun", "the same with crun", _sides(setting, "crun"), _wanted("crun"), times=3
    )


def _wanted(runtime: str) -> Sequence[Wanted]:
    return [at_most(2, "ms", beside=f"{runtime} alone")]


def _sides(setting: Setting, runtime: str) -> Sequence[Variant]:
    rootfs = setting.rootfs
    lack = peers.need_crun(rootfs) if runtime == peers.CRUN else peers.need(runtime)
    ours = partial(_forkshim, rootfs, setting.programs, runtime)
    return [
        Variant("forkshim", ours, lack, is_ours=True),
        Variant(f"{runtime} alone", partial(_alone, rootfs, runtime), lack),
    ]


def _forkshim(rootfs: Path, programs: Programs, runtime: str) -> Sample:
    with tempfile.TemporaryDirectory() as name:
        bundle = _bundle(Path(name), rootfs)
        state_dir, container_id = Path(name) / "state", bundles.fresh_id("bench")
        with Engine(state_dir, container_id, bundle, runtime=runtime) as engine:
            engine.attach("stdout", "stderr")
            began = time.perf_counter()
            engine.launch(shim=programs.shim)
            took = _until(state_dir / "pid", began)
            engine.created()
            subprocess.run([runtime, "start", container_id], check=True, capture_output=True)
            engine.wait_end()
            engine.wait_shim()
            return took


def _alone(rootfs: Path, runtime: str) -> Sample:
    container_id = bundles.fresh_id("bare")
    with tempfile.TemporaryDirectory() as name:
        pid_file = Path(name) / "pid"
        bundle = _bundle(Path(name), rootfs)
        words: list[str | Path] = ["--bundle", bundle, "--pid-file", pid_file]
        command = [runtime, "create", *words, container_id]
        began = time.perf_counter()
        with subprocess.Popen(command, stdin=_NULL, stdout=_NULL, stderr=_NULL) as process:
            took = _until(pid_file, began)
            assert process.wait() == 0
        peers.delete(container_id, runtime)
        return took


def _conmon(rootfs: Path) -> Sample:
    container_id = bundles.fresh_id("conmon")
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        bundle = _bundle(directory, rootfs)
        log = f"k8s-file:{directory / 'log'}"
        command = peers.conmon_command(directory, bundle, container_id, log)
        began = time.perf_counter()
        with subprocess.Popen(command, stdin=_NULL, stdout=_NULL, stderr=_NULL) as monitor:
            took = _until(directory / "pid", began)
            subprocess.run(["runc", "start", container_id], check=True, capture_output=True)
            monitor.wait()
        peers.delete(container_id)
        return took


def _until(path: Path, began: float) -> Sample:
    return {"ms": (arrival_s(path, has_content) - began) * 1e3}


def _bundle(directory: Path, rootfs: Path) -> Path:
    return bundles.make_bundle(directory / "bundle", bundles.config(rootfs, ["true"]))
