"""The copy loop of a stream that may drop lines: the container never waits for the sink.

`workers.lines.drop_reader` decides which lines are dropped. This loop writes whatever the sink
accepts, reads new bytes meanwhile, and reports when the sink has recovered.
"""

from __future__ import annotations

import math
import select
import time
from enum import Enum

from workers.common.policy import BLOCK
from workers.lines import copy as lines
from workers.lines.drop_reader import DropReader
from workers.lines.reader import Filled

TYPE_CHECKING = False
if TYPE_CHECKING:
    from workers.copy.route import Route
    from workers.lines.buffer import LineBuffer
    from workers.lines.sink import RecordSink
    from workers.process.context import WorkerContext

CALM_S = 1.0
"""Seconds without a drop after which the sink counts as recovered."""

_MOST_LEFT_BYTES = 4 << 20
_NO_ROOM_S = 0.01


def copy(context: WorkerContext, route: Route, buffer: LineBuffer, sink: RecordSink) -> bool:
    """Copy to end of file. Drop by `buffer.policy` if the buffer is full.

    The task DROP_UNTIL writes nothing to the sink until its time. COUNT_REST drops the rest and
    returns.

    Returns:
        True at the end of the stream. False before, if the sink has everything again and no line
        was dropped for CALM_S. The supervisor then logs the drops, and forks another worker.

    Raises:
        CopyError: The source failed.
        OSError: The sink failed.
    """
    if context.is_to_count:
        _drop_rest(context, route, buffer, sink)
        return True
    return _DropCopy(context, route, buffer, sink).run()


def _drop_rest(context: WorkerContext, route: Route, buffer: LineBuffer, sink: RecordSink) -> None:
    reader = DropReader(route, buffer, context, sink)
    _count_reached(context, buffer, sink)
    context.copied_bytes = 0
    if buffer.policy == BLOCK:  # the buffer may hold several lines, and have no room
        reader.drop_all()
    dropped = buffer.read().dropped_bytes
    while buffer.read().dropped_bytes - dropped < _MOST_LEFT_BYTES:
        if reader.fill(sink.consumed, 0) is not Filled.SOME:
            break
    reader.drop_all()
    context.set_in_flight(0)


def _count_reached(context: WorkerContext, buffer: LineBuffer, sink: RecordSink) -> None:
    """Count the bytes in the sink, from this worker and from killed workers."""
    reached = sink.consumed - buffer.read().passed_bytes - sink.rest_bytes
    context.add_copied(max(0, reached - context.counters.copied_bytes(context.slot)))


class _SinkState(Enum):
    READY = "the next write may succeed"
    STALLED = "wait until poll(2) reports room"
    HELD = "do not write to the sink until a given time"


class _Writer:
    """Writes to a sink that may have no room."""

    def __init__(self, context: WorkerContext, buffer: LineBuffer, sink: RecordSink) -> None:
        self._context = context
        self._buffer = buffer
        self._sink = sink
        self._state = _SinkState.HELD
        self._held_until_s = context.task.until_s
        self._is_open = False
        self._poll_reported_room = False

    def write(self, end: int) -> bool:
        """Write up to `end`, as far as the sink has room. Return whether it has everything.

        Raises:
            OSError: The sink failed.
        """
        if self._state is _SinkState.HELD and time.monotonic() < self._held_until_s:
            return False
        before = (self._sink.consumed, self._sink.rest_bytes)
        self._state = _SinkState.READY
        try:
            self._write(end)
        except BlockingIOError:
            has_moved = before != (self._sink.consumed, self._sink.rest_bytes)
            if has_moved or not self._poll_reported_room:
                self._state = _SinkState.STALLED
            else:  # poll(2) would report room again at once
                self._state = _SinkState.HELD
                self._held_until_s = time.monotonic() + _NO_ROOM_S
        finally:
            _count_reached(self._context, self._buffer, self._sink)
        return self._state is _SinkState.READY

    def _write(self, end: int) -> None:
        if not self._is_open:
            self._sink.open()
            self._is_open = True
        while self._sink.consumed < end:
            self._sink.write(end)
            _count_reached(self._context, self._buffer, self._sink)
        self._sink.flush()

    @property
    def stalled_fd(self) -> int:
        """Descriptor to poll for room; -1 without one."""
        return self._sink.stall_fd if self._state is _SinkState.STALLED else -1

    def polled(self, *, has_room: bool) -> None:
        """Note the result of the poll before the next write."""
        self._poll_reported_room = has_room

    def retry_in_s(self) -> float:
        """Return the time until the next write is due; infinite if no time is set."""
        if self._state is not _SinkState.HELD:
            return math.inf
        return max(0.0, self._held_until_s - time.monotonic())


