"""What a killed shim was in the middle of: done to its end, or refused.

The journal has each process as it was at the last change that a client or containerd may know.
Beside it there is the truth: the container's own fd store, and the kernel. From both follows what
the table of `task_lifecycle` takes next.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress

from supervisor.frontends.containerd.task.task_lifecycle import ALIVE, Event, State
from supervisor.linux.fds import Fd
from supervisor.systemd import delegation
from supervisor.wire.frames import Code

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from supervisor.frontends.containerd.task.task import Task
    from supervisor.frontends.containerd.task.task_process import TaskProcess
    from supervisor.frontends.containerd.task.tasks import Tasks
    from supervisor.state.log import Log
    from supervisor.wire.server import Server

_UNAVAILABLE = "the shim was killed meanwhile: unavailable"


def settle(tasks: Tasks, server: Server, log: Log) -> None:
    """Go on with each task, and answer or serve each request that the dead shim had read.

    The containers are begun already.
    """
    found = [(task, process) for task in tasks.tasks for process in task.processes]
    known = frozenset(call.key for _task, each in found for call in each.open_calls)
    was_read = [(each, stream_id) for each in server.connections for stream_id in each.calls]
    for task, process in found:
        _settle(task, process, log)
    is_pausing = any(
        method == "Pause" for each in server.connections for _service, method in each.calls.values()
    )
    for task in tasks.tasks:
        _settle_freezer(task, log, is_pausing=is_pausing)
    served = tasks.serve_again(known, server.serve_again)
    for connection, stream_id in was_read:
        key = (connection.number, stream_id)
        if key not in known and key not in served and stream_id in connection.calls:
            connection.refuse(stream_id, Code.UNAVAILABLE, _UNAVAILABLE)


def _settle(task: Task, process: TaskProcess, log: Log) -> None:
    state, container = process.state, process.container
    if state is State.CREATING and container is None:
        task.remove(process, lambda: _fail(process))
    elif state is State.CREATING:
        process.post(Event.CREATED)
    elif state is State.STARTING and process.exec_id and container is None:
        _kill_exec(task, process)
        _fail(process)
    elif state is State.STARTING and container is not None and container.is_started:
        process.post(Event.STARTED)
    elif state is State.STARTING and container is not None:
        process.run_start()
    elif state in ALIVE and container is None:
        log.warning(f"{task.container_id}: nothing is left of {process.exec_id or 'its init'}")
        task.remove(process, process.lose)
    elif state is State.DYING:
        process.api.stop(0.0)
    elif state is State.GONE and process.start_call is not None:
        _refuse(process)
        task.deleted(process)
    elif state is State.GONE:
        process.answer_deletes()
    elif state is State.FAILED and process.start_call is not None:
        _refuse(process)
    elif state in ALIVE:
        process.answer_start()  # it was not told what the journal says
    else:
        if state is not State.ADDED:
            process.answer_waits()
        if process.deletes:
            process.post(Event.DELETE)


def _settle_freezer(task: Task, log: Log, *, is_pausing: bool) -> None:
    """Note what became of a pause or resume; thaw what a killed `kill` or `update` has frozen."""
    container = task.init.container
    is_frozen = _is_frozen(task.membership)
    if task.init.state is not State.RUNNING or container is None or is_frozen is None:
        return
    if is_frozen and not (task.is_paused or is_pausing):
        task.calls.run(task.init.api.resume, lambda error: log.info(f"resume: {error or 'done'}"))
    elif is_frozen != task.is_paused:
        task.is_paused = container.running.is_paused = is_frozen
        task.emit("/tasks/paused" if is_frozen else "/tasks/resumed", task.init)


def _is_frozen(membership: Mapping[str, str]) -> bool | None:
    """Return whether a container's cgroup is to be frozen; None if the kernel does not say."""
    path = f"freezer{membership.get('freezer', '')}/freezer.self_freezing"
    if delegation.is_unified():
        path = f"{membership.get('', '')}/cgroup.freeze"
    try:
        with open(f"{delegation.ROOT}/{path}", "rb") as file:
            return file.read(1) == b"1"
    except OSError:  # ENOENT: the cgroup is gone, or has no freezer; EMFILE
        return None


def _fail(process: TaskProcess) -> None:
    _refuse(process)
    process.fail("the shim was killed")


def _refuse(process: TaskProcess) -> None:
    call, process.start_call = process.start_call, None
    if call is not None:
        call.refuse(Code.UNAVAILABLE, _UNAVAILABLE)


def _kill_exec(task: Task, process: TaskProcess) -> None:
    """Kill what a runtime that died with its shim has executed: its pipes are lost."""
    path = task.state_path(process)
    with suppress(OSError, ValueError):
        with open(os.path.join(path, "pid"), "rb") as file:
            pid = int(file.read(10))
        pidfd = Fd(os.pidfd_open(pid))
        try:
            if pid != task.init.pid and delegation.membership(pid) == task.membership:
                signal.pidfd_send_signal(pidfd.fileno(), signal.SIGKILL)
        finally:
            pidfd.close()
