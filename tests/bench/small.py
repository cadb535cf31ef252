"""A container that writes a few bytes at a time: what that costs, and how late they arrive.

Into a pipe, all sides are as in `tests.bench.bulk`, with other writes. Into a log in memory,
`file:` and `cri:` stand beside a copier that writes the lines as they are, and `cri:` beside
conmon's k8s-file; the clock is that of `tests.bench.cri`.

For the delays there is no container: a writer puts the time into each write of 80 bytes, at a
steady pace, and the reader behind a worker of forkshim's, or behind the copier, looks at its own
clock (one clock for all processes, clock_gettime(2)).
"""

from __future__ import annotations

import contextlib
import os
import statistics
import struct
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench import peers, processes, streams
from tests.bench.case import Case, Sample, Setting, Variant, at_most
from tests.bench.cri import LEAST_HEAD_BYTES, run_command, until_logged
from tests.bench.sites import MEMORY, WAIT, make_site, running
from tests.harness.forked import finishing, forked
from workers.copy import output
from workers.copy.route import Route
from workers.process.context import WorkerContext
from workers.process.counters import StreamCounters

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

_LINE = b"x" * 79 + b"\n"
_LINES = f"{WAIT}; dd if=/tmp/c/block bs={len(_LINE)} 2>/dev/null; {WAIT}"
_CHEAP = (at_most(1, "CPU s/GB", beside="copier"),)

_PACES = {"20ms": 0.02, "1ms": 0.001, "100us": 0.0001}
"""Seconds between two writes whose delays are measured."""
_STAMP = struct.Struct("q")
_SPIN_S = 0.0002


def cases(setting: Setting) -> Iterator[Case]:
    """Two sizes into a pipe, lines into two logs, delays at three paces."""
    scale = setting.scale
    for size, writes in ((len(_LINE), scale.small_writes), (1, scale.small_writes // 2)):
        sides = streams.variants(setting, streams.OUTPUT, size * writes, size=size)
        yield Case(f"small-{size}", f"{writes:,} writes, {size} bytes each", sides, _CHEAP)
    for kind in ("file", "cri"):
        sides = [
            Variant("forkshim", partial(_forkshim, setting, kind), is_ours=True),
            Variant("copier", partial(_copier, setting)),
        ]
        if kind == "cri":
            sides.append(Variant("conmon", partial(_conmon, setting), peers.need(peers.CONMON)))
        what = f"{scale.small_writes:,} lines to `{kind}:`, {len(_LINE)} bytes and a write each"
        yield Case(f"small-{kind}", what, sides, _CHEAP)
    for name, pace_s in _PACES.items():
        writes = round(scale.delays_s / pace_s)
        yield Case(
            f"small-delay-{name}",
            f"delay of {writes:,} writes, one every {pace_s * 1e3:g} ms",
            [
                Variant("forkshim", partial(_delays, _worker, pace_s, writes), is_ours=True),
                Variant("copier", partial(_delays, peers.copier, pace_s, writes)),
            ],
        )


def _forkshim(setting: Setting, kind: str) -> Sample:
    with _site(setting) as (directory, bundle):
        command = run_command(setting.programs, directory, bundle, f"{kind}:{directory / 'log'}")
        with running(command) as run:
            pids = partial(processes.forkshim_pids, run.pid)
            return _until_logged(setting, directory, pids, has_heads=kind == "cri")


def _copier(setting: Setting) -> Sample:
    with (
        _site(setting) as (directory, bundle),
        streams.bare_ends(False, directory, bundle) as (_stdin, stdout),
        open(directory / "log", "wb") as log,
        peers.copier(stdout, log.fileno()) as pid,
    ):
        return _until_logged(setting, directory, lambda: [pid], has_heads=False)


def _conmon(setting: Setting) -> Sample:
    with (
        _site(setting) as (directory, bundle),
        peers.conmon(directory, bundle, f"k8s-file:{directory / 'log'}") as monitor,
    ):
        return _until_logged(setting, directory, lambda: [monitor.pid], has_heads=True)


@contextlib.contextmanager
def _site(setting: Setting) -> Iterator[tuple[Path, Path]]:
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        directory = Path(name)
        block = _LINE * setting.scale.small_writes
        yield directory, make_site(directory, setting.rootfs, block, _LINES)


def _until_logged(
    setting: Setting, directory: Path, pids: Callable[[], list[int]], *, has_heads: bool
) -> Sample:
    lines = setting.scale.small_writes
    content = len(_LINE) * lines
    heads = LEAST_HEAD_BYTES * lines if has_heads else 0
    return until_logged(directory, content, content + heads, pids)


def _delays(
    behind: Callable[[int, int], AbstractContextManager[object]], pace_s: float, writes: int
) -> Sample:
    """Measure how long each of so many writes was on its way through a worker or a copier."""
    delays_us: list[float] = []
    with contextlib.ExitStack() as stack:
        source_rfd, source_wfd = streams.pipe()
        sink_rfd, sink_wfd = streams.pipe()
        stack.callback(peers.close, source_rfd, source_wfd, sink_rfd, sink_wfd)
        stack.enter_context(behind(source_rfd, sink_wfd))
        stack.enter_context(finishing(partial(_write_stamps, source_wfd, pace_s, writes)))
        while len(delays_us) < writes:
            content = os.read(sink_rfd, len(_LINE) * 4096)
            now_ns = time.monotonic_ns()
            stamps = _STAMP.iter_unpack(content)
            delays_us += [(now_ns - stamp) / 1e3 for (stamp,) in stamps if stamp]
    cuts = statistics.quantiles(delays_us, n=100, method="inclusive")
    return {"us, median": cuts[49], "us, 99 %": cuts[98], "us, most": max(delays_us)}


def _write_stamps(fd: int, pace_s: float, writes: int) -> None:
    due_s = time.monotonic()
    for _ in range(writes):
        due_s += pace_s
        while (left_s := due_s - time.monotonic()) > 0:
            if left_s > _SPIN_S:
                time.sleep(left_s - _SPIN_S)
        os.write(fd, _STAMP.pack(time.monotonic_ns()).ljust(len(_LINE), b"\0"))


def _worker(source_fd: int, sink_fd: int) -> AbstractContextManager[object]:
    """Be forkshim's worker of stdout, in a process of its own."""

    def work() -> None:
        report_wfd = os.memfd_create("report")
        null_fd = os.open(os.devnull, os.O_RDWR)
        context = WorkerContext(
            "stdout", "forkshim: bench [stdout]", StreamCounters(), 0, report_wfd, null_fd
        )
        output.work(context, Route(source_fd, sink_fd, capacity_bytes=streams.PIPE_BYTES))

    return forked(work)
