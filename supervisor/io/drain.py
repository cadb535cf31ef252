"""How long the supervisor waits for output after the container's death.

`judge` is the rule, a pure function. `DrainWatch` looks at the streams and applies it.

Two things can keep a stream open:

- A stray process holds the pipe. Then nothing is pending. The supervisor hangs up when all streams
  were silent for 300 ms, or after 5 s of the stray's output. The stray never cuts short what the
  container had written when it died.
- The client does not read. Then bytes are pending, in the pipe or in the client's fifo, and they
  may be the container's last output. The supervisor gives up after 5 s without any progress. A
  reader of the supervisor's own stdout (`forkshim run web | less`) has no limit until a stop.

A worker that could move bytes for 5 s and does not (stopped by SIGSTOP, for example) is not the
client's fault. The supervisor replaces it once, and the next worker has the same time.

An engine's client that has left does not come back, so nothing is kept for it. Bytes in its fifo do
not count. Where the fifo is full, the supervisor checks whether another process has it open.

An output with attach clients waits for them before its own sink. So the supervisor gives up the
clients first, and the sink has its time after that.

None of these bounds holds for an exec'd process while its container lives. Other processes of the
container may have its streams, which end with them.
"""

from __future__ import annotations

import time
from enum import Enum

from supervisor.io.attach.branch import is_branch, trunk_of
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
"""For attach clients, of which one may be stopped. Podman's `kill` fails after 5 s without an exit
file. Bytes in a client's queue (up to 1 MiB) stay readable after that."""

FIRST_LOOK_S = 0.002
LAST_LOOK_S = 0.05
CLOGGED_S = 0.03
"""While a drain lasts, the rule is applied again after 2 ms, 4 ms, ... 50 ms: no event tells that a
client has emptied a fifo. The end of a worker is an event."""


class Verdict(Enum):
    """What to do with one stream now.

    STRAY: hang up, and apply the rule again, because bytes in its fifo may be unread.
    STUCK: replace the worker. CLOGGED: replace the worker if the fifo still has a client.
    """

    WAIT = "wait"
    DONE = "done"
    CLOGGED = "its fifo is full and may have no client"
    STRAY = "a process that outlived the container holds it open"
    STUCK = "its worker copies nothing"
    STALLED = "the client does not read it (no reader, or no room); the rest is lost"


@dataclass(frozen=True, slots=True)
class StreamView:
    """One output stream as the supervisor sees it; times in seconds, monotonic.

    Attributes:
        is_reported: Its worker has sent the completion record, or the supervisor has hung up.
        is_hung_up: The supervisor has killed the worker and has not reaped it yet.
        has_pending: Bytes are in the container's pipe, or in flight in the worker.
        unread_bytes: Bytes in the client's fifo; 0 for other sinks.
        is_last_word_out: All that was pending when the container died has been copied.
        is_patient: Only a stop ends the wait for a reader, not the clock.
        died_at_s: When the container died.
        moved_at_s: When a byte of it last moved, on either side.
        any_moved_at_s: When a byte of any stream last moved: one stray may hold several.
        is_stuck: Its worker could have moved bytes since then. Never a replacement.
        stalled_s: How long nothing may move.
        is_clogged: Its fifo is full, and the supervisor has not yet checked for a client.
        idle_s: After this much silence of all streams, only a stray holds them open.
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
    """Return whether to wait for this stream any longer, and if not, why."""
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
    """Watches the output streams after the container's death. Borrows the streams."""

    def __init__(
        self, stream_set: StreamSet, *, is_read: bool = True, idle_s: float = IDLE_S
    ) -> None:
        """Note how many bytes each stream must copy: the container's last output.

        Args:
            stream_set: The streams, borrowed.
            is_read: Wait until the clients have emptied their fifos, also clients that have left.
            idle_s: Seconds, see `StreamView`.
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
            self._note_last_word(stream)

    def _note_last_word(self, stream: Stream) -> int:
        """Return where the container's last output ends; noted at the first call for a stream.

        A branch for attach clients may come during the drain, with the first byte.
        """
        if stream.name not in self._last_word_at:
            # What the container had written when it died is in the pipe or in the worker.
            most_bytes = stream.capacity_bytes + self._stream_set.in_flight_bytes(stream)
            copied_bytes = self._stream_set.copied_bytes(stream)
            self._last_word_at[stream.name] = copied_bytes + most_bytes
        return self._last_word_at[stream.name]

    def begin(self) -> None:
        """Start the clocks again: killing the rest of the container may have taken seconds."""
        self._died_at_s = time.monotonic()

    def next_look_s(self) -> float:
        """Return when to call `judge` again, in seconds from now."""
        look_s, self._look_s = self._look_s, min(self._look_s * 2, LAST_LOOK_S)
        return look_s

    @property
    def is_over(self) -> bool:
        """Whether the supervisor waits for no output stream any more."""
        return all(
            stream.name in self._done or self._is_left(stream)
            for stream in self._stream_set.outputs
        )

    def _is_left(self, stream: Stream) -> bool:
        """Return whether it was given up, and its rest was counted or cannot be."""
        if stream.name not in self._given_up:
            return False
        waited_s = time.monotonic() - self._given_up[stream.name]
        return stream.is_closed or waited_s >= STALLED_S

    @property
    def is_last_word_out(self) -> bool:
        """Whether all that was pending at the end has been copied, or `STALLED_S` have passed."""
        return time.monotonic() - self._died_at_s >= STALLED_S or all(
            stream.is_closed
            or self._stream_set.copied_bytes(stream) >= self._note_last_word(stream)
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
                continue  # it is empty because its bytes are still in the trunk
            if verdict is Verdict.DONE:
                self._done.add(stream.name)
            elif verdict is not Verdict.WAIT and is_bounded:
                judged.append((stream, verdict))
                if verdict is Verdict.STALLED:
                    self._given_up[stream.name] = now_s
                    self._moved_at_s[trunk_of(stream.name)] = now_s
                elif verdict is Verdict.STUCK:
                    self._replaced.add(stream.name)
                    self._moved_at_s[stream.name] = now_s
                elif verdict is Verdict.CLOGGED:
                    self._looked_for.add(stream.name)
        return judged

    def _waits_for_branch(self, stream: Stream) -> bool:
        return any(
            not (branch.is_closed or branch.name in self._given_up)
            for branch in self._stream_set.branches_of(stream)
        )

    def _is_of_open_trunk(self, stream: Stream) -> bool:
        trunks = (trunk.name for trunk in self._stream_set.trunks)
        return is_branch(stream.name) and trunk_of(stream.name) in trunks

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
        if not has_pending:  # the pipe was empty, so later bytes are a stray's
            self._last_word_at[stream.name] = 0
        return StreamView(
            is_reported=stream.is_closed,
            is_hung_up=stream.phase is not StreamPhase.OPEN,
            has_pending=has_pending,
            unread_bytes=unread,
            is_last_word_out=copied >= self._note_last_word(stream),
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
