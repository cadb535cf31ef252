"""Which processes a kill by cgroup hits: a cgroup may hold more than the container.

A runtime's `kill --all` signals every process of the container's cgroup. So does its `delete` of a
container without its own pid namespace. In its own pid namespace all processes die with the init,
and a kill by cgroup could only hit processes of others. Without its own pid namespace the container
needs the kill by cgroup. The supervisor allows it unless the cgroup is the root, its own, or above
its own.

Source: runtime-spec, config-linux.md, Namespaces; runc, `signalAllProcesses`; pid_namespaces(7).
"""

from __future__ import annotations

import os

from supervisor.linux import procfs
from supervisor.linux.errors import ShimError
from supervisor.oci import bundle
from supervisor.systemd import delegation
from workers.common.records import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

_LOOKED_UP = ("devices", "freezer", "memory", "pids")
"""Hierarchies of cgroup v1 in which runtimes look up and freeze a container's processes."""


@dataclass(frozen=True, slots=True)
class KillScope:
    """The processes of a container that a kill by cgroup hits.

    Attributes:
        shares_pids: The container has no pid namespace of its own: processes can outlive its init.
        places: Paths of the container's cgroups by controller; "" is cgroup v2. Empty if unknown.
        wanted: `linux.cgroupsPath`, used where `places` is empty.
    """

    shares_pids: bool
    places: Mapping[str, str]
    wanted: str

    def snapshot(self) -> dict[str, Any]:
        """Return the state for `restore`."""
        places = {name: os.fsencode(path).decode("latin-1") for name, path in self.places.items()}
        return {"shares_pids": self.shares_pids, "places": places, "wanted": self.wanted}

    def unsafe_cgroup(self) -> str:
        """Return the cgroup in which a kill would hit other processes; "" if there is none."""
        if not self.shares_pids:
            return ""
        own = delegation.membership("self")
        on_v1 = [] if delegation.is_unified() else [name for name in _LOOKED_UP if name in own]
        for name in on_v1 or [""]:
            place = self.places.get(name)
            if place is None:
                place = os.path.normpath("/" + self.wanted.lstrip("/")) if self.wanted else None
            if place is not None and _is_above(place, own.get(name, "/")):
                return place
        return ""


def of(config_path: str, pid: int) -> KillScope:
    """Return the kill scope of a config.json's container with the init `pid`; 0 if unknown.

    Without a readable config.json there is no kill by cgroup.
    """
    try:
        read = bundle.read_config(config_path)
    except ShimError:
        return KillScope(shares_pids=False, places={}, wanted="")
    shares_pids = shares(read.document)
    return KillScope(shares_pids, _places(pid) if shares_pids else {}, read.cgroups_path)


def restore(packed: Mapping[str, Any]) -> KillScope:
    """Return the kill scope from `KillScope.snapshot`."""
    places = {name: os.fsdecode(path.encode("latin-1")) for name, path in packed["places"].items()}
    return KillScope(packed["shares_pids"], places, packed["wanted"])


def shares(document: Mapping[str, Any]) -> bool:
    """Return whether config.json asks for no pid namespace, or joins one by its path. Pure."""
    linux = document.get("linux")
    found = linux.get("namespaces") if isinstance(linux, dict) else None
    return not any(
        isinstance(each, dict) and each.get("type") == "pid" and not each.get("path")
        for each in (found if isinstance(found, list) else ())
    )


def _places(pid: int) -> dict[str, str]:
    """Return the cgroups of `pid`; empty if it is ending: cgroup v1 then has `/`."""
    try:
        places = delegation.membership(pid) if pid else {}
        return {} if not pid or procfs.is_ending(pid) else places
    except OSError:  # EMFILE
        return {}


def _is_above(place: str, own: str) -> bool:
    """Return whether `place` is the root, `own`, or above `own`."""
    return place == "/" or place == own or own.startswith(place.rstrip("/") + "/")


def not_deleted(runtime: str, danger: str) -> str:
    """Return the log line for a container that the runtime does not delete."""
    return (
        f"{runtime} delete is skipped: the container has no pid namespace of its own and is in "
        f"cgroup {danger}, where {runtime} would kill every process"
    )
