"""A container that writes a few bytes at a time: what that costs, and how late they arrive.

Both sides run the same container with runc, the same 1 MiB pipes and the same reader. Beside
forkshim stands a copier that reads and writes 32 KiB at a time, as shims in Go do, in the one
process that it needs. The clock runs from the word "go" to the last byte; CPU as in `bulk`.

For the delays there is no container: a writer puts the time into each write, and the reader
looks at its own clock (one clock for all processes, clock_gettime(2)).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import statistics
import struct
import tempfile
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.bench import bulk, logs
from tests.bench.pairs import Spread, in_turn, ratio
from tests.harness import bundles, waiting
from tests.harness.engine import Engine
from tests.harness.forked import finishing, forked
from workers import output
from workers.desk import Desk
from workers.engines import Route
from workers.ledger import Ledger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.harness.forked import Child

WRITES = {80: 1_000_000, 1: 500_000}
"""How many of each size."""

PERIODS_S = {"one every 20 ms": 0.02, "1000 a second": 0.001, "10000 a second": 0.0001}
"""Of the writes whose delays are measured."""

_COPIER_BYTES = 32 << 10
_DELAYS = 500
_STAMP = struct.Struct("q")
_SPIN_S = 0.0002


def small_writes(rootfs: Path, rounds: int) -> dict[str, Any]:
    """Measure it all and print it; returns the figures."""
    cases: list[tuple[str, Small | SmallLog]] = [
        (f"writes of {size} bytes", Small(rootfs, size)) for size in WRITES
    ]
    cases += [(f"lines of 80 bytes to {kind}:", SmallLog(rootfs, kind)) for kind in ("file", "cri")]
    figures: dict[str, Any] = {what: _beside_copier(what, case, rounds) for what, case in cases}
    figures["delays_us"] = {what: _delays(what, period) for what, period in PERIODS_S.items()}
    return {"small_writes": figures}


def _beside_copier(what: str, case: Small | SmallLog, rounds: int) -> dict[str, Any]:
    ours, theirs = in_turn(case.forkshim, case.copier, rounds)
    cpu_s = [Spread(spent[1:]) for spent in (case.shim_cpu_s, case.copier_cpu_s)]
    per_gb = [spent.median / (case.total_bytes / 1e9) for spent in cpu_s]
    print(f"\n{what}, {rounds} pairs")
    print(f"  forkshim    {ours} MB/s, CPU {per_gb[0]:.3g} s/GB")
    print(f"  copier      {theirs} MB/s, CPU {per_gb[1]:.3g} s/GB")
    print(f"  ratio       {ratio(ours, theirs):.2f}x, CPU {ratio(*cpu_s):.3f}x (wanted: at most 1)")
    return {
        "forkshim_mb_s": ours.figures,
        "copier_mb_s": theirs.figures,
        "ratio": ratio(ours, theirs),
        "shim_cpu_s_per_gb": per_gb[0],
        "copier_cpu_s_per_gb": per_gb[1],
        "cpu_ratio": ratio(*cpu_s),
    }


def _delays(what: str, period_s: float) -> dict[str, Any]:
    figures = {}
    print(f"\ndelay of a write of 80 bytes, {what}: median, 99 %, most")
    for who, work in (("forkshim", _splice), ("copier", _read_and_write)):
        cuts = statistics.quantiles(found := delays_us(work, period_s, _DELAYS), n=100)
        figures[who] = {"median": cuts[49], "99 %": cuts[98], "most": max(found)}
        print(f"  {who:<9}   {cuts[49]:.0f} us, {cuts[98]:.0f} us, {max(found):.0f} us")
    return figures


@dataclass
class Small:
    """Writes of one size to a stdout that is a pipe; each method is one measurement, in MB/s."""

    rootfs: Path
    write_bytes: int
    shim_cpu_s: list[float] = field(default_factory=list)
    copier_cpu_s: list[float] = field(default_factory=list)

    @property
    def total_bytes(self) -> int:
        """What each measurement moves."""
        return self.write_bytes * WRITES[self.write_bytes]

    def forkshim(self) -> float:
        """Client's fifo behind forkshim-shim."""
        with tempfile.TemporaryDirectory() as name, self._engine(Path(name)) as engine:
            (stdout,) = engine.attach("stdout")
            os.set_blocking(stdout, True)
            fcntl.fcntl(stdout, fcntl.F_SETPIPE_SZ, bulk.PIPE_BYTES)
            engine.run()
            stdin = engine.open("stdin", os.O_WRONLY)
            cpu_s = partial(bulk.cpu_s, engine.shim_pid)
            rate = self._measure(stdin, stdout, cpu_s, self.shim_cpu_s)
            os.write(stdin, b"end\n")
            engine.wait_end()
            return rate

    def copier(self) -> float:
        """The container's pipe behind read(2) and write(2)."""
        with (
            tempfile.TemporaryDirectory() as name,
            bulk.bare_container(self._bundle(Path(name))) as (stdin, source),
            _behind(_read_and_write, source) as (stdout, child),
        ):
            cpu_s = partial(bulk.spent_s, child.pid)
            rate = self._measure(stdin, stdout, cpu_s, self.copier_cpu_s)
            os.write(stdin, b"end\n")
            waiting.read_to_end(stdout)
            return rate

    def _bundle(self, directory: Path) -> Path:
        count = WRITES[self.write_bytes]
        script = f"read go; dd if=/dev/zero bs={self.write_bytes} count={count} 2>/dev/null"
        document = bundles.config(self.rootfs, bundles.shell(f"{script}; read end"))
        return bundles.make_bundle(directory / "bundle", document)

    def _engine(self, directory: Path) -> Engine:
        return Engine(
            directory / "state",
            bundles.fresh_id("small"),
            self._bundle(directory),
            containerdStdin="stdin",
            containerdStderr="",
        )

    def _measure(
        self, stdin: int, stdout: int, cpu_s: Callable[[], float], spent: list[float]
    ) -> float:
        before_s = cpu_s()
        rate = bulk.drain(stdin, stdout, self.total_bytes)
        spent.append(cpu_s() - before_s)
        return rate


