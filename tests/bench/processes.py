"""What processes have used: the processor's time, memory, wake-ups (proc(5))."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tests.harness import waiting

if TYPE_CHECKING:
    from collections.abc import Iterable


def forkshim_pids(supervisor: int) -> list[int]:
    """Return a supervisor and its workers, without the container."""
    children = waiting.children_of(supervisor)
    return [supervisor, *(pid for pid in children if waiting.title_of(pid).endswith("]"))]


def shim_pids(init: int) -> list[int]:
    """Return who supervises a runtime-v2 container: shim, workers, and the fd holder if any."""
    shim = parent_of(init)
    holder = parent_of(shim)
    return [*forkshim_pids(shim), *([holder] if waiting.title_of(holder).endswith("[fds]") else [])]


def parent_of(pid: int) -> int:
    """Return the pid of a process's parent."""
    return fields(Path(f"/proc/{pid}/status"))["PPid"]


def cpu_s(pids: Iterable[int]) -> float:
    """Return the processor's time of all threads, to the nanosecond (schedstat)."""
    tasks = (task for pid in pids for task in Path(f"/proc/{pid}/task").iterdir())
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def memory_mb(pids: Iterable[int]) -> dict[str, float]:
    """Return PSS (a shared page is divided by its processes), USS (private pages), RSS."""
    found = dict.fromkeys(("PSS", "USS", "RSS"), 0.0)
    for pid in pids:
        now = fields(Path(f"/proc/{pid}/smaps_rollup"))
        found["PSS"] += now["Pss"] / 1024
        found["USS"] += (now["Private_Clean"] + now["Private_Dirty"]) / 1024
        found["RSS"] += now["Rss"] / 1024
    return found


def wake_ups(pids: Iterable[int]) -> int:
    """Return how often they have slept and been woken, all threads."""
    tasks = (task for pid in pids for task in Path(f"/proc/{pid}/task").iterdir())
    return sum(fields(task / "status")["voluntary_ctxt_switches"] for task in tasks)


def written_bytes(pid: int) -> int:
    """Return how much a process has written so far, to anything."""
    return fields(Path(f"/proc/{pid}/io"))["wchar"]


def fields(path: Path) -> dict[str, int]:
    """Return the numbers of a file of lines `NAME: NUMBER`."""
    found = {}
    for line in path.read_text().splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if words and words[0].isdecimal():
            found[name] = int(words[0])
    return found
