"""The life of one process of a task as containerd drives it: states, events, actions. Pure.

A task is a container: its init, and the processes that are exec'd in it. Each of them has its own
place in this table. The core of `supervisor.container` goes on by itself up to the process's end;
here a client says when to start and when to delete. So every order that a client relies on is here:
`create` before `start` before `exit` before `delete`, the output before the exit, the exit before
the answers to Wait, the exits of exec'd processes before that of their init.

`refusal` says in which state a method is an error, with its ttrpc code.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from supervisor.wire import messages

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

UNKNOWN, INVALID_ARGUMENT, NOT_FOUND, ALREADY_EXISTS = 2, 3, 5, 6
FAILED_PRECONDITION, UNIMPLEMENTED = 9, 12
"""Codes of google.rpc.Code, which containerd's errdefs maps back to its errors."""


class State(Enum):
    """Where a process of a task is."""

    CREATING = "being created"
    ADDED = "added"
    CREATED = "created"
    STARTING = "being started"
    RUNNING = "running"
    DYING = "being killed"
    SWEEPING = "dead, its container's other processes being killed"
    FLUSHING = "dead, its output being delivered"
    AWAITING_EXECS = "dead, the exits of its exec'd processes being awaited"
    STOPPED = "stopped"
    DRAINING = "stopped, its last output being delivered"
    DELETING = "being deleted"
    FAILED = "failed to start"
    GONE = "deleted"


class Event(Enum):
    """What can happen: a request of a client, or what the core reports."""

    START = "a client wants it started"
    DELETE = "a client wants it deleted"
    CREATED = "the runtime has created the container"
    MOUNTED = "all is ready for a restore, which makes and starts the container at once"
    FAILED = "the runtime has failed, and its remains are deleted"
    STARTED = "the program runs"
    EXITED = "the process has been reaped"
    EMPTIED = "its container has no other process that should not outlive it"
    FLUSHED = "its output is delivered, or was waited for long enough"
    EXECS_ENDED = "no exec'd process is alive"
    DELETED = "the runtime has deleted it, and nothing of it is left in this process"


class Action(Enum):
    """What `supervisor.frontends.containerd.task.task_process` does."""

    EMIT_CREATE = "emit /tasks/create"
    ANSWER_CREATE = "answer Create"
    REFUSE_CREATE = "answer Create with the error"
    RUN_START = "run the runtime's start or exec"
    EMIT_START = "emit /tasks/start or /tasks/exec-started"
    ANSWER_START = "answer Start"
    REFUSE_START = "answer Start with the error"
    KILL = "kill it"
    FLUSH = "wait until its output is delivered; shortly, if its client does not read"
    AWAIT_EXECS = "wait for the ends of the exec'd processes"
    EMIT_EXIT = "emit /tasks/exit"
    ANSWER_WAITS = "answer each Wait"
    SERVE_DELETE = "serve a Delete that came before the end"
    DRAIN = "wait until its output is delivered; longer, since nothing is copied afterwards"
    DELETE = "delete it"
    CLEAN_UP = "unmount, write the answer for the shim's delete, remove the state directory"
    EMIT_DELETE = "emit /tasks/delete"
    ANSWER_DELETE = "answer each Delete"


EMITS = frozenset({Action.EMIT_CREATE, Action.EMIT_START, Action.EMIT_EXIT, Action.EMIT_DELETE})
"""Each notes the next state with its event."""

Step = tuple[State, tuple[Action, ...]]

_S, _E, _A = State, Event, Action

_DELETED_UNSTARTED: Step = (_S.GONE, (_A.CLEAN_UP, _A.ANSWER_WAITS, _A.ANSWER_DELETE))

TABLE: dict[tuple[State, Event], Step] = {
    (_S.CREATING, _E.CREATED): (_S.CREATED, (_A.EMIT_CREATE, _A.ANSWER_CREATE)),
    (_S.CREATING, _E.MOUNTED): (_S.ADDED, (_A.EMIT_CREATE, _A.ANSWER_CREATE)),
    (_S.CREATING, _E.FAILED): (_S.GONE, (_A.CLEAN_UP, _A.REFUSE_CREATE)),
    (_S.ADDED, _E.START): (_S.STARTING, (_A.RUN_START,)),
    (_S.ADDED, _E.DELETE): _DELETED_UNSTARTED,
    (_S.CREATED, _E.START): (_S.STARTING, (_A.RUN_START,)),
    # A runtime deletes a created container only by force, which is a kill. The exit follows.
    (_S.CREATED, _E.DELETE): (_S.DYING, (_A.KILL,)),
    (_S.CREATED, _E.EXITED): (_S.SWEEPING, ()),
    (_S.STARTING, _E.STARTED): (_S.RUNNING, (_A.EMIT_START, _A.ANSWER_START)),
    (_S.STARTING, _E.EXITED): (_S.SWEEPING, (_A.REFUSE_START,)),  # it never ran its program
    (_S.STARTING, _E.FAILED): (_S.FAILED, (_A.REFUSE_START,)),  # an exec that the runtime refused
    (_S.RUNNING, _E.EXITED): (_S.SWEEPING, ()),
    (_S.DYING, _E.EXITED): (_S.SWEEPING, ()),
    (_S.SWEEPING, _E.EMPTIED): (_S.FLUSHING, (_A.FLUSH,)),
    (_S.FLUSHING, _E.FLUSHED): (_S.AWAITING_EXECS, (_A.AWAIT_EXECS,)),
    (_S.AWAITING_EXECS, _E.EXECS_ENDED): (
        _S.STOPPED,
        (_A.EMIT_EXIT, _A.ANSWER_WAITS, _A.SERVE_DELETE),
    ),
    (_S.STOPPED, _E.DELETE): (_S.DRAINING, (_A.DRAIN,)),
    (_S.DRAINING, _E.FLUSHED): (_S.DELETING, (_A.DELETE,)),
    (_S.DELETING, _E.DELETED): (_S.GONE, (_A.CLEAN_UP, _A.EMIT_DELETE, _A.ANSWER_DELETE)),
    (_S.FAILED, _E.DELETE): _DELETED_UNSTARTED,
}


