"""The table of the lifecycle: every pair of a state and an event is expected, or is a bug."""

from __future__ import annotations

import itertools

import pytest

from supervisor.container.lifecycle import TABLE, Action, Event, State, Step, step

S, E, A = State, Event, Action
DIES = (S.KILLING_REST, (A.RECORD_EXIT, A.EMPTY))
DIES_YOUNG = (S.KILLING_REST, (A.RECORD_EXIT, A.TELL_STARTED, A.EMPTY))

EXPECTED: dict[State, dict[Event, Step]] = {
    S.OPENING: {
        E.OPENED: (S.CREATING, (A.CREATE,)),
        E.OPEN_FAILED: (S.ENDED, ()),
        E.STOP: (S.ENDED, ()),
    },
    S.CREATING: {
        E.CREATED: (S.STARTING, (A.START,)),
        E.CREATE_FAILED: (S.CLEANING, (A.CLEAN_UP,)),
        E.STOP: (S.ABORTING, (A.KILL_RUNTIME,)),
    },
    S.ABORTING: {
        E.CREATED: (S.KILLING, (A.KILL,)),
        E.STARTED: (S.STOPPING, (A.TELL_STARTED, A.SEND_STOP_SIGNAL)),
        E.CREATE_FAILED: (S.CLEANING, (A.CLEAN_UP,)),
        E.STOP: (S.ABORTING, (A.NOTE_STOP_AGAIN,)),
    },
    S.STARTING: {
        E.STARTED: (S.RUNNING, (A.TELL_STARTED,)),
        E.START_FAILED: (S.KILLING, (A.KILL,)),
        E.STOP: (S.STOP_DEFERRED, (A.HURRY_START,)),
        E.INIT_EXITED: DIES_YOUNG,
        E.NEVER_RAN: DIES,
    },
    S.STOP_DEFERRED: {
        E.STARTED: (S.STOPPING, (A.TELL_STARTED, A.SEND_STOP_SIGNAL)),
        E.START_FAILED: (S.KILLING, (A.KILL,)),
        E.STOP: (S.STOP_DEFERRED, (A.NOTE_STOP_AGAIN,)),
        E.INIT_EXITED: DIES_YOUNG,
        E.NEVER_RAN: DIES,
    },
    S.RUNNING: {
        E.STOP: (S.STOPPING, (A.SEND_STOP_SIGNAL,)),
        E.INIT_EXITED: DIES,
    },
    S.STOPPING: {
        E.STOP: (S.STOPPING, (A.NOTE_STOP_AGAIN,)),
        E.GRACE_OVER: (S.KILLING, (A.KILL,)),
        E.INIT_EXITED: DIES,
    },
    S.KILLING: {
        E.STOP: (S.KILLING, (A.NOTE_STOP_AGAIN,)),
        E.KILL_OVERDUE: (S.KILLING, (A.KILL_INIT,)),
        E.INIT_EXITED: DIES,
    },
    S.KILLING_REST: {
        E.EMPTIED: (S.DRAINING, (A.DRAIN,)),
        E.STOP: (S.KILLING_REST, (A.NOTE_STOP_AGAIN,)),
    },
    S.CLEANING: {
        E.CLEANED: (S.DRAINING, (A.DRAIN,)),
        E.STOP: (S.CLEANING, (A.NOTE_STOP_AGAIN,)),
    },
    S.DRAINING: {
        E.DRAINED: (S.DELETING, (A.DELETE,)),
        E.STOP: (S.DRAINING, (A.NOTE_STOP_AGAIN,)),
    },
    S.DELETING: {
        E.DELETED: (S.ENDED, ()),
        E.STOP: (S.DELETING, (A.NOTE_STOP_AGAIN,)),
    },
    S.ENDED: {},
}
MAY_BE_LATE = {
    E.GRACE_OVER, E.KILL_OVERDUE, E.EMPTIED, E.START_FAILED, E.STARTED, E.STOP,
}  # fmt: skip
PAIRS = list(itertools.product(State, Event))


@pytest.mark.parametrize(("state", "event"), PAIRS, ids=lambda value: value.name)
def test_each_event_does_in_each_state_what_is_expected_or_is_a_bug(
    state: State, event: Event
) -> None:
    if event in EXPECTED[state]:
        assert step(state, event) == EXPECTED[state][event]
    elif event in MAY_BE_LATE:
        assert step(state, event) == (state, ())
    else:
        with pytest.raises(AssertionError, match=f"{event.name} while {state.name}"):
            step(state, event)


def _reachable(start: State) -> set[State]:
    found, new = {start}, [start]
    while new:
        state = new.pop()
        for target, _actions in EXPECTED[state].values():
            if target not in found:
                found.add(target)
                new.append(target)
    return found


def test_every_state_can_be_reached_from_the_first() -> None:
    assert _reachable(S.OPENING) == set(State)


@pytest.mark.parametrize("state", State, ids=lambda state: state.name)
def test_the_end_can_be_reached_from_every_state(state: State) -> None:
    assert S.ENDED in _reachable(state)


def test_no_path_without_a_repeated_stop_or_a_late_word_goes_in_circles() -> None:
    def walk(state: State, path: tuple[State, ...]) -> int:
        assert state not in path
        if state is S.ENDED:
            return 1
        targets = {target for target, _actions in EXPECTED[state].values()} - {state}
        return sum(walk(target, (*path, state)) for target in targets)

    assert walk(S.OPENING, ()) > 1


def test_whoever_died_has_his_status_recorded_before_anything_is_drained_or_deleted() -> None:
    def walk(state: State, done: tuple[Action, ...]) -> None:
        if state is S.ENDED:
            if A.RECORD_EXIT in done:
                ending = [A.RECORD_EXIT, A.EMPTY, A.DRAIN, A.DELETE]
                assert [action for action in done if action in ending] == ending
            elif A.CREATE in done:
                ending = [A.CLEAN_UP, A.DRAIN, A.DELETE]
                assert [action for action in done if action in ending] == ending
            return
        for target, actions in EXPECTED[state].values():
            if target is not state:
                walk(target, (*done, *actions))

    walk(S.OPENING, ())


def test_nobody_is_told_twice_that_it_has_started() -> None:
    def walk(state: State, told: int) -> None:
        assert told <= 1
        for target, actions in EXPECTED[state].values():
            if target is not state:
                walk(target, told + actions.count(A.TELL_STARTED))

    walk(S.OPENING, 0)
    assert all(
        A.TELL_STARTED not in actions
        for state in State
        for target, actions in EXPECTED[state].values()
        if target is state
    )


def test_every_action_is_used() -> None:
    used = {
        action
        for state, event in PAIRS
        if event in EXPECTED[state]
        for action in step(state, event)[1]
    }
    assert used == set(Action)


def test_the_table_has_no_row_that_is_not_expected_here() -> None:
    for state, event in TABLE:
        assert event in EXPECTED[state]
