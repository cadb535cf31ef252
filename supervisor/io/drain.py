"""How long the supervisor waits for output after the container's death.

`judge` is the rule, pure; `DrainWatch` looks at the streams and applies it.

Two things can keep a stream from its end. A stray process may hold the pipe: then nothing is
pending, and silence of all streams for 300 ms, or 5 s of chatter, is enough to hang up on it. Or
the client may not read: then bytes are pending, in the pipe or in the client's fifo, they may be
the container's last words, and only 5 s without any progress end the wait. A reader of our own
stdout (`forkshim run web | less`) may take all the time it wants, until a stop.
What the container had written when it died is never cut short by a stray's chatter.

A worker that could move something in such 5 s and does not (stopped by SIGSTOP, say) is no
client's fault: it is replaced once, and its successor has the same time.

An engine's client that has left does not come back, so nothing is kept for it: what is in its fifo
does not count, and where the fifo is full it is looked at whether anybody but us has it open.

An output that attach clients hear waits for them behind its own sink. So the clients are given up
first, and the sink has its time after that.

While the container of an exec'd process lives none of these bounds holds: others of the container
may have the process's streams, and their output ends when they end.
"""

from __future__ import annotations

import time
from enum import Enum

from supervisor.io.attach.branch import ATTACH_SUFFIX
from supervisor.io.stream import StreamPhase
from workers.common.records import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from supervisor.io.stream import Stream
    from supervisor.io.stream_set import StreamSet

IDLE_S = 0.3
STRAY_CAP_S = 5.0
STALLED_S = 5.0
CLIENTS_STALLED_S = 3.0
"""For attach clients, of which one may be stopped: Podman's `kill` fails after 5 s without an exit
file. What is in a client's queue by then, up to 1 MiB, is not lost: it stays readable."""

FIRST_LOOK_S = 0.002
LAST_LOOK_S = 0.05
CLOGGED_S = 0.03
"""The rule is asked again after 2 ms, 4 ms, ... 50 ms while a drain lasts: that a client has read a
fifo empty is no event. The end of a worker is one."""


class Verdict(Enum):
    """What to do with one stream now.

    After STRAY it is hung up and the rest of the rule goes on: what lies in its fifo may be unread.
    After STUCK another worker takes over. After CLOGGED one that sees whether there is a client.
    """

    WAIT = "wait"
    DONE = "done"
    CLOGGED = "its fifo is full, which may have no client"
    STRAY = "a process that outlived the container holds it open"
    STUCK = "its worker does not move"
    STALLED = "the client does not take it (no reader, or no room), what is left is lost"


@dataclass(frozen=True, slots=True)
class StreamView:
    """One output stream as the supervisor sees it; times in seconds, monotonic.

    Attributes:
        is_reported: Its worker has sent the completion record, or we have hung up.
        is_hung_up: We are about to: only its worker has still to die.
        has_pending: Something is not yet taken from the container's side, or is on its way.
        unread_bytes: In the client's fifo; 0 for other sinks.
        is_last_word_out: All that was pending when the container died has been copied.
        is_patient: Only a stop may end the wait for a reader, not the clock.
        died_at_s: When the container died.
        moved_at_s: When a byte of it last moved, on either side.
        any_moved_at_s: When a byte of any stream last moved: one stray may hold several.
        is_stuck: Its worker, the same one since then and not replaced by us, could move something.
        stalled_s: How long nothing may move.
        is_clogged: It may be that no client has its full fifo open, and that was not looked at yet.
        idle_s: So long a silence of all streams tells that what is left is a stray's.
    """

    is_reported: bool
    is_hung_up: bool
    has_pending: bool
    unread_bytes: int
    is_last_word_out: bool
    is_patient: bool
    died_at_s: float
    moved_at_s: float
    any_moved_at_s: float
    is_stuck: bool = False
    stalled_s: float = STALLED_S
    is_clogged: bool = False
    idle_s: float = IDLE_S


def judge(view: StreamView, now_s: float) -> Verdict:
    """Say whether to go on waiting for this stream."""
    quiet_s = now_s - max(view.moved_at_s, view.died_at_s)
    has_stalled = quiet_s >= view.stalled_s and not view.is_patient
    if view.is_reported and view.unread_bytes == 0:
        return Verdict.DONE
    if view.is_stuck and quiet_s >= STALLED_S:
        return Verdict.STUCK
    if view.is_reported or view.is_hung_up:
        return Verdict.STALLED if has_stalled else Verdict.WAIT
    if view.is_clogged and quiet_s >= CLOGGED_S:
        return Verdict.CLOGGED
    has_had_its_time = now_s - view.died_at_s >= STRAY_CAP_S
    if not view.has_pending:
        all_quiet_s = now_s - max(view.any_moved_at_s, view.died_at_s)
        return Verdict.STRAY if all_quiet_s >= view.idle_s or has_had_its_time else Verdict.WAIT
    if view.is_last_word_out and has_had_its_time:
        return Verdict.STRAY
    return Verdict.STALLED if has_stalled else Verdict.WAIT


