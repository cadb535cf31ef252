"""Clears what a killed supervisor has left, before its ID is run again."""

from __future__ import annotations

import os

from supervisor.cli import foreground
from supervisor.handover import discover
from supervisor.linux.errors import AlreadySupervisedError
from supervisor.oci import kill_scope
from supervisor.oci.command_line import RuntimeCommand, is_same_bundle, parse_state
from supervisor.oci.invoke import ask_runtime

TYPE_CHECKING = False
if TYPE_CHECKING:
    from supervisor.cli.commands import RunRequest
    from supervisor.state import claim
    from supervisor.state.fd_store import FdStoreError


def clear(claimed: claim.Claim, request: RunRequest, why_not: FdStoreError | None) -> None:
    """Kill and remove what an earlier supervisor of the ID has left.

    `why_not`: why this process cannot adopt the container; None if it was not asked to.

    Raises:
        AlreadySupervisedError: The container of that supervisor still lives.
    """
    if claimed.is_stale:
        left = claimed.left_state()
        config = os.path.join(claimed.state_dir, "config.json")
        command = RuntimeCommand(
            name=str(left.get("runtime") or request.runtime),
            args=tuple(map(str, left.get("runtimeArgs") or request.runtime_args)),
            state_dir=claimed.state_dir,
            bundle=str(left.get("bundle") or ""),
            container_id=request.container_id,
            config=config if os.path.exists(config) else "",
        )
        state = parse_state(ask_runtime(command.name, command.state(), environment=os.environ))
        danger = kill_scope.of(command.config_path, state.pid if state else 0).unsafe_cgroup()
        # Its program has not begun, and only its dead supervisor would have started it.
        is_unborn = (
            state is not None
            and state.status == "created"
            and is_same_bundle(state.bundle, command.bundle)
            and not danger
        )
        if state is not None and state.status != "stopped" and not is_unborn:
            why = str(why_not) if why_not is not None else discover.why_not(claimed.state_dir)
            way = f"`forkshim adopt {request.container_id}` adopts it"
            if why:
                way = f"it cannot be adopted from here ({why})"
            ending = " ".join(command.delete(force=True))
            if danger:
                ending = f"kill -KILL {state.pid}"  # delete --force would kill other processes
            raise AlreadySupervisedError(
                "its supervisor has died and its container is "
                f"{state.status} (pid {state.pid}); {way}, `{ending}` ends it"
            )
        discover.end_leftovers(claimed.state_dir)
        # Without a state: a runtime that was killed in `create` has left a directory that refuses
        # the next `create`. The runtime's `delete --force` removes it. A pid file tells of a
        # process: there `state` may have failed, and --force would kill a living container.
        is_begun = os.path.lexists(os.path.join(claimed.state_dir, "pid"))
        if not is_begun if state is None else is_same_bundle(state.bundle, command.bundle):
            if danger and state is not None:
                kept = kill_scope.not_deleted(command.name, danger)
                foreground.say(f"{request.container_id}: {kept}")
            else:
                delete = command.delete(force=state is None or is_unborn)
                directory = command.directory if state is not None else "/"
                ask_runtime(command.name, delete, directory, environment=os.environ)
        if why_not is not None:
            again = "the container has ended, a new one starts"
            foreground.say(f"{request.container_id}: {why_not}; {again}")
    claimed.clear()
