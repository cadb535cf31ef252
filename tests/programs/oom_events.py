"""The OOM killer works in a cgroup of this program's own, and `OomEvents` tells of it.

    oom_events.py PATH NAME

PATH is where the package is, NAME a name for the cgroup. Prints how often the kernel has killed a
process, and how often it was told; then removes the cgroup.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.append(sys.argv[1])

from supervisor.linux.event_loop import Loop
from supervisor.systemd import delegation
from supervisor.systemd.oom_events import OomEvents

TIMES = 2
NAME = sys.argv[2]
LIMITS = {
    "memory.limit_in_bytes": 16 << 20,
    "memory.memsw.limit_in_bytes": 16 << 20,
    "memory.max": 16 << 20,
    "memory.swap.max": 0,
}


def grow(directory: Path) -> None:
    (directory / "cgroup.procs").write_text("0")
    _taken = [b"x" * (1 << 20) for _ in range(1000)]


def main() -> None:
    is_unified = delegation.is_unified()
    directory = Path(delegation.ROOT, "" if is_unified else "memory", NAME)
    directory.mkdir()
    for name, limit in LIMITS.items():
        if (directory / name).exists():
            (directory / name).write_text(str(limit))
    loop = Loop()
    told: list[int] = []
    membership = {"" if is_unified else "memory": f"/{NAME}"}
    events = OomEvents(loop, membership, lambda: told.append(1))
    killed = told_of = 0
    for _ in range(TIMES):
        pid = os.fork()
        if pid == 0:
            grow(directory)
            os._exit(0)
        killed += os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -9
        loop.run_until(lambda: bool(told))
        told_of += len(told)
        told.clear()
    directory.rmdir()
    if not is_unified:
        loop.run_until(lambda: not loop.watches)  # the removal is an event
    events.close()
    print(killed, told_of)


main()
