"""The verbs of a container: which is an error in which state, and in what words."""

from __future__ import annotations

import pytest

from supervisor.container.api import Verb, refusal
from supervisor.container.lifecycle import State

CREATED = {State.STARTING, State.STOP_DEFERRED, State.RUNNING, State.STOPPING, State.KILLING}
DEAD = {State.KILLING_REST, State.CLEANING, State.DRAINING, State.DELETING}


ALLOWED = {
    Verb.START: {State.STARTING},
    Verb.STOP: set(State) - {State.ENDED},
    Verb.SIGNAL: CREATED,
    Verb.EXEC: {State.RUNNING},
    Verb.RESIZE: CREATED | DEAD,
    Verb.CLOSE_STDIN: CREATED | DEAD,
    Verb.REOPEN_LOGS: CREATED | DEAD,
    Verb.ATTACH: CREATED | DEAD,
    Verb.PAUSE: {State.RUNNING},
    Verb.RESUME: {State.RUNNING, State.STOPPING, State.KILLING},
    Verb.UPDATE: CREATED,
    Verb.CHECKPOINT: {State.RUNNING, State.STOPPING, State.KILLING},
    Verb.DELETE: {State.DRAINING},
    Verb.WAIT: set(State) - {State.ENDED},
    Verb.STATE: set(State),
}


def test_every_verb_is_in_the_table() -> None:
    assert set(ALLOWED) == set(Verb)


@pytest.mark.parametrize(("verb", "allowed"), ALLOWED.items())
def test_a_verb_is_an_error_in_every_other_state(verb: Verb, allowed: set[State]) -> None:
    assert {state for state in State if not refusal(verb, state)} == allowed


@pytest.mark.parametrize(
    ("verb", "state", "said"),
    [
        (Verb.EXEC, State.CREATING, "exec: not created yet"),
        (Verb.EXEC, State.STARTING, "exec: not started yet"),
        (Verb.PAUSE, State.STOPPING, "pause: about to stop"),
        (Verb.START, State.RUNNING, "start: started already"),
        (Verb.CLOSE_STDIN, State.ENDED, "close stdin: stopped already"),
        (Verb.DELETE, State.RUNNING, "delete: not stopped yet"),
        (Verb.DELETE, State.ENDED, "delete: deleted already"),
        (Verb.UPDATE, State.DRAINING, "update: stopped already"),
    ],
)
def test_the_words_name_the_verb_and_the_reason(verb: Verb, state: State, said: str) -> None:
    assert refusal(verb, state) == said
