"""What containers cost that do nothing: memory and wake-ups, beside conmon."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench import logs
from tests.harness import waiting

if TYPE_CHECKING:
    from collections.abc import Iterator

_SCRIPT = "echo ready; read go < /tmp/c/go"
_WATCHED_S = 3.0


@dataclass(frozen=True)
class Cost:
    """Per container.

    Attributes:
        pss_mb: Of the supervisor and its workers; what several share is divided among them.
        uss_mb: What nobody shares.
        wake_ups: In three seconds: voluntary context switches.
    """

    pss_mb: float
    uss_mb: float
    wake_ups: float


def forkshim(rootfs: Path, count: int) -> Cost:
    """`forkshim run`, with both outputs in pipes."""
    with contextlib.ExitStack() as running:
        pids = [running.enter_context(_forkshim(rootfs)) for _ in range(count)]
        workers = [child for pid in pids for child in waiting.children_of(pid)
                   if waiting.title_of(child).endswith("]")]  # fmt: skip
        return _cost([*pids, *workers], count)


def conmon(rootfs: Path, count: int) -> Cost:
    """Conmon with a k8s-file, as Podman runs it."""
    with contextlib.ExitStack() as running:
        pids = [running.enter_context(_conmon(rootfs)) for _ in range(count)]
        return _cost(pids, count)


@contextlib.contextmanager
def _forkshim(rootfs: Path) -> Iterator[int]:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        bundle = logs.make_site(directory, rootfs, b"", _SCRIPT)
        with subprocess.Popen(
            logs.forkshim_command(directory, bundle, "passthrough"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as supervisor:
            assert supervisor.stdout is not None
            supervisor.stdout.readline()
            yield supervisor.pid
            logs.let_go(directory)


@contextlib.contextmanager
def _conmon(rootfs: Path) -> Iterator[int]:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        bundle = logs.make_site(directory, rootfs, b"", _SCRIPT)
        with logs.conmon(directory, bundle, f"k8s-file:{directory / 'log'}") as monitor:
            yield monitor.pid
            logs.let_go(directory)


def _cost(pids: list[int], count: int) -> Cost:
    before = sum(map(_wake_ups, pids))
    time.sleep(_WATCHED_S)
    woken = sum(map(_wake_ups, pids)) - before
    pss_kb, uss_kb = (sum(figures) for figures in zip(*map(_memory_kb, pids), strict=True))
    return Cost(pss_kb / 1024 / count, uss_kb / 1024 / count, woken / count)


def _memory_kb(pid: int) -> tuple[int, int]:
    """Return PSS and USS (proc(5), smaps_rollup)."""
    fields = _fields(Path(f"/proc/{pid}/smaps_rollup"))
    return fields["Pss"], fields["Private_Clean"] + fields["Private_Dirty"]


def _wake_ups(pid: int) -> int:
    return _fields(Path(f"/proc/{pid}/status"))["voluntary_ctxt_switches"]


def _fields(path: Path) -> dict[str, int]:
    pairs = (line.partition(":")[::2] for line in path.read_text().splitlines())
    return {name: int(words.split()[0]) for name, words in pairs if words.split()[:1] and
            words.split()[0].isdecimal()}  # fmt: skip
