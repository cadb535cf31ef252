"""Lines into a real journal: `journal` and `journal-stream` beside conmon's journald driver.

`records` boots a bed and runs this module in it, where a real journald is. The clock runs from the
word "go" to the end of the logging process, which has sent everything by then; the processor's
time is the logging process's and its children's, the runtime's included.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.beds.nspawn import Bed
from tests.bench import logs
from tests.bench.pairs import in_turn
from tests.harness import bundles

ROOT = Path(__file__).parents[2]
LINES = 100_000
_SCRIPT = "read go < /tmp/c/go; cat /tmp/c/block"


@dataclass
class Records:
    """Each method is one measurement, in lines per second."""

    rootfs: Path
    cpu_s: dict[str, list[float]] = field(default_factory=dict)

    def native(self) -> float:
        """`forkshim run --log journal`."""
        return self._forkshim("journal")

    def stream(self) -> float:
        """`forkshim run --log journal-stream`."""
        return self._forkshim("journal-stream")

    def conmon(self) -> float:
        """Conmon, as Podman runs it."""
        with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
            directory = Path(name)
            bundle = logs.make_site(directory, self.rootfs, _block(), _SCRIPT)
            with logs.conmon(directory, bundle, "journald:") as monitor:
                return self._measure("conmon", directory, monitor)

    def _forkshim(self, sink: str) -> float:
        with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
            directory = Path(name)
            bundle = logs.make_site(directory, self.rootfs, _block(), _SCRIPT)
            with subprocess.Popen(logs.forkshim_command(directory, bundle, sink)) as supervisor:
                return self._measure(sink, directory, supervisor)

    def _measure(self, who: str, directory: Path, process: subprocess.Popen[bytes]) -> float:
        before_s = _cpu_of_children_s()
        logs.let_go(directory)
        began = time.perf_counter()
        process.wait()
        took_s = time.perf_counter() - began
        self.cpu_s.setdefault(who, []).append(_cpu_of_children_s() - before_s)
        return LINES / took_s


def records(rounds: int) -> dict[str, Any]:
    """Boot a bed, measure there, and return the figures."""
    with Bed(bind_ro=[ROOT, Path(sys.prefix)]) as bed:
        command = f"cd {ROOT} && exec {sys.executable} -m tests.bench.journal {rounds}"
        done = bed.run(
            "sh", "-c", command, properties=["Delegate=yes"], timeout_s=3600.0, check=True
        )
        figures: dict[str, Any] = json.loads(done.stdout)
        return figures


def _block() -> bytes:
    return (b"x" * 99 + b"\n") * LINES


def _cpu_of_children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Measure here; print the figures as JSON."""
    rounds = int(sys.argv[1])
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        case = Records(bundles.make_rootfs(Path(directory)))
        native, conmon = in_turn(case.native, case.conmon, rounds)
        stream, again = in_turn(case.stream, case.conmon, rounds)
    found = {
        "journal": native.figures,
        "conmon": conmon.figures,
        "journal-stream": stream.figures,
        "conmon again": again.figures,
        "cpu_s": case.cpu_s,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