@dataclass
class SmallLog:
    """Lines of 80 bytes, one a write, into a file in memory; each method is one, in MB/s."""

    rootfs: Path
    kind: str
    shim_cpu_s: list[float] = field(default_factory=list)
    copier_cpu_s: list[float] = field(default_factory=list)

    _lines = 1_000_000
    total_bytes = 80 * _lines

    def forkshim(self) -> float:
        """forkshim-shim with a log file."""
        with logs.memory_directory() as directory:
            log = directory / "log"
            with Engine(
                directory / "state",
                bundles.fresh_id("small"),
                self._bundle(directory),
                containerdStdout=f"{self.kind}:{log}",
                containerdStderr="",
            ) as engine:
                engine.run()
                cpu_s = partial(bulk.cpu_s, engine.shim_pid)
                heads = self._lines * logs.LEAST_HEAD_BYTES if self.kind == "cri" else 0
                rate = self._measure(directory, heads, cpu_s, self.shim_cpu_s)
                logs.let_go(directory)
                engine.wait_end()
                return rate

    def copier(self) -> float:
        """read(2) and write(2) into a file, without records."""
        with (
            logs.memory_directory() as directory,
            bulk.bare_container(self._bundle(directory)) as (_stdin, source),
            open(directory / "log", "ab") as log,
            finishing(partial(_read_and_write, source, log.fileno())) as child,
        ):
            cpu_s = partial(bulk.spent_s, child.pid)
            rate = self._measure(directory, 0, cpu_s, self.copier_cpu_s)
            logs.let_go(directory)
            return rate

    def _bundle(self, directory: Path) -> Path:
        script = "read go < /tmp/c/go; dd if=/tmp/c/block bs=80 2>/dev/null; read end < /tmp/c/go"
        block = (b"x" * 79 + b"\n") * self._lines
        return logs.make_site(directory, self.rootfs, block, script)

    def _measure(
        self, directory: Path, head_bytes: int, cpu_s: Callable[[], float], spent: list[float]
    ) -> float:
        before_s = cpu_s()
        rate = logs.measure(directory, self.total_bytes, head_bytes)
        spent.append(cpu_s() - before_s)
        return rate


def delays_us(behind: Callable[[int, int], None], period_s: float, writes: int) -> list[float]:
    """Return how long each of so many writes of 80 bytes was on its way through a worker."""
    source_rfd, source_wfd = os.pipe()
    fcntl.fcntl(source_wfd, fcntl.F_SETPIPE_SZ, bulk.PIPE_BYTES)
    delays: list[float] = []
    try:
        with (
            _behind(behind, source_rfd) as (stdout, _child),
            finishing(partial(_write_stamps, source_wfd, period_s, writes)),
        ):
            os.close(source_wfd)
            source_wfd = -1
            while len(delays) < writes:
                content = os.read(stdout, 80 * 4096)
                now_ns = time.monotonic_ns()
                stamps = (content[start : start + 8] for start in range(0, len(content), 80))
                delays += [(now_ns - _STAMP.unpack(stamp)[0]) / 1e3 for stamp in stamps]
    finally:
        for fd in {source_rfd, source_wfd} - {-1}:
            os.close(fd)
    return delays


def _write_stamps(fd: int, period_s: float, writes: int) -> None:
    due_s = time.monotonic()
    for _each in range(writes):
        due_s += period_s
        while (left_s := due_s - time.monotonic()) > 0:
            if left_s > _SPIN_S:
                time.sleep(left_s - _SPIN_S)
        os.write(fd, _STAMP.pack(time.monotonic_ns()) + bytes(72))


@contextlib.contextmanager
def _behind(work: Callable[[int, int], None], source_fd: int) -> Iterator[tuple[int, Child]]:
    """Run `work` from `source_fd` into a pipe of ours; yields the pipe's other end."""
    rfd, wfd = os.pipe()
    fcntl.fcntl(wfd, fcntl.F_SETPIPE_SZ, bulk.PIPE_BYTES)
    try:
        with forked(partial(work, source_fd, wfd)) as child:
            os.close(wfd)
            wfd = -1
            yield rfd, child
    finally:
        for fd in {rfd, wfd} - {-1}:
            os.close(fd)


def _read_and_write(source_fd: int, sink_fd: int) -> None:
    while rest := os.read(source_fd, _COPIER_BYTES):
        while rest:
            rest = rest[os.write(sink_fd, rest) :]


def _splice(source_fd: int, sink_fd: int) -> None:
    """Be a worker of forkshim."""
    report_wfd = os.memfd_create("report")
    null_fd = os.open(os.devnull, os.O_RDWR)
    desk = Desk("stdout", "forkshim: bench [stdout]", Ledger(), 0, report_wfd, null_fd)
    output.work(desk, Route(source_fd, sink_fd, capacity_bytes=bulk.PIPE_BYTES))
