"""The runtime-v2 shim beside containerd-shim-runc-v2, each with a containerd that `ctr` asks.

`v2-run`: as `run`. `v2-exec`: from exec of `ctr task exec` to its end, in a container that stays.
`v2-idle`: containers that do nothing, each with a shim of its own or all in one group, as a pod's;
a silent one has said no word, a chatty one a word on each output a moment before. The log is a
file, for which our shim has one worker. `v2-bulk`: `ctr run` copies the container's stdout from its
fifo to a pipe; CPU is that of the shim, workers included, without that of `ctr`.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench import peers, processes, run
from tests.bench.case import Case, Sample, Setting, Variant, at_least, at_most
from tests.bench.crowd import Containerds
from tests.bench.sites import WAIT, has_content, let_go, make_site, running, wait_waiting
from tests.bench.streams import BLOCK_BYTES, OUTPUT, PIPE_BYTES
from tests.engines.containerd import OURS, STOCK
from tests.harness import bundles, waiting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_STOCK = "containerd-shim-runc-v2"
_SETTLED_S = 1.0
_NULL = subprocess.DEVNULL


@dataclass(frozen=True)
class _Side:
    """One of the two shims."""

    who: str
    runtime: str
    first_on_path: Path | None

    @property
    def daemon(self) -> run.Ctr:
        """A containerd for it."""
        return run.Ctr(self.runtime, self.first_on_path)

    def variant(
        self,
        measure: Callable[[], Sample],
        around: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
    ) -> Variant:
        """Return it with what is measured."""
        is_ours = self.runtime == OURS
        return Variant(self.who, measure, peers.need(peers.CTR), is_ours, around)


def cases(setting: Setting) -> Iterator[Case]:
    """All of them."""
    sides = (_Side("forkshim", OURS, setting.programs.bin), _Side(_STOCK, STOCK, None))
    yield Case(
        "v2-run",
        "`ctr run --rm`, exec to the first word and to the end",
        [_runs(setting, side) for side in sides],
        [at_most(1.1, "ms to the end", beside=_STOCK)],
        times=5,
    )
    yield Case(
        "v2-exec",
        "`ctr task exec`, exec to the end",
        [_execs(setting, side) for side in sides],
        [at_most(0.9, "ms", beside=_STOCK)],
        times=5,
    )
    yield from _idle_cases(setting, sides)
    yield Case(
        "v2-bulk",
        f"{setting.scale.bulk_bytes >> 20:,} MiB of stdout through `ctr run`",
        [_bulk(setting, side) for side in sides],
        [
            at_least(2, "MB/s", beside=_STOCK),
            at_most(0.25, "CPU s/GB", beside=_STOCK),
        ],
    )


# -- run


def _runs(setting: Setting, side: _Side) -> Variant:
    ctr = side.daemon
    return side.variant(partial(run.measure, setting.rootfs, ctr), ctr.daemon)


# -- exec


class _Execs:
    """A container that stays, and processes that are executed in it."""

    def __init__(self, setting: Setting, side: _Side) -> None:
        self._rootfs = setting.rootfs
        self._ctr = side.daemon
        self._id = bundles.fresh_id("v2")
        self._count = 0
        self._daemon: peers.Containerd | None = None

    @contextlib.contextmanager
    def around(self) -> Iterator[None]:
        with self._ctr.daemon() as self._daemon, tempfile.TemporaryDirectory() as name:
            bundle = make_site(Path(name), self._rootfs, b"", WAIT)
            with running(self._ctr(bundle, self._id), stdin=_NULL, stdout=_NULL):
                wait_waiting(Path(name))
                try:
                    yield
                finally:
                    let_go(Path(name))

    def measure(self) -> Sample:
        assert self._daemon is not None
        self._count += 1
        words = ("task", "exec", "--exec-id", f"e{self._count}", self._id, "true")
        began = time.perf_counter()
        subprocess.run(self._daemon.ctr(*words), check=True, stdin=_NULL)
        return {"ms": (time.perf_counter() - began) * 1e3}


def _execs(setting: Setting, side: _Side) -> Variant:
    execs = _Execs(setting, side)
    return side.variant(execs.measure, execs.around)


# -- idle


def _idle_cases(setting: Setting, sides: tuple[_Side, ...]) -> Iterator[Case]:
    count = setting.scale.pod
    kinds = (
        ("v2-idle", "a shim for each, silent", "", ":", at_most(7.5, "PSS, MB")),
        ("v2-idle-pod", "one shim, silent", "pod", ":", at_most(0.6, "PSS, MB")),
        (
            "v2-idle-chatty",
            "one shim, chatty",
            "pod",
            "echo ready; echo ready >&2",
            at_most(3, "PSS, MB"),
        ),
    )
    for name, what, group, says, wanted in kinds:
        yield Case(
            name,
            f"{count} idle containers, {what}, for each",
            [side.variant(partial(_idle, setting, side, group, says)) for side in sides],
            [wanted, at_most(0, "wake-ups")],
            is_once=True,
        )


def _idle(setting: Setting, side: _Side, group: str, says: str) -> Sample:
    scale = setting.scale
    with Containerds(
        setting.rootfs, side.runtime, side.first_on_path, group=group, says=says
    ) as crowd:
        for _ in range(scale.pod):
            crowd.add()
        time.sleep(min(_SETTLED_S, scale.watched_s))
        pids = crowd.pids()
        wake_ups, cpu_s = processes.wake_ups(pids), processes.cpu_s(pids)
        time.sleep(scale.watched_s)
        sample = {"wake-ups": (processes.wake_ups(pids) - wake_ups) / scale.pod}
        sample["CPU ms/s"] = (processes.cpu_s(pids) - cpu_s) * 1e3 / scale.watched_s / scale.pod
        for what, much in processes.memory_mb(pids).items():
            sample[f"{what}, MB"] = much / scale.pod
    return sample


# -- bulk


def _bulk(setting: Setting, side: _Side) -> Variant:
    ctr = side.daemon
    return side.variant(partial(_move, setting, ctr), ctr.daemon)


def _move(setting: Setting, ctr: run.Ctr) -> Sample:
    total = setting.scale.bulk_bytes
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        script = OUTPUT.format(size=BLOCK_BYTES, writes=total // BLOCK_BYTES)
        bundle = make_site(directory, setting.rootfs, b"", script)
        pid_file = directory / "pid"
        words = ctr(bundle, bundles.fresh_id("v2"), "--pid-file", str(pid_file))
        with running(words, stdin=_NULL, stdout=subprocess.PIPE) as client:
            assert client.stdout is not None
            waiting.wait_path(pid_file, has_content)
            init = int(pid_file.read_text())
            let_go(directory)
            cpu_s = processes.cpu_s(processes.shim_pids(init))
            began = time.perf_counter()
            _drain(client.stdout.fileno(), total)
            took_s = time.perf_counter() - began
            # The workers that began meanwhile stay until 30 s of silence.
            cpu_s = processes.cpu_s(processes.shim_pids(init)) - cpu_s
            let_go(directory)
    return {"MB/s": total / 1e6 / took_s, "CPU s/GB": cpu_s / (total / 1e9)}


def _drain(fd: int, total: int) -> None:
    buffer = bytearray(PIPE_BYTES)
    while total > 0:
        total -= os.readv(fd, [buffer])
