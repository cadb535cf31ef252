"""The loop that all sinks share which turn bytes into records: take, cut, write, count."""

from __future__ import annotations

from typing import NamedTuple

from workers.lines import framing
from workers.lines.reader import Filled, LineReader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from workers.copy import splice
    from workers.lines.buffer import LineBuffer
    from workers.process.context import WorkerContext

    class RecordSink(Protocol):
        """Where records go. It commits what it has written, so that it can say `consumed` anew."""

        consumed: int
        """The position in the stream up to which everything is in the sink."""

        def hold(self, end: int) -> int:
            """Return from where on lines before `end` may have to wait for what follows."""

        @property
        def limit_bytes(self) -> int:
            """The longest line that is one record."""

        def write(self, end: int) -> None:
            """Write some records, at least one, from `consumed` on and not beyond `end`."""


_KEPT_BYTES = 8 << 20
"""malloc(3) keeps memory that is freed, up to twice the largest block that was ever freed: else the
kernel makes new pages for each batch, which takes longer than all the rest. Source: mallopt(3),
M_MMAP_THRESHOLD, M_TRIM_THRESHOLD; `cri` took 500 MB/s of 100-byte lines, now 1250."""

HOLD_MS = 250
"""How long the source has to be silent before nothing more is waited for."""


class RecordEnds(NamedTuple):
    """Positions: of the end of the last complete record, and of the last that need not wait."""

    all: int
    now: int


class EndFinder:
    """Knows where records end in a buffer that fills."""

    def __init__(self, buffer: LineBuffer, sink: RecordSink) -> None:
        """Borrow both."""
        self._buffer = buffer
        self._sink = sink
        self._scanned = self._rest_start = sink.consumed

    def look(self) -> RecordEnds:
        """Look at what has come since; bytes that were there may be gone, if all else is."""
        taken = self._buffer.read().taken
        newline = self._buffer.last_newline(min(self._scanned, taken), taken)
        self._scanned = taken
        self._rest_start = max(self._rest_start, self._sink.consumed, newline + 1)
        end = framing.end_of_last(self._rest_start, taken, self._sink.limit_bytes)
        now = self._sink.hold(end) if end == self._rest_start else end
        return RecordEnds(end, now)


def copy(context: WorkerContext, route: splice.Route, buffer: LineBuffer, sink: RecordSink) -> None:
    """Copy to end of file; a line that is not at its end waits for its end.

    Raises:
        splice.CopyError: The source failed.
        OSError: The sink did. What it has not got is in the buffer, the staging or the source.
    """
    # Of what a killed predecessor wrote, the end may not have been counted.
    context.add_copied(sink.consumed - context.counters.copied_bytes(context.slot))
    context.copied_bytes = 0
    bytes(_KEPT_BYTES)
    reader = LineReader(route, buffer, context)
    ends = EndFinder(buffer, sink)
    while True:
        end, now = ends.look()
        _write(context, sink, now)
        filled = reader.fill(sink.consumed, None if now == end else HOLD_MS)
        if filled is Filled.NOTHING:
            _write(context, sink, end)
        elif filled is Filled.END:
            _write(context, sink, buffer.read().taken)
            return


def _write(context: WorkerContext, sink: RecordSink, end: int) -> None:
    """Write everything up to `end`. An unfinished line is not in flight: nobody waits for it."""
    context.set_in_flight(end - sink.consumed)
    while sink.consumed < end:
        before = sink.consumed
        sink.write(end)
        context.add_copied(sink.consumed - before)
        context.set_in_flight(end - sink.consumed)
