"""Clears what a killed supervisor has left, before its ID is run again."""

from __future__ import annotations

import contextlib
import os

from supervisor.cli import foreground
from supervisor.handover import discover
from supervisor.linux import fds, procfs
from supervisor.linux.errors import AlreadySupervisedError, ShimError
from supervisor.oci import kill_scope
from supervisor.oci.command_line import RuntimeCommand, is_same_bundle, joined_lines, parse_state
from supervisor.oci.invoke import ask_runtime

TYPE_CHECKING = False
if TYPE_CHECKING:
    from supervisor.cli.commands import RunRequest
    from supervisor.oci.command_line import RuntimeState
    from supervisor.state import claim
    from supervisor.state.fd_store import FdStoreError

_NO_SUCH_CONTAINER = (b"does not exist", b"/status`: No such file")
"""The words of runc and crun. Each other failure of `state` leaves the container's state open."""

_MOST_STDERR = 4096


def clear(claimed: claim.Claim, request: RunRequest, why_not: FdStoreError | None) -> None:
    """Kill and remove what an earlier supervisor of the ID has left.

    `why_not`: why this process cannot adopt the container; None if it was not asked to.

    Raises:
        AlreadySupervisedError: The container of that supervisor still lives, or may live.
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
        state, why_unknown = _ask_state(command)
        danger = kill_scope.of(command.config_path, state.pid if state else 0).unsafe_cgroup()
        # Its program has not begun, and only its dead supervisor would have started it.
        is_unborn = (
            state is not None
            and state.status == "created"
            and is_same_bundle(state.bundle, command.bundle)
            and not danger
        )
        pid = state.pid if state is not None else _living_process(claimed)
        is_alive = state is not None and state.status != "stopped" and not is_unborn
        if is_alive or (why_unknown and pid):
            why = str(why_not) if why_not is not None else discover.why_not(claimed.state_dir)
            way = f"`forkshim adopt {request.container_id}` adopts it"
            if why:
                way = f"it cannot be adopted from here ({why})"
            ending = " ".join(command.delete(force=True))
            if danger:
                ending = f"kill -KILL {pid}"  # delete --force would kill other processes
            status = state.status if state is not None else f"in an unknown state: {why_unknown}"
            raise AlreadySupervisedError(
                "its supervisor has died and its container is "
                f"{status} (pid {pid}); {way}, `{ending}` ends it"
            )
        discover.end_leftovers(claimed.state_dir)
        # Without a state: a runtime that was killed in `create` has left a directory that refuses
        # the next `create`. The runtime's `delete --force` removes it.
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


def _ask_state(command: RuntimeCommand) -> tuple[RuntimeState | None, str]:
    """Return the container's state and "", or None and why the runtime cannot tell it.

    None and "": the runtime says that it has no such container.
    """
    with fds.in_memory("stderr", b"") as stderr:
        output = ask_runtime(command.name, command.state(), environment=os.environ, stderr=stderr)
        said = os.pread(stderr, _MOST_STDERR, 0)
    state = parse_state(output)
    if state is not None or any(word in said for word in _NO_SUCH_CONTAINER):
        return state, ""
    return None, f"`{' '.join(command.state())}` fails: {joined_lines(said) or 'without a word'}"


def _living_process(claimed: claim.Claim) -> int:
    """Return the process of the file `pid`, if it lives; else 0."""
    with contextlib.closing(claimed.open_state_dir()) as state_dir:
        try:
            pid = state_dir.read_pid()
        except ShimError:  # killed during `create`
            return 0
    return 0 if procfs.is_dead(pid) else pid
