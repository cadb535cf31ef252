"""The Task service of a group: ids to tasks, methods to what answers them, errors to codes."""

from __future__ import annotations

import os
from functools import partial

from supervisor.container.api import VerbError
from supervisor.frontends.containerd import metrics, options
from supervisor.frontends.containerd.task import checkpoint, snapshot
from supervisor.frontends.containerd.task.call import Call
from supervisor.frontends.containerd.task.pids import process_infos
from supervisor.frontends.containerd.task.task import Task
from supervisor.frontends.containerd.task.task_journal import REPLIES
from supervisor.frontends.containerd.task.task_lifecycle import (
    ALREADY_EXISTS,
    FAILED_PRECONDITION,
    INVALID_ARGUMENT,
    NOT_FOUND,
    UNIMPLEMENTED,
    UNKNOWN,
    Method,
    State,
    refusal,
)
from supervisor.linux.errors import ShimError, UsageError, describe_calls, reason
from supervisor.wire import messages
from supervisor.wire.frames import Code
from supervisor.wire.protobuf import WireError, decode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from supervisor.container.container import Container
    from supervisor.container.host import Host
    from supervisor.frontends.containerd.task.task_journal import TaskJournal
    from supervisor.frontends.containerd.task.task_process import TaskProcess
    from supervisor.handover.manager import StoreHolder
    from supervisor.wire.ttrpc import ServerConnection

    Request = Mapping[str, Any]

_VERSION = "v2"
_REMEMBERED_S = 60.0
"""A client whose Delete was cut off asks again, and gets the same answer (containerd#11392)."""