class _DropWatch:
    """Notices drops, and their end."""

    def __init__(self, context: WorkerContext, buffer: LineBuffer) -> None:
        self._context = context
        self._buffer = buffer
        self._dropped_bytes = buffer.read().dropped_bytes
        self._dropped_at_s = -math.inf

    def look(self) -> None:
        """Compare the number of dropped bytes with the last."""
        dropped = self._buffer.read().dropped_bytes
        if dropped != self._dropped_bytes:
            self._dropped_bytes = dropped
            self._dropped_at_s = time.monotonic()

    def calm_in_s(self) -> float:
        """Return the time until the stream is calm; infinite if it is calm."""
        rest_s = self._dropped_at_s + CALM_S - time.monotonic()
        return rest_s if rest_s > 0 else math.inf

    @property
    def has_news(self) -> bool:
        """Whether the stream is calm, and the supervisor has not logged all drops."""
        dropped = self._buffer.read().dropped_bytes
        return math.isinf(self.calm_in_s()) and dropped != self._context.reported_dropped_bytes


class _Source(Enum):
    OPEN = "more bytes may arrive"
    QUIET = "silent for HOLD_MS: an unsettled record is written now"
    ENDED = "end of file"


class _DropCopy:
    def __init__(
        self, context: WorkerContext, route: Route, buffer: LineBuffer, sink: RecordSink
    ) -> None:
        self._context = context
        self._buffer = buffer
        self._sink = sink
        self._source_fd = route.source_fd
        self._reader = DropReader(route, buffer, context, sink)
        self._ends = lines.EndFinder(buffer, sink)
        self._writer = _Writer(context, buffer, sink)
        self._drops = _DropWatch(context, buffer)
        self._source = _Source.OPEN
        self._has_unsettled = False
        _count_reached(context, buffer, sink)
        context.copied_bytes = 0

    def run(self) -> bool:
        while True:
            is_all_written = self._write()
            if is_all_written and self._source is _Source.ENDED:
                return True
            if is_all_written and self._drops.has_news:
                return False
            self._wait_and_fill()

    def _write(self) -> bool:
        """Write the settled records. Return whether the sink has them all."""
        ends = self._ends.find()
        end = ends.settled
        if self._source is _Source.QUIET:
            end = ends.complete
        elif self._source is _Source.ENDED:
            end = self._buffer.read().taken
        self._has_unsettled = self._source is _Source.OPEN and ends.complete > end
        is_all_written = self._writer.write(end)
        self._context.set_in_flight(max(0, end - self._sink.consumed) + self._sink.rest_bytes)
        return is_all_written

    def _wait_and_fill(self) -> None:
        self._reader.flush_branches()
        is_readable = self._wait()
        if self._source is _Source.ENDED:
            return
        is_quiet = self._has_unsettled and not is_readable
        self._source = _Source.QUIET if is_quiet else _Source.OPEN
        if is_readable:
            if self._reader.fill(self._sink.consumed, 0) is Filled.END:
                self._source = _Source.ENDED
            self._drops.look()

    def _wait(self) -> bool:
        """Wait for bytes, for room, or for the next due time. Return whether there are bytes."""
        has_more = self._reader.staged_bytes > 0
        poller = select.poll()
        if self._source is not _Source.ENDED:
            poller.register(self._source_fd, select.POLLIN)
        stalled_fd = self._writer.stalled_fd
        if stalled_fd >= 0:
            poller.register(stalled_fd, select.POLLOUT)
        if not has_more and self._source is not _Source.ENDED:
            self._reader.pause_when_due()
        ready = [fd for fd, _events in poller.poll(0 if has_more else self._timeout_ms())]
        self._writer.polled(has_room=stalled_fd in ready)
        return has_more or self._source_fd in ready

    def _timeout_ms(self) -> float | None:
        hold_s = lines.HOLD_MS / 1000 if self._has_unsettled else math.inf
        wait_s = min(hold_s, self._writer.retry_in_s(), self._drops.calm_in_s())
        return None if math.isinf(wait_s) else math.ceil(wait_s * 1000)
