"""The life of one supervised process as a table: in this state, on this event, do that. Pure.

`supervisor.container.supervisor` carries the actions out and reports back by events; an action that
does not apply (a `kill --all` for an exec'd process) is done at once. So every order that matters
is here: the exit status before the drain, the drain before the delete, the delete before the end.
"""

from __future__ import annotations

from enum import Enum


class State(Enum):
    """Where the supervised process is."""

    OPENING = "opening its stdio"
    CREATING = "being created"
    STARTING = "being started"
    RUNNING = "running"
    ABORTING = "its creation being given up"
    HELD = "asked to stop while it is being started"
    STOPPING = "asked to stop"
    KILLING = "being killed"
    EMPTYING = "dead, its container's other processes being killed"
    CLEANING = "never created, its remains being deleted"
    DRAINING = "dead, its output being drained"
    DELETING = "dead, its container being deleted"
    ENDED = "ended"


class Event(Enum):
    """What can happen. Each is posted by `shim` or by a signal."""

    OPENED = "every stdio path is open"
    OPEN_FAILED = "a stdio path cannot be opened"
    CREATED = "the runtime has succeeded; pid and console are here"
    CREATE_FAILED = "the runtime has failed or brought no pid or console"
    STARTED = "the runtime has started the process, or that is not our job"
    START_FAILED = "the runtime could not start the process"
    STOP = "somebody wants it to end"
    GRACE_OVER = "the grace period has passed"
    KILL_OVERDUE = "it has been killed and is still not dead"
    INIT_EXITED = "the process has been reaped"
    NEVER_RAN = "the process has been reaped, and its program was never executed"
    EMPTIED = "kill --all has ended"
    CLEANED = "the remains of a failed create are deleted"
    DRAINED = "the workers are done, or were given up"
    DELETED = "the runtime has deleted the container"


class Action(Enum):
    """What `shim` does."""

    CREATE = "run the runtime's create, exec or restore"
    KILL_RUNTIME = "kill the runtime"
    START = "run the runtime's start"
    HURRY_START = "give the runtime's start a few seconds"
    TELL_STARTED = "tell whoever waits that it runs"
    SEND_STOP_SIGNAL = "send the stop signal and start the grace period"
    KILL = "kill it and what it has forked"
    KILL_INIT = "kill it, past the runtime"
    NOTE_STOP_AGAIN = "say that a stop is under way"
    RECORD_EXIT = "write exitStatus"
    EMPTY = "kill every other process of the container"
    CLEAN_UP = "delete what a failed create left, if it is ours"
    DRAIN = "wait for the workers, boundedly"
    DELETE = "delete the container"


Step = tuple[State, tuple[Action, ...]]

_S, _E, _A = State, Event, Action

_DIES: Step = (_S.EMPTYING, (_A.RECORD_EXIT, _A.EMPTY))
# Its program has run. A `start` may return long after that, or be killed at our end.
_DIES_YOUNG: Step = (_S.EMPTYING, (_A.RECORD_EXIT, _A.TELL_STARTED, _A.EMPTY))

TABLE: dict[tuple[State, Event], Step] = {
    (_S.OPENING, _E.OPENED): (_S.CREATING, (_A.CREATE,)),
    (_S.OPENING, _E.OPEN_FAILED): (_S.ENDED, ()),
    (_S.OPENING, _E.STOP): (_S.ENDED, ()),
    (_S.CREATING, _E.CREATED): (_S.STARTING, (_A.START,)),
    (_S.CREATING, _E.CREATE_FAILED): (_S.CLEANING, (_A.CLEAN_UP,)),
    (_S.CREATING, _E.STOP): (_S.ABORTING, (_A.KILL_RUNTIME,)),
    (_S.ABORTING, _E.STOP): (_S.ABORTING, (_A.NOTE_STOP_AGAIN,)),
    (_S.ABORTING, _E.CREATED): (_S.KILLING, (_A.KILL,)),
    # It is not ours to start, so it may run by now, with a handler for the stop signal.
    (_S.ABORTING, _E.STARTED): (_S.STOPPING, (_A.TELL_STARTED, _A.SEND_STOP_SIGNAL)),
    (_S.ABORTING, _E.CREATE_FAILED): (_S.CLEANING, (_A.CLEAN_UP,)),
    (_S.STARTING, _E.STARTED): (_S.RUNNING, (_A.TELL_STARTED,)),
    (_S.STARTING, _E.START_FAILED): (_S.KILLING, (_A.KILL,)),
    (_S.STARTING, _E.STOP): (_S.HELD, (_A.HURRY_START,)),
    (_S.STARTING, _E.INIT_EXITED): _DIES_YOUNG,
    (_S.STARTING, _E.NEVER_RAN): _DIES,
    # Not before `start` has ended: until its exec the process is the runtime's, and dies its way.
    (_S.HELD, _E.STARTED): (_S.STOPPING, (_A.TELL_STARTED, _A.SEND_STOP_SIGNAL)),
    (_S.HELD, _E.START_FAILED): (_S.KILLING, (_A.KILL,)),
    (_S.HELD, _E.STOP): (_S.HELD, (_A.NOTE_STOP_AGAIN,)),
    (_S.HELD, _E.INIT_EXITED): _DIES_YOUNG,
    (_S.HELD, _E.NEVER_RAN): _DIES,
    (_S.RUNNING, _E.STOP): (_S.STOPPING, (_A.SEND_STOP_SIGNAL,)),
    (_S.RUNNING, _E.INIT_EXITED): _DIES,
    (_S.STOPPING, _E.STOP): (_S.STOPPING, (_A.NOTE_STOP_AGAIN,)),
    (_S.STOPPING, _E.GRACE_OVER): (_S.KILLING, (_A.KILL,)),
    (_S.STOPPING, _E.INIT_EXITED): _DIES,
    (_S.KILLING, _E.STOP): (_S.KILLING, (_A.NOTE_STOP_AGAIN,)),
    (_S.KILLING, _E.KILL_OVERDUE): (_S.KILLING, (_A.KILL_INIT,)),
    (_S.KILLING, _E.INIT_EXITED): _DIES,
    (_S.EMPTYING, _E.EMPTIED): (_S.DRAINING, (_A.DRAIN,)),
    (_S.DRAINING, _E.DRAINED): (_S.DELETING, (_A.DELETE,)),
    # The runtime's own error text may be in the pipes: it is drained as well.
    (_S.CLEANING, _E.CLEANED): (_S.DRAINING, (_A.DRAIN,)),
    (_S.DELETING, _E.DELETED): (_S.ENDED, ()),
}

_STOP_IS_UNDER_WAY = frozenset({_S.EMPTYING, _S.CLEANING, _S.DRAINING, _S.DELETING})

LATE: frozenset[Event] = frozenset(
    {_E.GRACE_OVER, _E.KILL_OVERDUE, _E.EMPTIED, _E.START_FAILED, _E.STARTED, _E.STOP}
)
"""Events that may come after the state they belong to: a timer, a child, a person was slower."""


def step(state: State, event: Event) -> Step:
    """Return the next state and what to do on the way, in order.

    Raises:
        AssertionError: The event cannot happen in this state: a bug in `shim`.
    """
    known = TABLE.get((state, event))
    if known is not None:
        return known
    if event is _E.STOP and state in _STOP_IS_UNDER_WAY:
        return state, (_A.NOTE_STOP_AGAIN,)
    if event in LATE:
        return state, ()
    raise AssertionError(f"{event.name} while {state.name}")
