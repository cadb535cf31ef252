"""The processes of a container, from its cgroup."""

from __future__ import annotations

import os

from supervisor.systemd import delegation
from supervisor.wire import messages
from supervisor.wire.protobuf import pack_any

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any


def _pids_in(membership: Mapping[str, str]) -> list[int]:
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


def process_infos(
    membership: Mapping[str, str], exec_ids: Mapping[int, str]
) -> list[dict[str, Any]]:
    """Return the ProcessInfos of a container; those of exec'd processes have their ids."""
    found: list[dict[str, Any]] = []
    for pid in _pids_in(membership):
        details = {"exec_id": exec_ids[pid]} if pid in exec_ids else None
        info = pack_any(messages.ProcessDetails, details) if details else None
        found.append({"pid": pid, "info": info})
    return found
