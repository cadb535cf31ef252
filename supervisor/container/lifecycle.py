"""The life of one supervised process as a table: state and event give the next state. Pure.

`supervisor.container.container` carries the actions out, and reports back by events. An action that
does not apply (a `kill --all` for an exec'd process) ends at once. So this table has every order
that matters: exit status before drain, drain before delete, delete before the end.
"""

from __future__ import annotations

from enum import Enum

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class State(Enum):
    """The state of the supervised process."""

    OPENING = "opening its stdio"
    CREATING = "being created"
    STARTING = "being started"
    RUNNING = "running"
    ABORTING = "its creation being given up"
    STOP_DEFERRED = "asked to stop while it is being started"
    STOPPING = "asked to stop"
    KILLING = "being killed"
    KILLING_REST = "dead, its container's other processes being killed"
    CLEANING = "never created, its remains being deleted"
    DRAINING = "dead, its output being drained"
    DELETING = "dead, its container being deleted"
    ENDED = "ended"


class Event(Enum):
    """What can happen. A part of the container posts it, or a verb."""

    OPENED = "every stdio path is open"
    OPEN_FAILED = "a stdio path cannot be opened"
    CREATED = "the runtime has succeeded; pid and console are known"
    CREATE_FAILED = "the runtime has failed, or has sent no pid or console"
    STARTED = "the runtime has started the process, or an engine does that"
    START_FAILED = "the runtime could not start the process"
    STOP = "a client or an operator asks for a stop"
    GRACE_OVER = "the grace period has passed"
    KILL_OVERDUE = "the process was killed and is not dead 5 s later"
    INIT_EXITED = "the process has been reaped"
    NEVER_RAN = "the process has been reaped, and has never executed its program"
    EMPTIED = "kill --all has ended"
    CLEANED = "the remains of a failed create are deleted"
    DRAINED = "each output stream is closed, or was given up"
    DELETED = "the runtime has deleted the container"


class Action(Enum):
    """What the parts of the container do."""

    CREATE = "run the runtime's create, exec or restore"
    KILL_RUNTIME = "kill the runtime"
    START = "run the runtime's start"
    HURRY_START = "limit the runtime's start to a few seconds"
    TELL_STARTED = "tell the front end that the program runs"
    SEND_STOP_SIGNAL = "send the stop signal and start the grace period"
    KILL = "kill the process and what it has forked"
    KILL_INIT = "kill the process without the runtime"
    NOTE_STOP_AGAIN = "log that a stop is under way"
    RECORD_EXIT = "write exitStatus"
    EMPTY = "kill every other process of the container"
    CLEAN_UP = "delete what a failed create has left of this container"
    DRAIN = "wait for the output streams, with a limit"
    DELETE = "delete the container"


Step = tuple[State, tuple[Action, ...]]

_S, _E, _A = State, Event, Action

_DIES: Step = (_S.KILLING_REST, (_A.RECORD_EXIT, _A.EMPTY))
# The program has run. The runtime's `start` may return later, or be killed at the end.
_DIES_YOUNG: Step = (_S.KILLING_REST, (_A.RECORD_EXIT, _A.TELL_STARTED, _A.EMPTY))

