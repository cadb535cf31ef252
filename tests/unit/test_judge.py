"""The rule that ends the wait for output after the container's death."""

from __future__ import annotations

import pytest

from supervisor.io.drain import CLIENTS_STALLED_S, StreamView, Verdict, judge
from workers.common.records import replace

W, D, STRAY, STALLED = Verdict.WAIT, Verdict.DONE, Verdict.STRAY, Verdict.STALLED
STUCK, CLOGGED = Verdict.STUCK, Verdict.CLOGGED


def _view(
    *,
    reported: bool = False,
    pending: bool = False,
    unread: int = 0,
    last_word: bool = True,
    patient: bool = False,
    moved: float = 100.0,
    hung_up: bool = False,
    other_moved: float = 0.0,
    stuck: bool = False,
    clogged: bool = False,
) -> StreamView:
    return StreamView(
        is_reported=reported,
        is_hung_up=hung_up,
        has_pending=pending,
        unread_bytes=unread,
        is_last_word_out=last_word,
        is_patient=patient,
        died_at_s=100.0,
        moved_at_s=moved,
        any_moved_at_s=max(moved, other_moved),
        is_stuck=stuck,
        is_clogged=clogged,
    )


@pytest.mark.parametrize(
    ("view", "after_s", "verdict"),
    [
        # Reported, and read: done, whatever the time.
        (_view(reported=True), 0.0, D),
        (_view(reported=True, patient=True), 99.0, D),
        (_view(reported=True, pending=True), 0.0, D),
        # Reported, but unread in the client's fifo.
        (_view(reported=True, unread=1), 4.99, W),
        (_view(reported=True, unread=1), 5.0, STALLED),
        (_view(reported=True, unread=1, moved=104.0), 5.0, W),
        (_view(reported=True, unread=1, moved=104.0), 9.0, STALLED),
        (_view(reported=True, unread=1, patient=True), 1000.0, W),
        # Pending, and its worker could move it.
        (_view(pending=True, last_word=False, stuck=True), 4.99, W),
        (_view(pending=True, last_word=False, stuck=True), 5.0, STUCK),
        (_view(pending=True, last_word=False, stuck=True, moved=104.0), 5.0, W),
        (_view(pending=True, last_word=False, stuck=True, patient=True), 5.0, STUCK),
        # Its fifo is full, and it is not known whether it has a client.
        (_view(pending=True, last_word=False, clogged=True), 0.02, W),
        (_view(pending=True, last_word=False, clogged=True), 0.04, CLOGGED),
        (_view(pending=True, last_word=False, clogged=True, moved=100.02), 0.04, W),
        (_view(reported=True, clogged=True), 0.04, D),
        # Nothing pending: somebody holds the pipe open and is silent.
        (_view(), 0.0, W),
        (_view(), 0.29, W),
        (_view(), 0.31, STRAY),
        (_view(patient=True), 0.31, STRAY),
        (_view(moved=50.0), 0.29, W),
        (_view(moved=100.2), 0.4, W),
        (_view(moved=100.2), 0.51, STRAY),
        # The same, of an engine whose clients leave with the process: nothing is waited for.
        (replace(_view(), idle_s=0.0), 0.0, STRAY),
        (replace(_view(pending=True), idle_s=0.0), 0.31, W),
        # Nothing pending, but its other stream is chattered on.
        (_view(other_moved=100.2), 0.4, W),
        (_view(other_moved=100.2), 0.51, STRAY),
        (_view(other_moved=104.9), 5.0, STRAY),
        # Hung up: its worker has to die first, and what it has delivered may still be unread.
        (_view(hung_up=True), 4.99, W),
        (_view(hung_up=True), 5.0, STALLED),
        (_view(hung_up=True, reported=True), 0.31, D),
        (_view(hung_up=True, reported=True, unread=1), 4.99, W),
        (_view(hung_up=True, reported=True, unread=1), 5.0, STALLED),
        # Nothing pending: somebody chatters, for five seconds at most.
        (_view(moved=104.9), 4.99, W),
        (_view(moved=104.9), 5.0, STRAY),
        (_view(moved=104.9, patient=True), 5.0, STRAY),
        # Pending, and the container's own words are out: chatter.
        (_view(pending=True, moved=104.9), 4.99, W),
        (_view(pending=True, moved=104.9), 5.0, STRAY),
        (_view(pending=True, patient=True), 5.0, STRAY),
        # Pending, and they may be the container's last words: as long as anything moves.
        (_view(pending=True, last_word=False), 4.99, W),
        (_view(pending=True, last_word=False), 5.0, STALLED),
        (_view(pending=True, last_word=False, moved=150.0), 54.9, W),
        (_view(pending=True, last_word=False, moved=150.0), 55.0, STALLED),
        (_view(pending=True, last_word=False, patient=True), 1000.0, W),
    ],
)
def test_the_wait_for_a_stream_ends_by_the_rule(
    view: StreamView, after_s: float, verdict: Verdict
) -> None:
    assert judge(view, 100.0 + after_s) is verdict


@pytest.mark.parametrize(("after_s", "verdict"), [(2.99, W), (3.0, STALLED)])
def test_attach_clients_have_less_time_than_others(after_s: float, verdict: Verdict) -> None:
    """Podman's kill waits 5 s for the exit file."""
    assert CLIENTS_STALLED_S == 3.0
    view = replace(_view(pending=True, last_word=False), stalled_s=CLIENTS_STALLED_S)
    assert judge(view, 100.0 + after_s) is verdict
