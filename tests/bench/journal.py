"""Lines into a real journal: `journal` and `journal-stream` beside conmon's journald driver.

A bed is booted, where a real journald is, and this module is run in it. The clock runs from the
word "go" to the end of the logging process, which has sent everything by then; CPU is all that
process and its children have used from their start to their end, the runtime's included.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tests.beds.nspawn import Bed
from tests.bench import peers
from tests.bench.case import Case, Figures, Sample, Setting, Variant, at_least
from tests.bench.cri import run_command
from tests.bench.installed import Programs
from tests.bench.pairs import Spread
from tests.bench.sites import MEMORY, WAIT, let_go, make_site, running
from tests.harness import bundles

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
_SCRIPT = f"{WAIT}; cat /tmp/c/block"


def cases(setting: Setting) -> Iterator[Case]:
    """Each sink, in a bed of its own."""
    lines = setting.scale.journal_lines
    for sink in ("journal", "journal-stream"):
        yield _InBed(
            sink,
            f"{lines:,} lines of 100 bytes to `{sink}`",
            _variants(setting.rootfs, setting.programs, sink, lines),
            [at_least(2, "lines/s", beside="conmon")],
            lines=lines,
            programs=setting.programs.bin,
        )


@dataclass(frozen=True)
class _InBed(Case):
    lines: int = 0
    programs: Path = Path()

    def figures(self, rounds: int) -> Figures:
        """Boot a bed and measure there."""
        words = f"-m tests.bench.journal {self.programs} {self.name} {self.lines} {rounds}"
        with Bed(bind_ro=[ROOT, Path(sys.prefix), self.programs.parent]) as bed:
            command = f"cd {ROOT} && exec {sys.executable} {words}"
            done = bed.run(
                "sh", "-c", command, properties=["Delegate=yes"], timeout_s=3600.0, check=True
            )
        found = json.loads(done.stdout)
        return {
            who: {quantity: Spread(figures) for quantity, figures in quantities.items()}
            for who, quantities in found.items()
        }


def _variants(rootfs: Path, programs: Programs, sink: str, lines: int) -> list[Variant]:
    return [
        Variant("forkshim", partial(_forkshim, rootfs, programs, sink, lines), is_ours=True),
        Variant("conmon", partial(_conmon, rootfs, lines), peers.need(peers.CONMON)),
    ]


def _forkshim(rootfs: Path, programs: Programs, sink: str, lines: int) -> Sample:
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        directory = Path(name)
        bundle = make_site(directory, rootfs, _block(lines), _SCRIPT)
        before_s = _cpu_of_children_s()
        with running(run_command(programs, directory, bundle, sink)) as supervisor:
            took_s = _until_end(directory, supervisor)
        return _sample(lines, took_s, _cpu_of_children_s() - before_s)


def _conmon(rootfs: Path, lines: int) -> Sample:
    """As Podman runs it."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        directory = Path(name)
        bundle = make_site(directory, rootfs, _block(lines), _SCRIPT)
        before_s = _cpu_of_children_s()
        with peers.conmon(directory, bundle, "journald:") as monitor:
            took_s = _until_end(directory, monitor)
            cpu_s = _cpu_of_children_s() - before_s
        return _sample(lines, took_s, cpu_s)


def _until_end(directory: Path, process: subprocess.Popen[bytes]) -> float:
    let_go(directory)
    began = time.perf_counter()
    process.wait()
    return time.perf_counter() - began


def _sample(lines: int, took_s: float, cpu_s: float) -> Sample:
    return {"lines/s": lines / took_s, "CPU s/M": cpu_s / (lines / 1e6)}


def _block(lines: int) -> bytes:
    return (b"x" * 99 + b"\n") * lines


def _cpu_of_children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Measure here; print the figures as JSON."""
    programs, sink, lines, rounds = sys.argv[1:]
    with tempfile.TemporaryDirectory(dir=MEMORY) as directory:
        variants = _variants(
            bundles.make_rootfs(Path(directory)), Programs(Path(programs), ""), sink, int(lines)
        )
        found = Case(sink, "", variants).figures(int(rounds))
    print(json.dumps({who: {quantity: list(spread.figures) for quantity, spread in each.items()}
                      for who, each in found.items()}))  # fmt: skip


if __name__ == "__main__":
    main()
