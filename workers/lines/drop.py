"""What becomes of a stream whose sink takes nothing, when its container must not wait.

Whole lines are dropped, and counted to the byte: what came out and what was dropped is what went
in, wherever a worker was killed. `DROP_NEW` keeps what came first, `DROP_OLD` what came last, each
as much as the line buffer holds. Of a line that is longer than that a piece stays, and its end.

What has arrived behind the buffer's last byte is nobody's until a commit says what it is. To take
only its beginning, the rest is written back into the staging pipe, which is empty then and larger;
whoever is killed in between has taken exactly that much.
"""

from __future__ import annotations

import math
import os
import select
import time

from workers.copy import splice
from workers.lines import copy as lines
from workers.lines.buffer import BLOCK, DROP_OLD
from workers.lines.reader import Filled, LineReader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from workers.lines.buffer import BufferState, LineBuffer
    from workers.process.context import WorkerContext

    class StallableSink(lines.RecordSink, Protocol):
        """Where records go that may be dropped before."""

        @property
        def stall_fd(self) -> int:
            """What is writable when there is room again; -1 if writing never has to wait."""

        @property
        def is_unfinished(self) -> bool:
            """Whether some bytes after `consumed` may be in the sink."""

        @property
        def rest_bytes(self) -> int:
            """What is before `consumed` and not yet in the sink."""

        def open(self) -> None:
            """Get ready to write; finish what a killed worker has begun."""

        def flush(self) -> None:
            """Write the rest; BlockingIOError if there is no room."""

        def pass_over(self, position: int) -> None:
            """Have nothing more to do with the bytes before `position`."""

        def take_back(self) -> bytes:
            """Return the rest, which is not in the sink and will not be."""

        def close(self) -> None:
            """Do what has to be done after the last record."""


CALM_S = 1.0
"""So long after the last drop the sink counts as well again."""

NOTHING, LINE, BEGINNING = 0, 1, 2
"""`BufferState.skipping`: what of the line that comes next is dropped, all or all but its end."""

_MOST_LEFT_BYTES = 4 << 20
_NO_ROOM_S = 0.01


