"""The life of a task's process as a table: orders that clients of containerd rely on."""

from __future__ import annotations

from itertools import product

import pytest

from supervisor.frontends.containerd.task.task_lifecycle import (
    TABLE,
    Action,
    Event,
    Method,
    State,
    refusal,
    status,
    step,
)
from supervisor.wire import messages


def _run(state: State, *events: Event) -> tuple[State, list[Action]]:
    done: list[Action] = []
    for event in events:
        state, actions = step(state, event)
        done.extend(actions)
    return state, done


_ENDS = (Event.EXITED, Event.EMPTIED, Event.FLUSHED, Event.EXECS_ENDED)


def test_an_init_has_create_before_start_before_exit_before_delete() -> None:
    lived = (Event.CREATED, Event.START, Event.STARTED, *_ENDS)
    state, done = _run(State.CREATING, *lived, Event.DELETE, Event.FLUSHED, Event.DELETED)
    assert state is State.GONE
    emitted = [action for action in done if action.name.startswith("EMIT")]
    assert emitted == [
        Action.EMIT_CREATE,
        Action.EMIT_START,
        Action.EMIT_EXIT,
        Action.EMIT_DELETE,
    ]
    assert done.index(Action.FLUSH) < done.index(Action.EMIT_EXIT)
    assert done.index(Action.EMIT_EXIT) < done.index(Action.ANSWER_WAITS)
    assert done.index(Action.DRAIN) < done.index(Action.DELETE) < done.index(Action.CLEAN_UP)


def test_each_request_is_answered_once_whatever_comes_of_it() -> None:
    for events, answer in (
        ((Event.CREATED,), Action.ANSWER_CREATE),
        ((Event.MOUNTED,), Action.ANSWER_CREATE),
        ((Event.FAILED,), Action.REFUSE_CREATE),
    ):
        assert _run(State.CREATING, *events)[1].count(answer) == 1
    for event, answer in (
        (Event.STARTED, Action.ANSWER_START),
        (Event.EXITED, Action.REFUSE_START),
        (Event.FAILED, Action.REFUSE_START),
    ):
        assert answer in _run(State.CREATED, Event.START, event)[1]


def test_a_created_container_is_killed_before_its_delete_is_served() -> None:
    state, done = _run(State.CREATED, Event.DELETE, *_ENDS)
    assert state is State.STOPPED
    assert done[0] is Action.KILL
    assert done[-1] is Action.SERVE_DELETE


def test_every_state_is_left_but_the_last() -> None:
    left = {state for state, _event in TABLE}
    assert set(State) - left == {State.GONE}
    assert {state for state, _actions in TABLE.values()} | {State.CREATING, State.ADDED} == set(
        State
    )


@pytest.mark.parametrize(("state", "event"), list(product(State, Event)))
def test_what_cannot_happen_is_a_bug_and_a_delete_never_is(state: State, event: Event) -> None:
    if (state, event) in TABLE:
        assert step(state, event) == TABLE[state, event]
    elif event is Event.DELETE:
        assert step(state, event) == (state, ())
    else:
        with pytest.raises(AssertionError):
            step(state, event)


@pytest.mark.parametrize("method", list(Method))
def test_nothing_is_found_before_the_creation_and_after_the_delete(method: Method) -> None:
    for state in (State.CREATING, State.GONE):
        why = refusal(method, state)
        assert why is not None
        assert why.code == 5


@pytest.mark.parametrize(
    ("method", "state", "is_paused", "code"),
    [
        (Method.DELETE, State.RUNNING, False, 2),
        (Method.DELETE, State.STOPPED, False, None),
        (Method.KILL, State.STOPPED, False, 5),
        (Method.KILL, State.ADDED, False, 9),
        (Method.KILL, State.RUNNING, True, None),
        (Method.START, State.RUNNING, False, 9),
        (Method.EXEC, State.RUNNING, True, 9),
        (Method.EXEC, State.STOPPED, False, 9),
        (Method.PAUSE, State.RUNNING, False, None),
        (Method.PAUSE, State.RUNNING, True, 9),
        (Method.RESUME, State.RUNNING, True, None),
        (Method.RESUME, State.RUNNING, False, 9),
        (Method.WAIT, State.STOPPED, False, None),
    ],
)
def test_a_method_is_an_error_where_containerd_expects_one(
    method: Method, state: State, is_paused: bool, code: int | None
) -> None:
    why = refusal(method, state, is_paused=is_paused)
    assert (why.code if why else None) == code


def test_a_state_is_paused_only_while_it_runs() -> None:
    assert status(State.RUNNING, is_paused=True) == messages.PAUSED
    assert status(State.RUNNING, is_pausing=True) == messages.PAUSING
    assert status(State.STOPPED, is_paused=True) == messages.STOPPED
    assert status(State.FLUSHING) == messages.RUNNING
