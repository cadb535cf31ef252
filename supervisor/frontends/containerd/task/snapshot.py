"""A task across a reload: packed as JSON, and unpacked in the next program of this process.

The core hands its containers over by itself; here they are indices in the host's order, and the
clients' connections are indices in the server's. A request travels as its own message.
"""

from __future__ import annotations

from supervisor.frontends.containerd.task.call import Call
from supervisor.frontends.containerd.task.task_lifecycle import State
from supervisor.wire import messages
from supervisor.wire.protobuf import decode, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from supervisor.container.container import Container
    from supervisor.frontends.containerd.task.task import Task
    from supervisor.frontends.containerd.task.task_process import TaskProcess
    from supervisor.wire.protobuf import MessageType
    from supervisor.wire.ttrpc import ServerConnection

_SETTLED = frozenset({State.ADDED, State.CREATED, State.RUNNING, State.FAILED})
"""Nothing is under way, and no client waits for anything but the end."""


def is_settled(task: Task) -> bool:
    """Say whether `pack` has all there is of a task."""
    return (
        task.calls.is_idle
        and not task.is_pausing
        and all(each.state in _SETTLED and each.start_call is None for each in _processes(task))
    )


def open_waits(task: Task, connections: Sequence[ServerConnection]) -> list[Call]:
    """Return the Waits whose clients are connected."""
    return [
        call
        for process in _processes(task)
        for call in process.waits
        if call.connection in connections
    ]


def _processes(task: Task) -> list[TaskProcess]:
    return [task.init, *task.execs.values()]


def pack(
    task: Task, containers: Sequence[Container], connections: Sequence[ServerConnection]
) -> dict[str, Any]:
    """Return a settled task in values that JSON has."""

    def packed(process: TaskProcess, message: MessageType) -> dict[str, Any]:
        container = process.container
        return {
            "exec_id": process.exec_id,
            "request": encode(message, process.streams).hex(),
            "state": process.state.name,
            "container": containers.index(container) if container in containers else -1,
            "exit_status": process.exit_status,
            "exited_at": process.exited_at,
            "is_stdin_closed": process.is_stdin_closed,
            "waits": [
                call.snapshot(connections)
                for call in process.waits
                if call.connection in connections
            ],
        }

    return {
        "is_paused": task.is_paused,
        "membership": task.membership,
        "is_oom_told": task.is_oom_told,
        "init": packed(task.init, messages.CreateTaskRequest),
        "execs": [packed(each, messages.ExecProcessRequest) for each in task.execs.values()],
    }


def request_of(packed: Mapping[str, Any]) -> dict[str, Any]:
    """Return the CreateTaskRequest of a packed task."""
    return decode(messages.CreateTaskRequest, bytes.fromhex(packed["init"]["request"]))


def unpack(
    task: Task,
    packed: Mapping[str, Any],
    containers: Sequence[Container],
    connections: Sequence[ServerConnection],
) -> None:
    """Give a task that was made from `request_of` the rest of its state."""
    task.is_paused = packed["is_paused"]
    task.membership = packed["membership"]
    task.is_oom_told = packed.get("is_oom_told", False)
    task.watch_oom()
    _unpack(task.init, packed["init"], containers, connections)
    for each in packed["execs"]:
        request = decode(messages.ExecProcessRequest, bytes.fromhex(each["request"]))
        task.know_exec(each["exec_id"], request)
        _unpack(task.execs[each["exec_id"]], each, containers, connections)


def _unpack(
    process: TaskProcess,
    packed: Mapping[str, Any],
    containers: Sequence[Container],
    connections: Sequence[ServerConnection],
) -> None:
    process.state = State[packed["state"]]
    process.exit_status = packed["exit_status"]
    process.exited_at = packed["exited_at"]
    process.is_stdin_closed = packed.get("is_stdin_closed", False)
    process.waits = [Call.restore(each, connections) for each in packed["waits"]]
    if packed["container"] >= 0:
        process.follow(containers[packed["container"]])
    encode(messages.StateResponse, process.state_values)  # a dry run has to meet what a client asks
