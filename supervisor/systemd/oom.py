"""Detects kills of the kernel's OOM killer in a container.

A process that the OOM killer has killed looks like any process that SIGKILL has killed, and its
parent shell exits with 137. Only a counter of the cgroup tells them apart: `oom_kill` in
memory.events (cgroup v2) or in memory.oom_control (v1, Linux 4.13).

Source: Documentation/admin-guide/cgroup-v2.rst, cgroup-v1/memory.rst.
"""

from __future__ import annotations

import os

from supervisor.systemd import delegation

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any


class OomWatch:
    """Counts the kills since its creation: an earlier container may have used the cgroup."""

    def __init__(self, pid: int, packed: Mapping[str, Any] | None = None) -> None:
        """Find the counter of `pid`'s cgroup. `kills` stays 0 if the process was reaped already.

        `packed`: the state of an earlier supervisor, from `snapshot`.
        """
        if packed is not None:
            self._path = os.fsdecode(str(packed["path"]).encode("latin-1"))
            self._before = int(packed["before"])
            return
        try:
            self._path = _counter_path(delegation.membership(pid))
        except OSError:  # EMFILE: the container runs without this count
            self._path = ""
        self._before = _read(self._path)

    def snapshot(self) -> dict[str, Any]:
        """Return the state for another supervisor."""
        # A cgroup's name is bytes, and the handover is UTF-8.
        return {"path": os.fsencode(self._path).decode("latin-1"), "before": self._before}

    def kills(self) -> int:
        """Return how many processes of the cgroup the OOM killer has killed; 0 without a counter.

        Called before the runtime removes the cgroup.
        """
        return max(0, _read(self._path) - self._before)


def _counter_path(membership: dict[str, str]) -> str:
    if "memory" in membership:
        return f"{delegation.ROOT}/memory{membership['memory']}/memory.oom_control"
    return f"{delegation.ROOT}{membership.get('', '/')}/memory.events"


def _read(path: str) -> int:
    try:
        with open(path, "rb") as file:
            counts = dict(line.split() for line in file)
        return int(counts.get(b"oom_kill", 0))
    except (OSError, ValueError):  # no memory controller, or the cgroup is not visible here
        return 0
