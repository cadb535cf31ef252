"""Delegated cgroups: divides the unit's cgroup between the supervisor and the container.

A unit with Delegate=yes may divide its cgroup. The supervisor moves to UNIT/supervisor. Then the
runtime can create UNIT/payload: cgroup v2 allows no process in a cgroup that delegates controllers
("no internal processes", cgroups(7)). systemd removes both with the unit. On cgroup v1 and in
hybrid mode the runtime chooses the cgroup, as without systemd.

Source: https://systemd.io/CGROUP_DELEGATION; systemd.exec(5), SYSTEMD_EXEC_PID (v248).
"""

from __future__ import annotations

import os

from supervisor.linux.errors import ShimError, reason
from workers.common import cgroup_names

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = "/sys/fs/cgroup"
_SUPERVISOR = "/supervisor"
_PAYLOAD = "/payload"


def enter_unit(environment: Mapping[str, str]) -> str:
    """Move this process to UNIT/supervisor. Later children start there.

    Returns:
        UNIT/payload, absolute in the hierarchy: the cgroup that the runtime creates for the
        container. "" if this process is not a unit's main process, the unit is not delegated, or
        the machine does not use cgroup v2.

    Raises:
        ShimError: A file operation failed; this process has not moved.
    """
    own, unit = _own_and_unit(environment)
    if not unit:
        return ""
    if own == unit:
        _move_to(ROOT + unit + _SUPERVISOR)
    return unit + _PAYLOAD


def scope_beside_unit(environment: Mapping[str, str], container_id: str) -> str:
    """Return a scope for a container that another supervisor may adopt.

    Without DelegateSubgroup= (v254) systemd starts the next supervisor in the unit's own cgroup.
    The kernel allows no process there once the unit was divided and delegates controllers. So the
    unit stays undivided, and systemd creates a scope for the container.

    Returns:
        SLICE:PREFIX:NAME, the format of `linux.cgroupsPath` with --systemd-cgroup. "" if this
        process is not in the cgroup of a delegated unit, or has no controller to delegate.
    """
    own, unit = _own_and_unit(environment)
    if not unit or own != unit:
        return ""
    with open(f"{ROOT}{unit}/cgroup.controllers") as file:
        if not file.read().strip():
            return ""  # no controller to delegate
    slices = [part for part in unit.split("/") if part.endswith(".slice")]
    name = container_id.replace("+", r"\x2b")  # systemd.unit(5), of escapes in names
    return f"{slices[-1] if slices else 'system.slice'}:forkshim:{name}"


def cgroup_outside_unit(environment: Mapping[str, str], pid: int) -> str:
    """Return the cgroup of the process `pid` if it is outside this process's unit.

    "" if it is inside, or if this process is not a unit's main process. On cgroup v1 the hierarchy
    `name=systemd` decides.
    """
    if environment.get("SYSTEMD_EXEC_PID") != str(os.getpid()):
        return ""
    own, other = membership("self"), membership(pid)
    for hierarchy in ("", "name=systemd"):
        unit = own.get(hierarchy, "").removesuffix(_SUPERVISOR)
        place = other.get(hierarchy, "")
        if unit.endswith(".service"):
            # On cgroup v1 a dead process is in "/".
            is_inside = place in ("", "/", unit) or place.startswith(f"{unit}/")
            return "" if is_inside else place
    return ""


def is_delegated(environment: Mapping[str, str]) -> bool:
    """Return whether this process is the main process of a unit with a delegated cgroup."""
    return bool(_own_and_unit(environment)[1])


def _own_and_unit(environment: Mapping[str, str]) -> tuple[str, str]:
    """Return the cgroups of this process and of its unit; "" without a delegated unit."""
    if not is_unified() or environment.get("SYSTEMD_EXEC_PID") != str(os.getpid()):
        return "", ""
    own = membership("self").get("", "")
    # DelegateSubgroup=supervisor (v254) starts this process there.
    unit = own.removesuffix(_SUPERVISOR)
    return (own, unit) if _is_delegated(ROOT + unit) else ("", "")


def is_unified() -> bool:
    """Return whether the runtimes use only cgroup v2.

    With a v1 hierarchy ROOT is a tmpfs with a directory for each hierarchy. /proc/PID/cgroup would
    mislead: in a container on a hybrid host it names v1 hierarchies that are not mounted.
    """
    return os.path.exists(f"{ROOT}/cgroup.controllers")


def membership(pid: int | str) -> dict[str, str]:
    """Return a process's cgroups by controller; "" is cgroup v2. Empty if it was reaped."""
    found = cgroup_names.membership(pid)
    return {os.fsdecode(name): os.fsdecode(path) for name, path in found.items()}


def _is_delegated(directory: str) -> bool:
    """Return whether systemd has marked the cgroup as delegated, by an extended attribute.

    Only the initial user namespace's root can read `trusted.delegate`, xattr(7).
    """
    for name in ("user.delegate", "trusted.delegate"):
        try:
            if os.getxattr(directory, name) == b"1":
                return True
        except OSError:  # ENODATA: not marked; EPERM, EOPNOTSUPP: not readable here
            continue
    return False


def _move_to(directory: str) -> None:
    try:
        os.makedirs(directory, exist_ok=True)  # an earlier start of the unit may have created it
        with open(f"{directory}/cgroup.procs", "wb", buffering=0) as file:
            file.write(b"0")  # the writer itself
    except OSError as error:
        raise ShimError(f"move to cgroup {directory}: {reason(error)}") from error
