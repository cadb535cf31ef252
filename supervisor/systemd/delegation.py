"""Our place in a unit's control group: the supervisor in one part of it, the container in another.

systemd gives a unit with Delegate=yes a cgroup of its own to divide. Once the supervisor has left
it for UNIT/supervisor, the runtime may make UNIT/payload: cgroup v2 allows no processes in a cgroup
that hands controllers down ("no internal processes", cgroups(7)). systemd removes both with the
unit. On cgroup v1 and in hybrid mode nothing is done: the runtime chooses, as without systemd.

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
    """Move this process, and so its later children, to UNIT/supervisor.

    Returns:
        UNIT/payload, absolute in the hierarchy: the container's cgroup, made by the runtime; ""
        where there is nothing to divide: not a unit's main process, not delegated, not cgroup v2.

    Raises:
        ShimError: The kernel refused; this process is where it was.
    """
    own, unit = _own_and_unit(environment)
    if not unit:
        return ""
    if own == unit:
        _move_to(ROOT + unit + _SUPERVISOR)
    return unit + _PAYLOAD


def scope_beside_unit(environment: Mapping[str, str], container_id: str) -> str:
    """Return where the container of a supervisor belongs that may have a successor; "" in the unit.

    systemd starts the successor in the unit's own cgroup, if there is no DelegateSubgroup= (v254),
    and the kernel allows no process there once the unit was divided and hands controllers
    down. So the unit stays whole, and systemd makes a scope for the container.

    Returns:
        SLICE:PREFIX:NAME, as the runtimes read `linux.cgroupsPath` with --systemd-cgroup.
    """
    own, unit = _own_and_unit(environment)
    if not unit or own != unit:
        return ""
    with open(f"{ROOT}{unit}/cgroup.controllers") as file:
        if not file.read().strip():
            return ""  # nothing to hand down
    slices = [part for part in unit.split("/") if part.endswith(".slice")]
    name = container_id.replace("+", r"\x2b")  # systemd.unit(5), of escapes in names
    return f"{slices[-1] if slices else 'system.slice'}:forkshim:{name}"


def outside_of_unit(environment: Mapping[str, str], pid: int) -> str:
    """Return the cgroup of a process that is outside of the unit whose main process we are.

    "" if it is inside, or we are no unit's main process. On cgroup v1 systemd's hierarchy tells.
    """
    if environment.get("SYSTEMD_EXEC_PID") != str(os.getpid()):
        return ""
    ours, theirs = membership("self"), membership(pid)
    for hierarchy in ("", "name=systemd"):
        unit = ours.get(hierarchy, "").removesuffix(_SUPERVISOR)
        place = theirs.get(hierarchy, "")
        if unit.endswith(".service"):
            # "/" is where cgroup v1 has the dead.
            is_inside = place in ("", "/", unit) or place.startswith(f"{unit}/")
            return "" if is_inside else place
    return ""


def is_delegated(environment: Mapping[str, str]) -> bool:
    """Say whether we are the main process of a unit whose cgroup is ours to divide."""
    return bool(_own_and_unit(environment)[1])


def _own_and_unit(environment: Mapping[str, str]) -> tuple[str, str]:
    """Return our cgroup and that of our unit, "" if there is none to be divided."""
    if not is_unified() or environment.get("SYSTEMD_EXEC_PID") != str(os.getpid()):
        return "", ""
    own = membership("self").get("", "")
    # DelegateSubgroup=supervisor (v254) has put us there already.
    unit = own.removesuffix(_SUPERVISOR)
    return (own, unit) if _is_delegated(ROOT + unit) else ("", "")


def is_unified() -> bool:
    """Say whether the runtimes use cgroup v2 alone.

    Where v1 has a part, ROOT is a tmpfs with a directory for each hierarchy. /proc/PID/cgroup does
    not tell: in a container on a hybrid host it names v1 hierarchies that are mounted nowhere.
    """
    return os.path.exists(f"{ROOT}/cgroup.controllers")


def membership(pid: int | str) -> dict[str, str]:
    """Return a process's cgroups by controller; "" is cgroup v2. Empty if it is gone."""
    found = cgroup_names.membership(pid)
    return {os.fsdecode(name): os.fsdecode(path) for name, path in found.items()}


def _is_delegated(directory: str) -> bool:
    """Say whether systemd has marked it; only root of the machine may read the `trusted` mark."""
    for name in ("user.delegate", "trusted.delegate"):
        try:
            if os.getxattr(directory, name) == b"1":
                return True
        except OSError:  # ENODATA: not marked; EPERM, EOPNOTSUPP: marks of this kind are not for us
            continue
    return False


def _move_to(directory: str) -> None:
    try:
        os.makedirs(directory, exist_ok=True)  # an earlier start of the unit may have left it
        with open(f"{directory}/cgroup.procs", "wb", buffering=0) as file:
            file.write(b"0")  # the writer itself
    except OSError as error:
        raise ShimError(f"move to cgroup {directory}: {reason(error)}") from error