class DroppingReader(LineReader):
    """An intake that never refuses: what there is no room for is dropped."""

    def __init__(
        self, route: splice.Route, buffer: LineBuffer, tally: splice.Tally, sink: StallableSink
    ) -> None:
        """As `Intake`; `sink` says what it has got."""
        self._sink = sink
        self._most_bytes = buffer.longest_line_bytes
        super().__init__(route, buffer, tally)

    def leave(self) -> None:
        """Drop all that is in the buffer, and what the sink has not passed on."""
        state = self._buffer.read()
        self._drop_up_to(state, state.taken)
        self._drop(self._buffer.read(), self._sink.take_back(), NOTHING)

    def _keep(self, arrived: int) -> None:
        """Decide about what has arrived, by nothing but what outlives us."""
        state = self._buffer.read()
        content = self._buffer.arrived(arrived)
        if state.skipping:
            self._skip(state, content)
        elif self._room(state) >= arrived or self._make_way(state, arrived):
            super()._keep(arrived)
        else:
            self._keep_what_fits(self._buffer.read(), content)

    def _room(self, state: BufferState) -> int:
        return self._most_bytes - (state.taken - self._sink.consumed)

    def _make_way(self, state: BufferState, arrived: int) -> bool:
        """Drop old lines for what has arrived; False if that is not enough."""
        if self._buffer.policy != DROP_OLD or self._sink.is_unfinished:
            return False
        consumed = self._sink.consumed
        wanted = consumed + arrived - self._room(state)
        newline = self._buffer.first_newline(wanted - 1, state.taken)
        if newline < 0:
            newline = self._buffer.last_newline(consumed, state.taken)
        # Of a line whose beginning is in the sink the end stays, or it would join the next one.
        front = newline + int(self._buffer.begins_line(consumed))
        if newline >= 0 and front > consumed:
            self._drop_up_to(state, front)
        return front >= wanted

    def _drop_up_to(self, state: BufferState, front: int) -> None:
        consumed = self._sink.consumed
        passed = self._buffer.copy(consumed, front)
        self._buffer.commit(
            state._replace(
                front=front,
                passed_bytes=state.passed_bytes + len(passed),
                dropped_bytes=state.dropped_bytes + len(passed),
                dropped_lines=state.dropped_lines + passed.count(b"\n"),
            )
        )
        self._sink.pass_over(front)

    def _keep_what_fits(self, state: BufferState, content: bytes) -> None:
        fitting = content.rfind(b"\n", 0, max(self._room(state), 0)) + 1
        if fitting:
            self._put_back(content[fitting:])
            super()._keep(fitting)
            return
        newline = content.find(b"\n")
        last = self._buffer.last_newline(self._sink.consumed, state.taken)
        if self._buffer.begins_line(state.taken):
            self._drop(state, content, LINE)
        elif last >= 0 and not self._sink.is_unfinished:
            # The line that does not fit began in the buffer, where it is the last one.
            self._drop(
                state._replace(taken=last + 1),
                self._buffer.copy(last + 1, state.taken) + content,
                LINE,
            )
        elif newline < 0:
            self._drop(state, content, BEGINNING)
        elif newline == 0:
            self._put_back(content[1:])
            super()._keep(1)  # there is always room for that
        else:
            self._put_back(content[newline:])
            self._drop(state, content[:newline], NOTHING)

    def _skip(self, state: BufferState, content: bytes) -> None:
        newline = content.find(b"\n")
        if newline < 0:
            self._drop(state, content, state.skipping)
            return
        cut = newline + 1 if state.skipping == LINE else newline
        room = self._room(state)
        is_too_much = len(content) - cut > room and content.find(b"\n", cut, cut + max(room, 0)) < 0
        if state.skipping == LINE and is_too_much and self._buffer.policy != DROP_OLD:
            self._drop(state, content, LINE)  # not even one line has room
            return
        self._put_back(content[cut:])
        self._drop(state, content[:cut], NOTHING)

    def _put_back(self, content: bytes) -> None:
        if content:
            os.write(self._staging[1], content)

    def _drop(self, state: BufferState, content: bytes, skipping: int) -> None:
        """Drop what has arrived; `skipping`: if it is not at a line's end."""
        self._buffer.commit(
            state._replace(
                pending=0,
                skipping=NOTHING if content.endswith(b"\n") else skipping,
                dropped_bytes=state.dropped_bytes + len(content),
                dropped_lines=state.dropped_lines + content.count(b"\n"),
            )
        )


def copy(
    context: WorkerContext, route: splice.Route, buffer: LineBuffer, sink: StallableSink
) -> bool:
    """Copy to end of file; what the sink does not take in time is dropped, by `buffer.policy`.

    The task DROP_UNTIL leaves the sink alone until its time; COUNT_REST drops what there is, and
    that is the end. Returns False before the end if the sink has everything again and
    nothing was dropped for a while: what was can be told, and another worker go on.

    Raises:
        splice.CopyError: The source failed.
        OSError: The sink did.
    """
    return _Copy(context, route, buffer, sink).run()