class DrainWatch:
    """Watches the output streams from the container's death on. Borrows the streams."""

    def __init__(
        self, stream_set: StreamSet, *, is_read: bool = True, idle_s: float = IDLE_S
    ) -> None:
        """Note what each stream still has to move: the container's last word.

        `is_read`: wait until the clients have read their fifos empty, those who are away, too.
        `idle_s`: see `StreamView`.
        """
        self._idle_s = idle_s
        self._stream_set = stream_set
        self._is_read = is_read
        self._died_at_s = time.monotonic()
        self._moved_at_s: dict[str, float] = {}
        self._look_s = FIRST_LOOK_S
        self._seen: dict[str, tuple[int, int]] = {}
        self._last_word_at: dict[str, int] = {}
        self._replaced: set[str] = set()
        self._looked_for: set[str] = set()
        self._given_up: dict[str, float] = {}
        self._done: set[str] = set()
        for stream in stream_set.outputs:
            # All that it had written when it died is in its pipe: no more than the pipe holds.
            most_bytes = stream.capacity_bytes + stream_set.in_flight_bytes(stream)
            self._last_word_at[stream.name] = stream_set.copied_bytes(stream) + most_bytes

    def begin(self) -> None:
        """Start the clocks again: killing the rest of the container may have taken a while."""
        self._died_at_s = time.monotonic()

    def next_look_s(self) -> float:
        """Return when to judge again, in seconds from now."""
        look_s, self._look_s = self._look_s, min(self._look_s * 2, LAST_LOOK_S)
        return look_s

    @property
    def is_over(self) -> bool:
        """Whether no output stream is waited for any more."""
        return all(
            stream.name in self._done or self._is_left(stream)
            for stream in self._stream_set.outputs
        )

    def _is_left(self, stream: Stream) -> bool:
        """Say whether it was given up, and what was left is counted, if that can be done."""
        if stream.name not in self._given_up:
            return False
        waited_s = time.monotonic() - self._given_up[stream.name]
        return stream.is_closed or waited_s >= STALLED_S

    @property
    def is_last_word_out(self) -> bool:
        """Whether all that was pending at the end has been copied, or `STALLED_S` have passed."""
        return time.monotonic() - self._died_at_s >= STALLED_S or all(
            stream.is_closed
            or self._stream_set.copied_bytes(stream) >= self._last_word_at[stream.name]
            for stream in self._stream_set.outputs
        )

    def judge(self, *, is_stopping: bool, is_bounded: bool = True) -> list[tuple[Stream, Verdict]]:
        """Return the streams that need an action now, with the reason.

        Args:
            is_stopping: A stop was asked for, so the drain waits for no reader any more.
            is_bounded: No process of the container can have the streams open any more.
        """
        judged: list[tuple[Stream, Verdict]] = []
        now_s = time.monotonic()
        for stream in self._stream_set.outputs:
            self._note_movement(stream, now_s)
        for stream in self._stream_set.outputs:
            if stream.name in self._done or stream.name in self._given_up:
                continue
            verdict = judge(self._view(stream, is_stopping), now_s)
            if verdict is Verdict.STALLED and self._waits_for_branch(stream):
                continue
            if verdict is Verdict.STRAY and self._is_of_open_trunk(stream):
                continue  # empty: what it brings is still on its way through the other stream
            if verdict is Verdict.DONE:
                self._done.add(stream.name)
            elif verdict is not Verdict.WAIT and is_bounded:
                judged.append((stream, verdict))
                if verdict is Verdict.STALLED:
                    self._given_up[stream.name] = now_s
                    trunk = stream.name.removesuffix(ATTACH_SUFFIX)
                    self._moved_at_s[trunk] = now_s
                elif verdict is Verdict.STUCK:
                    self._replaced.add(stream.name)
                    self._moved_at_s[stream.name] = now_s
                elif verdict is Verdict.CLOGGED:
                    self._looked_for.add(stream.name)
        return judged

    def _waits_for_branch(self, stream: Stream) -> bool:
        branch = self._stream_set.branch_of(stream)
        return branch is not None and not (branch.is_closed or branch.name in self._given_up)

    def _is_of_open_trunk(self, stream: Stream) -> bool:
        trunks = (trunk.name + ATTACH_SUFFIX for trunk in self._stream_set.trunks)
        return stream.name in trunks

    def _note_movement(self, stream: Stream, now_s: float) -> None:
        seen = (
            self._stream_set.copied_bytes(stream),
            self._stream_set.unread_bytes(stream) if self._is_read else 0,
        )
        if self._seen.get(stream.name) != seen:
            self._seen[stream.name] = seen
            self._moved_at_s[stream.name] = now_s

    def _view(self, stream: Stream, is_stopping: bool) -> StreamView:
        copied, unread = self._seen[stream.name]
        has_pending = not stream.is_closed and (
            stream.has_pending() or self._stream_set.in_flight_bytes(stream) > 0
        )
        if not has_pending:  # it was seen empty: whatever comes now is a stray's
            self._last_word_at[stream.name] = 0
        return StreamView(
            is_reported=stream.is_closed,
            is_hung_up=stream.phase is not StreamPhase.OPEN,
            has_pending=has_pending,
            unread_bytes=unread,
            is_last_word_out=copied >= self._last_word_at[stream.name],
            is_patient=stream.is_passthrough and not is_stopping,
            died_at_s=self._died_at_s,
            moved_at_s=self._moved_at_s[stream.name],
            any_moved_at_s=max(self._moved_at_s.values()),
            stalled_s=CLIENTS_STALLED_S if stream.has_attach_sink else STALLED_S,
            is_stuck=(
                stream.name not in self._replaced
                and self._stream_set.is_worker_stuck(stream, STALLED_S)
            ),
            is_clogged=(
                not self._is_read
                and stream.name not in self._looked_for
                and stream.has_own_fifo
                and not stream.has_room()
            ),
            idle_s=self._idle_s,
        )
