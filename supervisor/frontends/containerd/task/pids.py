"""The processes of a container, from its cgroup."""

from __future__ import annotations

import os

from supervisor.systemd import delegation

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping


def pids_in(membership: Mapping[str, str]) -> list[int]:
    """Return the processes of a container's cgroup and of those below it."""
    names = [""] if delegation.is_unified() else ["pids", "memory", "devices", "freezer"]
    for name in names:
        path = membership.get(name, "/")
        if path != "/":
            return _pids_below(os.path.normpath(f"{delegation.ROOT}/{name}/{path}"))
    return []


def _pids_below(directory: str) -> list[int]:
    found: set[int] = set()
    for place, _directories, _files in os.walk(directory):
        try:
            with open(os.path.join(place, "cgroup.procs"), "rb") as file:
                found.update(map(int, file.read().split()))
        except OSError:  # the cgroup went meanwhile
            continue
    return sorted(found)
