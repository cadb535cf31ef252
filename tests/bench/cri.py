"""A container fills a log: `cri:` beside conmon's k8s-file, on a file system in memory.

Both sides run the same container with runc. The clock runs from the word "go" until the log has
at least all the bytes that were written, with their heads; CPU is that of supervisor and workers,
or conmon's, in that time.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench import peers, processes
from tests.bench.case import Case, Sample, Setting, Variant, at_least, at_most
from tests.bench.sites import LOOK_S, MEMORY, WAIT, let_go, make_site, running
from tests.harness import bundles

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.bench.installed import Programs

LEAST_HEAD_BYTES = len("2016-10-06T00:17:09.669794202Z stdout F ")
_SCRIPT = f"{WAIT}; for i in $(seq {{blocks}}); do cat /tmp/c/block; done; echo; {WAIT}"
# The newline: what comes after the last one is written at the end only.


def cases(setting: Setting) -> Iterator[Case]:
    """Short lines, and no lines at all."""
    size = setting.scale.block_bytes
    contents = {
        "lines": ("lines of 100 bytes", (b"x" * 99 + b"\n") * (size // 100)),
        "endless": ("no newlines", bytes(range(32, 127)) * (size // 95)),
    }
    mib = setting.scale.blocks * size >> 20
    for name, (what, block) in contents.items():
        yield Case(
            f"cri-{name}",
            f"log in memory, {mib} MiB, {what}",
            [
                Variant("forkshim", partial(_forkshim, setting, block), is_ours=True),
                Variant("conmon", partial(_conmon, setting, block), peers.need(peers.CONMON)),
            ],
            [at_least(1.5, "MB/s", beside="conmon"), at_most(0.7, "CPU s/GB", beside="conmon")],
        )


def _forkshim(setting: Setting, block: bytes) -> Sample:
    with (
        _site(setting, block) as (directory, bundle),
        running(
            run_command(setting.programs, directory, bundle, f"cri:{directory / 'log'}")
        ) as run,
    ):
        return _measure(setting, block, directory, run.pid)


def _conmon(setting: Setting, block: bytes) -> Sample:
    with (
        _site(setting, block) as (directory, bundle),
        peers.conmon(directory, bundle, f"k8s-file:{directory / 'log'}") as monitor,
    ):
        return _measure(setting, block, directory, monitor.pid)


@contextlib.contextmanager
def _site(setting: Setting, block: bytes) -> Iterator[tuple[Path, Path]]:
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        directory = Path(name)
        script = _SCRIPT.format(blocks=setting.scale.blocks)
        yield directory, make_site(directory, setting.rootfs, block, script)


def _measure(setting: Setting, block: bytes, directory: Path, supervisor: int) -> Sample:
    content = len(block) * setting.scale.blocks
    lines = block.count(b"\n") * setting.scale.blocks
    wanted = content + lines * LEAST_HEAD_BYTES
    return until_logged(directory, content, wanted, partial(processes.forkshim_pids, supervisor))


def until_logged(
    directory: Path, content: int, wanted: int, pids: Callable[[], Sequence[int]]
) -> Sample:
    """Let the container go, measure until its log has so many bytes, and let it end.

    Args:
        directory: Of the container; the log is `log` in there.
        content: How many bytes the container writes.
        wanted: How many the log then has, at least.
        pids: Returns who writes it; called when the container was waiting, so workers are there.
    """
    let_go(directory)
    who = pids()
    cpu_s = processes.cpu_s(who)
    began = time.perf_counter()
    while not _size(directory / "log") >= wanted:
        time.sleep(LOOK_S)
    took_s = time.perf_counter() - began
    cpu_s = processes.cpu_s(who) - cpu_s
    let_go(directory)
    return {"MB/s": content / 1e6 / took_s, "CPU s/GB": cpu_s / (content / 1e9)}


def run_command(
    programs: Programs, directory: Path, bundle: Path, sink: str
) -> Sequence[str | Path]:
    """Return the command by which forkshim runs the bundle."""
    options: list[str | Path] = ["--root", directory / "root", "--bundle", bundle, "--log", sink]
    return [*programs.run, *options, bundles.fresh_id("bench")]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return -1
