"""One process of a task: carries out the actions of `task_lifecycle` and answers its clients."""

from __future__ import annotations

import time

from supervisor.container.api import ContainerApi, Verb, VerbError, refusal
from supervisor.container.lifecycle import Notice
from supervisor.frontends.containerd.task.flush import LIMIT_S, STALLED_S, Flush
from supervisor.frontends.containerd.task.task_lifecycle import (
    ALIVE,
    EMITS,
    NOTED,
    UNKNOWN,
    Action,
    Event,
    State,
    status,
    step,
)
from supervisor.linux.errors import ShimError
from supervisor.linux.exit_status import shell_status
from supervisor.wire import messages

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from supervisor.container.container import Container
    from supervisor.container.request import Outcome
    from supervisor.frontends.containerd.task.call import Call
    from supervisor.frontends.containerd.task.log_program import LogProgram
    from supervisor.frontends.containerd.task.task import Task

UNKNOWN_STATUS = 255
_CORE_EVENTS = {
    Notice.CREATED: Event.CREATED,
    Notice.STARTED: Event.STARTED,
    Notice.EXITED: Event.EXITED,
    Notice.EMPTIED: Event.EMPTIED,
}


class TaskProcess:
    """The init of a task, or a process that is exec'd in it. Borrows the task.

    Attributes:
        exec_id: "" for the init.
        streams: `stdin`, `stdout`, `stderr` and `terminal` of the request.
        state: Its place in the table.
        container: The core's; None before it is begun.
        exit_status: As a shell has it; valid from the exit on.
        exited_at: The values of a Timestamp.
        start_call: A Start that is not answered.
        waits: The calls of Wait that are open.
        deletes: The calls of Delete that are open.
        is_exit_published: A killed shim has published the exit, which the core finds again.
        retired_pid: That of a process which the core does not have any more; 0 if unknown.
        is_stdin_closed: A CloseIO has come.
        logger: The client's program that logs its output; None if there is none.

    Many methods and attributes: one for each action of the table, and one for each request.
    """

    def __init__(self, task: Task, exec_id: str, streams: Mapping[str, Any], state: State) -> None:
        """Begin with CREATING for an init, with ADDED for an exec'd process."""
        self._task = task
        self.exec_id = exec_id
        self.streams = streams
        self.state = state
        self.container: Container | None = None
        self.exit_status = 0
        self.exited_at: Mapping[str, int] = messages.GO_ZERO_TIME
        self.start_call: Call | None = None
        self.waits: list[Call] = []
        self.is_stdin_closed = False
        self.logger: LogProgram | None = None
        self.deletes: list[Call] = []
        self.is_exit_published = False
        self.retired_pid = 0
        self._is_delete_due = False
        self._is_retiring = False
        self._api: ContainerApi | None = None
        self._error = ""
        self._events: list[Event] = []
        self._is_taking_steps = False
        self._actions: dict[Action, Callable[[], None]] = {
            Action.EMIT_CREATE: lambda: task.emit_create(self.pid),
            Action.ANSWER_CREATE: self.answer_start,
            Action.REFUSE_CREATE: self._refuse_start,
            Action.RUN_START: self.run_start,
            Action.EMIT_START: self._emit_start,
            Action.ANSWER_START: self.answer_start,
            Action.REFUSE_START: self._refuse_start,
            Action.KILL: lambda: self.api.stop(0.0),
            Action.FLUSH: lambda: self._flush(STALLED_S),
            Action.AWAIT_EXECS: lambda: task.look_for_execs(self),
            Action.EMIT_EXIT: self._emit_exit,
            Action.ANSWER_WAITS: self.answer_waits,
            Action.SERVE_DELETE: self._serve_delete,
            Action.DRAIN: lambda: self._flush(LIMIT_S),
            Action.DELETE: self._delete,
            Action.CLEAN_UP: lambda: task.clean_up(self),
            Action.EMIT_DELETE: self._emit_delete,
            Action.ANSWER_DELETE: self.answer_deletes,
        }

    @property
    def pid(self) -> int:
        """0 before there is a process."""
        return self.container.pid if self.container else self.retired_pid

    @property
    def is_alive(self) -> bool:
        """Whether there is a process whose exit was not published."""
        is_dying = (State.SWEEPING, State.FLUSHING, State.AWAITING_EXECS)
        return self.state in ALIVE or self.state in is_dying

    @property
    def api(self) -> ContainerApi:
        """The core's verbs."""
        if self._api is None:
            raise VerbError("not begun yet: its log program is being started")
        return self._api

    @property
    def open_calls(self) -> list[Call]:
        """The requests that are answered by a later step."""
        return [*([self.start_call] if self.start_call else []), *self.waits, *self.deletes]

    def follow(self, container: Container) -> None:
        """Report what the core tells of `container`, before it is begun or right behind."""
        self.container = container
        self._api = ContainerApi(container)
        container.subscribers.append(self._on_notice)
        container.waiting.append(self._on_outcome)

    def post(self, event: Event) -> None:
        """Take the step for `event`; those posted by its actions follow in their order."""
        self._events.append(event)
        if self._is_taking_steps:
            return
        self._is_taking_steps = True
        try:
            while self._events:
                self.state, actions = step(self.state, self._events.pop(0))
                if self.state in NOTED and not EMITS.intersection(actions):
                    self._task.note(self)
                for action in actions:
                    self._actions[action]()
        finally:
            self._is_taking_steps = False

    # What the core tells.

    def _on_notice(self, notice: Notice, _detail: str) -> None:
        if self.is_exit_published and notice in (Notice.EXITED, Notice.OOM, Notice.EMPTIED):
            if notice is Notice.EMPTIED and self._is_delete_due:
                self._delete()
            return
        if self.container is not None and notice in (Notice.CREATED, Notice.STARTED):
            self.container.running.handover.publish()  # before a client is told
        if notice is Notice.EXITED:
            self._note_exit()
        if notice is Notice.STARTED:
            self._close_stdin_if_asked()
        if notice is Notice.OOM and not (self.exec_id or self._task.is_oom_told):
            self._task.emit_oom()
        if notice is Notice.CREATED and self.state is State.STARTING:
            return  # the runtime starts what it makes: STARTED follows
        if notice in _CORE_EVENTS:
            self.post(_CORE_EVENTS[notice])

    def _note_exit(self) -> None:
        container = self.container
        process = container.process if container else None
        end = process.termination if process else None
        self.exited_at = messages.timestamp(time.time_ns())
        self.exit_status = UNKNOWN_STATUS if end is None else shell_status(end)
        if container is not None and container.error is not None:
            self._error = str(container.error)

    def lose(self) -> None:
        """Publish an unknown end: a killed shim had it, and nothing of it is known any more."""
        self.exit_status = UNKNOWN_STATUS
        self.exited_at = messages.timestamp(time.time_ns())
        self.state = State.AWAITING_EXECS
        self.post(Event.EXECS_ENDED)

    def restore_logger(self, packed: Mapping[str, Any]) -> None:
        """Go on with the program that logs, or with another run of it."""
        self._task.make_logger(self)
        if self.logger is not None and not self.logger.restore(packed):
            self.logger = None

    def fail(self, error: str) -> None:
        """Note why it cannot begin."""
        self._error = error
        self.exit_status = UNKNOWN_STATUS
        self.post(Event.FAILED)
        if self.exec_id:
            self._task.after_exec()

    def _on_outcome(self, outcome: Outcome) -> None:
        self._task.release(self, lambda: self._over(outcome))

    def _over(self, outcome: Outcome) -> None:
        if self._is_retiring:
            self.retired_pid = self.pid
            self.container = self._api = None
            self._is_retiring = False
            self._task.note(self)
        if self.state is State.DELETING:
            self.post(Event.DELETED)
        elif self.state in (State.CREATING, State.STARTING):
            self.fail(str(outcome.error or "the runtime has failed"))

    # Requests.

    def start(self, call: Call) -> None:
        """Start it; the answer follows when it runs."""
        self.start_call = call
        self.post(Event.START)

    def give_up_start(self, why: str) -> None:
        """Stop what waits for a client or for the runtime: there is no process yet."""
        is_starting = self.state is State.STARTING and not self.pid
        if self.container is not None and (is_starting or self.state is State.CREATING):
            self.container.stop(why)

    def delete(self, call: Call) -> None:
        """Delete it; the answer follows when nothing is left."""
        self.deletes.append(call)
        self.post(Event.DELETE)

    def close_stdin(self) -> None:
        """Close stdin: now, or once there is a process."""
        self.is_stdin_closed = True
        self._task.note(self)
        self._close_stdin_if_asked()

    def _close_stdin_if_asked(self) -> None:
        if not self.is_stdin_closed or self.container is None:
            return
        if not refusal(Verb.CLOSE_STDIN, self.container.state):
            self.api.close_stdin()

    def wait(self, call: Call) -> None:
        """Answer when its exit is published; at once if it was."""
        self.waits.append(call)
        if not self.is_alive and self.state is not State.ADDED:
            self.answer_waits()
        else:
            self._task.note(self)

    @property
    def state_values(self) -> dict[str, Any]:
        """The values of a StateResponse, from memory."""
        is_over = self.state in (State.STOPPED, State.DRAINING, State.DELETING, State.FAILED)
        return {
            "id": self._task.container_id,
            "bundle": self._task.bundle,
            "pid": self.pid,
            "status": status(
                self.state,
                is_paused=self._task.is_paused,
                is_pausing=self._task.is_pausing,
            ),
            "stdin": self.streams["stdin"],
            "stdout": self.streams["stdout"],
            "stderr": self.streams["stderr"],
            "terminal": self.streams["terminal"],
            "exit_status": self.exit_status if is_over else 0,
            "exited_at": self.exited_at if is_over else messages.GO_ZERO_TIME,
            "exec_id": self.exec_id,
        }

    # Actions.

    def answer_start(self) -> None:
        """Answer the Create or Start that waits, if one does."""
        call, self.start_call = self.start_call, None
        if call is not None:
            call.answer({"pid": self.pid})

    def _refuse_start(self) -> None:
        call, self.start_call = self.start_call, None
        verb = "exec" if self.exec_id else "create" if self.state is State.GONE else "start"
        if call is not None:
            call.refuse(UNKNOWN, f"OCI runtime {verb} failed: {self._error}: unknown")
        if self.state is State.GONE:
            self._task.deleted(self)

    def run_start(self) -> None:
        """Run the runtime's start or exec."""
        if self.exec_id:
            self._task.begin_exec(self)
            return
        if self.container is None:
            self._task.begin_restore()
            return
        try:
            self.api.start()
        except ShimError as error:
            self._error = str(error)
            self.api.stop(0.0)

    def retire(self) -> None:
        """Have the core delete a stopped process before its client does: a reload is to come.

        Without a client that has read the output it is not done: its fifo would lose it.
        """
        container = self.container
        if self.state is not State.STOPPED or container is None or self._is_retiring:
            return
        streams = container.running.stream_set
        is_read = all(each.is_closed and not streams.unread_bytes(each) for each in streams.outputs)
        if is_read and not refusal(Verb.DELETE, container.state):
            self._is_retiring = True
            self._task.calls.when_idle(self.api.delete)

    def _emit_start(self) -> None:
        if self.exec_id:
            values = {"exec_id": self.exec_id, "pid": self.pid}
            self._task.emit("/tasks/exec-started", self, **values)
        else:
            if not self._task.membership:  # restored
                self._task.note_process(self.pid)
            self._task.emit("/tasks/start", self, pid=self.pid)

    def _flush(self, stalled_s: float) -> None:
        if self.container is None:
            self.post(Event.FLUSHED)  # a killed shim had it, and has delivered all
            return
        Flush(
            self.container.launch.loop,
            self.container.running.stream_set,
            lambda: self.post(Event.FLUSHED),
            stalled_s=stalled_s,
        )

    @property
    def exit_values(self) -> dict[str, Any]:
        """The fields that every message of an end has."""
        return {
            "pid": self.pid,
            "exit_status": self.exit_status,
            "exited_at": self.exited_at,
        }

    def _emit_exit(self) -> None:
        self._task.exited(self)
        process_id = self.exec_id or self._task.container_id
        self._task.emit("/tasks/exit", self, id=process_id, **self.exit_values)

    def answer_waits(self) -> None:
        """Answer each Wait."""
        waits, self.waits = self.waits, []
        for call in waits:
            call.answer({"exit_status": self.exit_status, "exited_at": self.exited_at})

    def _serve_delete(self) -> None:
        if self.deletes:
            self.post(Event.DELETE)

    def _delete(self) -> None:
        if self.container is None:
            self._task.remove(self, lambda: self.post(Event.DELETED))
        elif self._is_retiring:
            return  # the core deletes it already
        elif self.is_exit_published and refusal(Verb.DELETE, self.container.state):
            self._is_delete_due = True  # the core has still to see the exit
        else:
            # A delete that overtakes `kill --all` meets a frozen cgroup.
            self._task.calls.when_idle(self.api.delete)

    def _emit_delete(self) -> None:
        if not self.exec_id:
            self._task.emit("/tasks/delete", self, **self.exit_values)

    def answer_deletes(self) -> None:
        """Answer each Delete, and be forgotten."""
        deletes, self.deletes = self.deletes, []
        for call in deletes:
            call.answer(self.exit_values)
        self._task.deleted(self)