class _Copy:
    def __init__(
        self, context: WorkerContext, route: splice.Route, buffer: LineBuffer, sink: StallableSink
    ) -> None:
        self._context = context
        self._route = route
        self._buffer = buffer
        self._sink = sink
        self._reader = DroppingReader(route, buffer, context, sink)
        self._ends = lines.EndFinder(buffer, sink)
        self._held_until_s = context.task.until_s
        self._is_open = False
        self._is_stalled = False
        self._seemed_to_have_room = False
        self._is_quiet = False
        self._is_over = False
        self._dropped = buffer.read().dropped_bytes
        self._dropped_at_s = -math.inf
        self._end = 0
        self._waits_for_more = False
        self._count()
        context.copied_bytes = 0

    def run(self) -> bool:
        if self._context.is_to_count:
            self._leave()
            return True
        while True:
            is_all_written = self._write_what_goes()
            if is_all_written and self._is_over:
                return True
            if is_all_written and self._has_something_to_tell():
                return False
            self._wait_and_take()

    def _leave(self) -> None:
        if self._buffer.policy == BLOCK:  # then there may be more than a line in it, and no room
            self._reader.leave()
        dropped = self._buffer.read().dropped_bytes
        while self._buffer.read().dropped_bytes - dropped < _MOST_LEFT_BYTES:
            if self._reader.fill(self._sink.consumed, 0) is not Filled.SOME:
                break
        self._reader.leave()
        self._context.set_in_flight(0)

    def _write_what_goes(self) -> bool:
        """Write what can be written; True when that is everything."""
        ends = self._ends.look()
        self._waits_for_more = ends.all > ends.now and not self._is_quiet
        self._end = ends.all if self._is_quiet else ends.now
        if self._is_over:
            self._end = self._buffer.read().taken
        is_tried = time.monotonic() >= self._held_until_s
        if is_tried:
            self._try_to_write(self._end)
        self._context.set_in_flight(max(0, self._end - self._sink.consumed) + self._sink.rest_bytes)
        return is_tried and self._has_written

    def _has_something_to_tell(self) -> bool:
        is_calm = time.monotonic() >= self._dropped_at_s + CALM_S
        return is_calm and self._buffer.read().dropped_bytes != self._context.reported_dropped_bytes

    @property
    def _has_written(self) -> bool:
        return self._sink.consumed >= self._end and not self._sink.rest_bytes

    def _try_to_write(self, end: int) -> None:
        before = (self._sink.consumed, self._sink.rest_bytes)
        self._is_stalled = False
        try:
            self._write(end)
        except BlockingIOError:
            has_moved = before != (self._sink.consumed, self._sink.rest_bytes)
            self._is_stalled = has_moved or not self._seemed_to_have_room
            if not self._is_stalled:  # an event would come again at once
                self._held_until_s = time.monotonic() + _NO_ROOM_S
        finally:
            self._count()

    def _write(self, end: int) -> None:
        if not self._is_open:
            self._sink.open()
            self._is_open = True
        while self._sink.consumed < end:
            self._sink.write(end)
            self._count()
        self._sink.flush()

    def _count(self) -> None:
        """Count what has reached the sink, of us and of whoever was killed before."""
        passed = self._buffer.read().passed_bytes
        reached = self._sink.consumed - passed - self._sink.rest_bytes
        self._context.add_copied(
            max(0, reached - self._context.counters.copied_bytes(self._context.slot))
        )

    def _wait_and_take(self) -> None:
        poller = select.poll()
        has_more = bool(splice.pending_bytes(self._reader.staging_rfd))
        if not self._is_over:
            poller.register(self._route.source_fd, select.POLLIN)
        if self._is_stalled and self._sink.stall_fd >= 0:
            poller.register(self._sink.stall_fd, select.POLLOUT)
        if not has_more and not self._is_over:
            self._reader.pause_when_due()
        ready = poller.poll(0 if has_more else self._timeout_ms())
        is_ready = has_more or any(fd == self._route.source_fd for fd, _events in ready)
        self._seemed_to_have_room = any(fd == self._sink.stall_fd for fd, _events in ready)
        self._is_quiet = self._waits_for_more and not is_ready
        if self._is_over or not is_ready:
            return
        if self._reader.fill(self._sink.consumed, 0) is Filled.END:
            self._is_over = True
        dropped = self._buffer.read().dropped_bytes
        if dropped != self._dropped:
            self._dropped = dropped
            self._dropped_at_s = time.monotonic()

    def _timeout_ms(self) -> float | None:
        now_s = time.monotonic()
        waits_s = [lines.HOLD_MS / 1000] if self._waits_for_more else []
        if not self._has_written and not self._is_stalled:
            waits_s.append(max(0.0, self._held_until_s - now_s))
        if self._dropped_at_s + CALM_S > now_s:
            waits_s.append(self._dropped_at_s + CALM_S - now_s)
        return math.ceil(min(waits_s) * 1000) if waits_s else None