TABLE: dict[tuple[State, Event], Step] = {
    (_S.OPENING, _E.OPENED): (_S.CREATING, (_A.CREATE,)),
    (_S.OPENING, _E.OPEN_FAILED): (_S.ENDED, ()),
    (_S.OPENING, _E.STOP): (_S.ENDED, ()),
    (_S.CREATING, _E.CREATED): (_S.STARTING, (_A.START,)),
    (_S.CREATING, _E.CREATE_FAILED): (_S.CLEANING, (_A.CLEAN_UP,)),
    (_S.CREATING, _E.STOP): (_S.ABORTING, (_A.KILL_RUNTIME,)),
    (_S.ABORTING, _E.STOP): (_S.ABORTING, (_A.NOTE_STOP_AGAIN,)),
    (_S.ABORTING, _E.CREATED): (_S.KILLING, (_A.KILL,)),
    # An engine starts it. So it may run by now, with a handler for the stop signal.
    (_S.ABORTING, _E.STARTED): (_S.STOPPING, (_A.TELL_STARTED, _A.SEND_STOP_SIGNAL)),
    (_S.ABORTING, _E.CREATE_FAILED): (_S.CLEANING, (_A.CLEAN_UP,)),
    (_S.STARTING, _E.STARTED): (_S.RUNNING, (_A.TELL_STARTED,)),
    (_S.STARTING, _E.START_FAILED): (_S.KILLING, (_A.KILL,)),
    (_S.STARTING, _E.STOP): (_S.STOP_DEFERRED, (_A.HURRY_START,)),
    (_S.STARTING, _E.INIT_EXITED): _DIES_YOUNG,
    (_S.STARTING, _E.NEVER_RAN): _DIES,
    # Not before `start` has ended: until its exec the process runs the runtime's code.
    (_S.STOP_DEFERRED, _E.STARTED): (_S.STOPPING, (_A.TELL_STARTED, _A.SEND_STOP_SIGNAL)),
    (_S.STOP_DEFERRED, _E.START_FAILED): (_S.KILLING, (_A.KILL,)),
    (_S.STOP_DEFERRED, _E.STOP): (_S.STOP_DEFERRED, (_A.NOTE_STOP_AGAIN,)),
    (_S.STOP_DEFERRED, _E.INIT_EXITED): _DIES_YOUNG,
    (_S.STOP_DEFERRED, _E.NEVER_RAN): _DIES,
    (_S.RUNNING, _E.STOP): (_S.STOPPING, (_A.SEND_STOP_SIGNAL,)),
    (_S.RUNNING, _E.INIT_EXITED): _DIES,
    (_S.STOPPING, _E.STOP): (_S.STOPPING, (_A.NOTE_STOP_AGAIN,)),
    (_S.STOPPING, _E.GRACE_OVER): (_S.KILLING, (_A.KILL,)),
    (_S.STOPPING, _E.INIT_EXITED): _DIES,
    (_S.KILLING, _E.STOP): (_S.KILLING, (_A.NOTE_STOP_AGAIN,)),
    (_S.KILLING, _E.KILL_OVERDUE): (_S.KILLING, (_A.KILL_INIT,)),
    (_S.KILLING, _E.INIT_EXITED): _DIES,
    (_S.KILLING_REST, _E.EMPTIED): (_S.DRAINING, (_A.DRAIN,)),
    (_S.DRAINING, _E.DRAINED): (_S.DELETING, (_A.DELETE,)),
    # The runtime's error text may be in the pipes.
    (_S.CLEANING, _E.CLEANED): (_S.DRAINING, (_A.DRAIN,)),
    (_S.DELETING, _E.DELETED): (_S.ENDED, ()),
}

_STOP_IS_UNDER_WAY = frozenset({_S.KILLING_REST, _S.CLEANING, _S.DRAINING, _S.DELETING})

LATE: frozenset[Event] = frozenset(
    {_E.GRACE_OVER, _E.KILL_OVERDUE, _E.EMPTIED, _E.START_FAILED, _E.STARTED, _E.STOP}
)
"""Events that may come after the state that they belong to: from a timer, a child, a client."""


def step(state: State, event: Event) -> Step:
    """Return the next state, and the actions in their order.

    Raises:
        AssertionError: The event cannot happen in this state. That is a bug.
    """
    known = TABLE.get((state, event))
    if known is not None:
        return known
    if event is _E.STOP and state in _STOP_IS_UNDER_WAY:
        return state, (_A.NOTE_STOP_AGAIN,)
    if event in LATE:
        return state, ()
    raise AssertionError(f"{event.name} while {state.name}")


class Notice(Enum):
    """The events that a container reports to subscribers, see `ContainerApi.subscribe`."""

    CREATED = "the runtime has created the process"
    STARTED = "the program runs"
    EXITED = "the process has ended, and its status is on disk"
    OOM = "the kernel has killed processes of the container for want of memory"
    EMPTIED = "no other process of the container is left, and its delete is awaited"
    DRAINED = "the output is at its sinks"
    DELETED = "the runtime has deleted the container"
    STREAM_TROUBLE = "a stream moves nothing, or moves again"
    WORKER_RESPAWNED = "a worker has died, and another worker continues"


class Machine:
    """The state of one container, and the events that wait for their step."""

    def __init__(
        self, on_entered: Callable[[State], None], carry_out: Callable[[Action], None]
    ) -> None:
        """Begin with OPENING. `on_entered` is called with each next state before its actions."""
        self.state = State.OPENING
        self._on_entered = on_entered
        self._carry_out = carry_out
        self._events: list[Event] = []
        self._is_taking_steps = False

    def post(self, event: Event) -> None:
        """Take the step for `event`, then for each event that the actions have posted."""
        self._events.append(event)
        if self._is_taking_steps:
            return
        self._is_taking_steps = True
        try:
            while self._events:
                self.state, actions = step(self.state, self._events.pop(0))
                self._on_entered(self.state)
                for action in actions:
                    self._carry_out(action)
        finally:
            self._is_taking_steps = False
