"""Tasks across a reload or a kill -9: packed as JSON, and unpacked by the next program.

Each process is a part of its own, by `part_name`. The core hands its containers over by itself;
here they are the paths of their state directories, and the clients' connections are numbers. A
request travels as its own message.
"""

from __future__ import annotations

from supervisor.frontends.containerd.task import call as calls
from supervisor.frontends.containerd.task.task_lifecycle import ENDED, NOWHERE, State
from supervisor.wire import messages
from supervisor.wire.protobuf import decode, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from supervisor.container.container import Container
    from supervisor.frontends.containerd.task.call import Call
    from supervisor.frontends.containerd.task.task import Task
    from supervisor.frontends.containerd.task.task_process import TaskProcess
    from supervisor.wire.ttrpc import ServerConnection

_SETTLED = frozenset({State.ADDED, State.CREATED, State.RUNNING, State.FAILED, State.STOPPED})
"""Nothing is under way, and no client waits for anything but the end."""

_BEFORE = {
    # The shim has seen the exit, and was killed before it published it: it is seen again.
    **dict.fromkeys((State.SWEEPING, State.FLUSHING, State.AWAITING_EXECS), State.RUNNING),
    **dict.fromkeys((State.DRAINING, State.DELETING), State.STOPPED),
}
"""Where a process goes on whose shim was killed in such a state."""

TASK, EXEC = "task ", "exec "


def is_settled(task: Task) -> bool:
    """Say whether a reload finds nothing halfway."""
    return (
        task.calls.is_idle
        and not task.is_pausing
        and all(_is_settled(each) for each in task.processes)
    )


def _is_settled(process: TaskProcess) -> bool:
    is_logged = process.logger is None or process.logger.is_settled
    return process.state in _SETTLED and process.start_call is None and is_logged


def open_waits(task: Task, connections: Sequence[ServerConnection]) -> list[Call]:
    """Return the Waits whose clients are connected."""
    return [
        call for each in task.processes for call in each.waits if call.connection in connections
    ]


def part_name(task: Task, process: TaskProcess) -> str:
    """Return the name of a process's part. No id has a slash."""
    if process.exec_id:
        return f"{EXEC}{task.container_id}/{process.exec_id}"
    return TASK + task.container_id


def pack(task: Task, process: TaskProcess) -> dict[str, Any]:
    """Return the part of a process; that of the init has what is the task's, too."""
    message = messages.ExecProcessRequest if process.exec_id else messages.CreateTaskRequest
    packed = {
        "request": encode(message, process.streams).hex(),
        "state": process.state.name,
        "pid": process.pid,
        "exit_status": process.exit_status,
        "exited_at": process.exited_at,
        "is_stdin_closed": process.is_stdin_closed,
        "logger": process.logger.snapshot() if process.logger and process.container else None,
        "start_call": [process.start_call.snapshot()] if process.start_call else [],
        "waits": [call.snapshot() for call in process.waits if call.connection.is_open],
        "deletes": [call.snapshot() for call in process.deletes if call.connection.is_open],
    }
    if process.exec_id:
        return {"of": task.container_id, "exec_id": process.exec_id, **packed}
    return {
        **packed,
        "is_paused": task.is_paused,
        "membership": task.membership,
        "is_oom_told": task.is_oom_told,
    }


def request_of(packed: Mapping[str, Any]) -> dict[str, Any]:
    """Return the request of a packed process: its CreateTaskRequest or ExecProcessRequest."""
    message = messages.ExecProcessRequest if "exec_id" in packed else messages.CreateTaskRequest
    return decode(message, bytes.fromhex(packed["request"]))


def unpack_task(task: Task, packed: Mapping[str, Any]) -> None:
    """Give a task that was made from `request_of` what is not one process's."""
    task.is_paused = packed["is_paused"]
    task.membership = packed["membership"]
    task.is_oom_told = packed["is_oom_told"]
    if task.membership and State[packed["state"]] not in ENDED:
        task.watch_oom()


def unpack(
    task: Task,
    process: TaskProcess,
    packed: Mapping[str, Any],
    containers: Mapping[str, Container],
    connections: Mapping[int, ServerConnection],
) -> None:
    """Give a process that was made from `request_of` its state.

    Args:
        task: Whose process it is.
        process: The init, or an exec'd process.
        packed: Its part.
        containers: By the path of their state directories; not begun yet.
        connections: By their numbers.
    """
    state = State[packed["state"]]
    process.is_exit_published = state in ENDED
    process.state = _BEFORE.get(state, state)
    process.retired_pid = packed["pid"]
    process.exit_status = packed["exit_status"]
    process.exited_at = packed["exited_at"]
    process.is_stdin_closed = packed["is_stdin_closed"]
    process.start_call = next(iter(calls.restore(packed["start_call"], connections)), None)
    process.waits = calls.restore(packed["waits"], connections)
    process.deletes = calls.restore(packed["deletes"], connections)
    # Not by what is packed: a shim may be killed between a creation and its note.
    container = containers.get(task.state_path(process))
    if container is not None:
        process.follow(container)
        if packed.get("logger"):
            process.restore_logger(packed["logger"])
    if process.state not in NOWHERE:
        # A dry run has to meet what a client asks.
        encode(messages.StateResponse, process.state_values)