class _RefusedError(Exception):
    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Tasks:
    """Serves every connection of the group. Borrows host and journal.

    Many methods: one for each of the service's, and what a reload needs.
    """

    def __init__(
        self,
        host: Host,
        journal: TaskJournal,
        namespace: str,
        on_shutdown: Callable[[], None],
        *,
        command: tuple[str, ...],
        store_holder: StoreHolder | None = None,
    ) -> None:
        """`on_shutdown` follows a Shutdown when no task is left.

        `command`: how to start this program again. `store_holder`: of this shim; None without one.
        """
        self._host = host
        self._journal = journal
        self._store_holder = store_holder
        self._known_calls: frozenset[tuple[int, int]] | None = None
        self._served_again: set[tuple[int, int]] = set()
        self._namespace = namespace
        self._on_shutdown = on_shutdown
        self._command = command
        self._tasks: dict[str, Task] = {}
        self._replies: dict[str, Mapping[str, Any]] = {}
        self._methods: dict[str, Callable[[Call, Request], None]] = {
            "Create": self._create,
            "Start": self._start,
            "State": self._state,
            "Delete": self._delete,
            "Pids": self._pids,
            "Pause": partial(self._freeze, Method.PAUSE),
            "Resume": partial(self._freeze, Method.RESUME),
            "Checkpoint": self._checkpoint,
            "Kill": self._kill,
            "Exec": self._exec,
            "ResizePty": self._resize,
            "CloseIO": self._close_io,
            "Update": self._update,
            "Wait": self._wait,
            "Stats": self._stats,
            "Connect": self._connect,
            "Shutdown": self._shutdown,
        }

    @property
    def is_empty(self) -> bool:
        """Whether there is no task."""
        return not self._tasks

    def is_settled(self, connections: Sequence[ServerConnection]) -> bool:
        """Say whether `snapshot` has all: nothing is halfway, and no call is open but Waits."""
        waits = 0
        for task in self._tasks.values():
            if not snapshot.is_settled(task):
                return False
            waits += len(snapshot.open_waits(task, connections))
        return waits == sum(len(each.calls) for each in connections)

    def retire_stopped(self) -> None:
        """Prepare for a reload, which hands over no stopped container of the core."""
        for task in self.tasks:
            for each in task.processes:
                each.retire()

    @property
    def tasks(self) -> list[Task]:
        """All tasks, the oldest first."""
        return [*self._tasks.values()]

    def snapshot(self) -> dict[str, Any]:
        """Return what `restore` needs, in values that JSON has; only while `is_settled`."""
        parts = {
            snapshot.part_name(task, each): snapshot.pack(task, each)
            for task in self.tasks
            for each in task.processes
        }
        return {**parts, REPLIES: self._replies}

    def restore(
        self,
        parts: Mapping[str, Any],
        containers: Mapping[str, Container],
        connections: Mapping[int, ServerConnection],
    ) -> None:
        """Go on with the tasks of an earlier program: of this process, or of a killed shim.

        Args:
            parts: From `snapshot`, or from the journal of the killed shim.
            containers: By the paths of their state directories; not begun yet.
            connections: By their numbers.

        Raises:
            KeyError, TypeError, ValueError, WireError, ShimError: `parts` cannot be used.
        """
        for name, packed in parts.items():
            if name.startswith(snapshot.TASK):
                task = self._make(snapshot.request_of(packed))
                snapshot.unpack_task(task, packed)
                snapshot.unpack(task, task.init, packed, containers, connections)
                self._tasks[task.container_id] = task
        for name, packed in parts.items():
            if name.startswith(snapshot.EXEC):
                task, exec_id = self._tasks[packed["of"]], packed["exec_id"]
                task.know_exec(exec_id, snapshot.request_of(packed))
                snapshot.unpack(task, task.execs[exec_id], packed, containers, connections)
        for container_id, reply in parts.get(REPLIES, {}).items():
            self._remember(container_id, reply)

    def serve_again(
        self, known_calls: frozenset[tuple[int, int]], serve: Callable[[], None]
    ) -> set[tuple[int, int]]:
        """Run `serve`, which brings requests that a killed shim may have begun; returns their keys.

        `known_calls`: the keys of those that wait for something, and are answered anyway.
        """
        self._served_again, self._known_calls = set(), known_calls
        try:
            serve()
            return self._served_again
        finally:
            self._known_calls = None

    def on_request(
        self,
        connection: ServerConnection,
        stream_id: int,
        service: str,
        method: str,
        payload: bytes,
        _timeout_ns: int,
    ) -> None:
        """Serve one request; the answer may follow later."""
        if self._known_calls is not None:
            self._served_again.add((connection.number, stream_id))
            if (connection.number, stream_id) in self._known_calls:
                return
        serve = self._methods.get(method) if service in messages.TASK_SERVICES else None
        if serve is None:
            connection.refuse(
                stream_id, Code(UNIMPLEMENTED), f"{service}/{method}: not implemented"
            )
            return
        call = Call(connection, stream_id, method)
        try:
            serve(call, decode(messages.TASK_METHODS[method][0], payload))
        except _RefusedError as error:
            call.refuse(error.code, str(error))
        except (WireError, UsageError, ValueError, OverflowError) as error:
            call.refuse(INVALID_ARGUMENT, f"{error}: invalid argument")
        except VerbError as error:
            call.refuse(FAILED_PRECONDITION, f"{error}: failed precondition")
        except ShimError as error:
            call.refuse(UNKNOWN, f"{error}: unknown")
        except Exception as error:  # a bug may cost this request, not the pod
            words = reason(error) if isinstance(error, OSError) else repr(error)
            self._host.log.error(f"{method}: {words} ({describe_calls(error)})")
            if stream_id in connection.calls:
                call.refuse(UNKNOWN, f"{method}: {words}: unknown")

    def on_closed(self, connection: ServerConnection, _why: str) -> None:
        """Give up what waits for a client that has gone."""
        for task in [*self._tasks.values()]:
            for process in (task.init, *task.execs.values()):
                call = process.start_call
                if call is not None and call.connection is connection:
                    process.give_up_start("its client has left")

    def _task(self, request: Request) -> Task:
        task = self._tasks.get(request["id"])
        if task is None or task.init.state is State.GONE:
            raise _RefusedError(NOT_FOUND, f"container {request['id']}: not found")
        return task

    def _process(self, request: Request, method: Method) -> tuple[Task, TaskProcess]:
        """Return what the request means, if its state allows the method."""
        task = self._task(request)
        exec_id = request.get("exec_id", "")
        process = task.execs.get(exec_id) if exec_id else task.init
        if process is None:
            raise _RefusedError(NOT_FOUND, f"process {exec_id}: not found")
        why = refusal(method, process.state, is_paused=task.is_paused)
        if why is not None:
            raise _RefusedError(why.code, why.message)
        return task, process

    # The life of a process.

    def _create(self, call: Call, request: Request) -> None:
        container_id = request["id"]
        if container_id in self._tasks:
            raise _RefusedError(ALREADY_EXISTS, f"container {container_id}: already exists")
        task = self._make(request)
        self._replies.pop(container_id, None)
        self._tasks[container_id] = task
        task.create(call)

    def _make(self, request: Request) -> Task:
        return Task(
            self._host,
            self._journal,
            self._namespace,
            request,
            options.of_any(request["options"]),
            self._on_deleted,
            command=self._command,
            store_holder=self._store_holder,
        )

    def _on_deleted(self, task: Task) -> None:
        self._tasks.pop(task.container_id, None)
        if task.init.pid:
            self._remember(task.container_id, task.init.exit_values)
        self._journal.forget(task, task.init, self._replies)

    def _remember(self, container_id: str, reply: Mapping[str, Any]) -> None:
        self._replies[container_id] = reply
        forget = partial(self._forget_reply, container_id, reply)
        self._host.loop.timer(forget).start(_REMEMBERED_S)

    def _forget_reply(self, container_id: str, reply: Mapping[str, Any]) -> None:
        if self._replies.get(container_id) is reply:  # not that of a later container of this id
            del self._replies[container_id]

    def _start(self, call: Call, request: Request) -> None:
        task, process = self._process(request, Method.START)
        if process.exec_id and task.init.state is not State.RUNNING:
            raise _RefusedError(
                FAILED_PRECONDITION, "the container does not run: failed precondition"
            )
        process.start(call)

    def _delete(self, call: Call, request: Request) -> None:
        reply = self._replies.get(request["id"])
        if reply is not None and request["id"] not in self._tasks and not request["exec_id"]:
            call.answer(reply)
            return
        _task, process = self._process(request, Method.DELETE)
        process.delete(call)

    def _wait(self, call: Call, request: Request) -> None:
        _task, process = self._process(request, Method.WAIT)
        process.wait(call)

    def _exec(self, call: Call, request: Request) -> None:
        task, _init = self._process({"id": request["id"]}, Method.EXEC)
        known = task.execs.get(request["exec_id"])
        if known is not None and self._known_calls is not None and known.state is State.ADDED:
            call.answer()  # a killed shim has added it, and was not able to answer
            return
        if known is not None:
            raise _RefusedError(ALREADY_EXISTS, f"process {request['exec_id']}: already exists")
        task.add_exec(request["exec_id"], request)
        call.answer()

    def _state(self, call: Call, request: Request) -> None:
        _task, process = self._process(request, Method.STATE)
        call.answer(process.state_values)

    def _kill(self, call: Call, request: Request) -> None:
        task, process = self._process(request, Method.KILL)
        signum = request["signal"]
        if process.exec_id or not (request["all"] or task.is_paused):
            process.api.signal(signum)
            call.answer()
            return
        kill = partial(process.api.kill_by_runtime, signum, is_all=request["all"])
        task.calls.run(kill, partial(self._answer_kill, call))

    def _answer_kill(self, call: Call, error: str) -> None:
        is_gone = any(word in error for word in ("not running", "already finished", "no such"))
        if is_gone:
            call.refuse(NOT_FOUND, f"{error}: not found")
        else:
            call.finish(error)

    def _freeze(self, method: Method, call: Call, request: Request) -> None:
        task, init = self._process(request, method)
        is_pause = method is Method.PAUSE

        def ended(error: str) -> None:
            task.is_pausing = False
            if not error:
                task.is_paused = is_pause
                task.emit("/tasks/paused" if is_pause else "/tasks/resumed", init)
            call.finish(error)

        task.is_pausing = is_pause
        task.calls.run(init.api.pause if is_pause else init.api.resume, ended)

    def _update(self, call: Call, request: Request) -> None:
        task, init = self._process(request, Method.UPDATE)
        resources = request["resources"]["value"] if request["resources"] else b"{}"
        task.calls.run(partial(init.api.update, resources), call.finish)

    def _checkpoint(self, call: Call, request: Request) -> None:
        task, init = self._process(request, Method.CHECKPOINT)

        def ended(error: str) -> None:
            if not error:
                task.emit("/tasks/checkpointed", init, checkpoint=request["path"])
            call.finish(error)

        task.calls.run(partial(checkpoint.run, task, request), ended)

    def _resize(self, call: Call, request: Request) -> None:
        _task, process = self._process(request, Method.RESIZE)
        if process.container is not None and process.streams["terminal"]:
            process.api.resize(request["width"], request["height"])
        call.answer()

    def _close_io(self, call: Call, request: Request) -> None:
        _task, process = self._process(request, Method.CLOSE_IO)
        if request["stdin"]:
            process.close_stdin()
        call.answer()

    def _pids(self, call: Call, request: Request) -> None:
        task, _init = self._process(request, Method.PIDS)
        exec_ids = {each.pid: each.exec_id for each in task.execs.values() if each.is_alive}
        call.answer({"processes": process_infos(task.membership, exec_ids)})

    def _stats(self, call: Call, request: Request) -> None:
        task, _init = self._process(request, Method.STATS)
        try:
            call.answer({"stats": metrics.read(task.membership)})
        except metrics.NoCgroupError as error:
            raise _RefusedError(NOT_FOUND, f"{error}: not found") from error
        except OSError as error:
            raise ShimError(f"statistics: {reason(error)}") from error

    def _connect(self, call: Call, request: Request) -> None:
        task = self._tasks.get(request["id"])
        pid = task.init.pid if task is not None else 0
        call.answer({"shim_pid": os.getpid(), "task_pid": pid, "version": _VERSION})

    def _shutdown(self, call: Call, _request: Request) -> None:
        call.answer()
        if self.is_empty:
            self._on_shutdown()