def step(state: State, event: Event) -> Step:
    """Return the next state and what to do on the way, in order.

    A Delete that comes before the end is served by SERVE_DELETE, one that comes again by
    ANSWER_DELETE: both are noted already, and take no step.

    Raises:
        AssertionError: The event cannot happen in this state: a bug in this front end.
    """
    known = TABLE.get((state, event))
    if known is not None:
        return known
    if event is Event.DELETE:
        return state, ()
    raise AssertionError(f"{event.name} while {state.name}")


class Method(Enum):
    """A method of the Task service that a state may refuse."""

    START = "start"
    DELETE = "delete"
    KILL = "kill"
    EXEC = "exec in"
    RESIZE = "resize"
    CLOSE_IO = "close the input of"
    PAUSE = "pause"
    RESUME = "resume"
    UPDATE = "update"
    CHECKPOINT = "checkpoint"
    WAIT = "wait for"
    STATE = "get the state of"
    STATS = "get the statistics of"
    PIDS = "list the processes of"


class Refusal(NamedTuple):
    """Why a method is an error: the ttrpc code, and a message that ends as errdefs' errors do."""

    code: int
    message: str


_DEAD = frozenset(
    {_S.SWEEPING, _S.FLUSHING, _S.AWAITING_EXECS, _S.STOPPED, _S.DRAINING, _S.DELETING}
)
ALIVE = frozenset({_S.CREATED, _S.STARTING, _S.RUNNING, _S.DYING})
"""There is a process, and its end is not known."""

ENDED = frozenset({_S.STOPPED, _S.DRAINING, _S.DELETING})
"""Its exit is published, and it is not deleted."""

NOWHERE = frozenset({_S.CREATING, _S.GONE})
"""A client finds no process."""

_ALLOWED: Mapping[Method, frozenset[State]] = {
    Method.START: frozenset({_S.ADDED, _S.CREATED}),
    Method.DELETE: frozenset(_S) - {_S.STARTING, _S.RUNNING},
    Method.KILL: ALIVE,
    Method.EXEC: frozenset({_S.CREATED, _S.STARTING, _S.RUNNING}),
    Method.RESIZE: frozenset({_S.ADDED, *ALIVE}),
    Method.CLOSE_IO: frozenset(_S),
    Method.PAUSE: frozenset({_S.RUNNING}),
    Method.RESUME: frozenset({_S.RUNNING}),
    Method.UPDATE: frozenset({_S.CREATED, _S.STARTING, _S.RUNNING}),
    Method.CHECKPOINT: frozenset({_S.RUNNING}),
    Method.WAIT: frozenset(_S),
    Method.STATE: frozenset(_S),
    Method.STATS: frozenset(_S),
    Method.PIDS: frozenset(_S),
}

_WORDS = {
    State.ADDED: "created",
    State.STARTING: "running",
    State.DYING: "stopped",
    State.FAILED: "stopped",
    **dict.fromkeys(_DEAD, "stopped"),
}


def refusal(method: Method, state: State, *, is_paused: bool = False) -> Refusal | None:
    """Return why `method` is an error in `state`; None if it is none."""
    if state in NOWHERE:
        return Refusal(NOT_FOUND, "process not found: not found")
    if method is Method.KILL and state in _DEAD | {State.FAILED}:
        return Refusal(NOT_FOUND, "process already finished: not found")
    word = _WORDS.get(state, state.value)
    if method is Method.DELETE and state not in _ALLOWED[method]:
        return Refusal(UNKNOWN, "cannot delete a running process: unknown")
    is_refused = state not in _ALLOWED[method]
    if is_paused and method in (Method.EXEC, Method.PAUSE):
        is_refused, word = True, "paused"
    if method is Method.RESUME and not is_paused:
        is_refused = True
    if not is_refused:
        return None
    message = f"cannot {method.value} a {word} process: failed precondition"
    return Refusal(FAILED_PRECONDITION, message)


NOTED = frozenset({_S.STARTING, _S.DYING, _S.DRAINING, _S.FAILED, _S.GONE})
"""A successor of a killed shim has to know them. Of the others one goes on as before them."""

_STATUS = {
    **dict.fromkeys((_S.ADDED, _S.CREATED, _S.STARTING), messages.CREATED),
    **dict.fromkeys((_S.RUNNING, _S.DYING), messages.RUNNING),
    # The client learns of the end by Wait; until then its output may still come.
    **dict.fromkeys((_S.SWEEPING, _S.FLUSHING, _S.AWAITING_EXECS), messages.RUNNING),
    **dict.fromkeys((_S.STOPPED, _S.DRAINING, _S.DELETING, _S.FAILED), messages.STOPPED),
}


def status(state: State, *, is_paused: bool = False, is_pausing: bool = False) -> int:
    """Return the number of containerd.v1.types.Status for a state that a client can see."""
    if state is State.RUNNING and (is_paused or is_pausing):
        return messages.PAUSED if is_paused else messages.PAUSING
    return _STATUS[state]
