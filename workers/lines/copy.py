"""The copy loop of all sinks that take records: fills the buffer, finds records, writes, counts."""

from __future__ import annotations

from typing import NamedTuple

from workers.lines import framing
from workers.lines.reader import Filled, LineReader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from workers.copy.route import Route
    from workers.lines.buffer import LineBuffer
    from workers.lines.sink import RecordSink
    from workers.process.context import WorkerContext


_MALLOC_BYTES = 8 << 20
"""Size of a block that is allocated and freed once. After that malloc(3) keeps up to twice as much
freed memory. Otherwise the kernel makes new pages for each batch: `cri` then copies 500 MB/s of
100-byte lines, instead of 1250. Source: mallopt(3), M_MMAP_THRESHOLD, M_TRIM_THRESHOLD."""

HOLD_MS = 250
"""How long the source must be silent before an unsettled record is written."""


class RecordEnds(NamedTuple):
    """Positions in the line buffer.

    Attributes:
        complete: End of the last complete record.
        settled: End of the last record that later lines cannot extend.
    """

    complete: int
    settled: int


class EndFinder:
    """Finds the ends of records in a buffer that is being filled."""

    def __init__(self, buffer: LineBuffer, sink: RecordSink) -> None:
        """Borrow both."""
        self._buffer = buffer
        self._sink = sink
        self._scanned = self._rest_start = sink.consumed

    def find(self) -> RecordEnds:
        """Scan the bytes that have arrived since the last call. Some may have been dropped."""
        taken = self._buffer.read().taken
        newline = self._buffer.last_newline(min(self._scanned, taken), taken)
        self._scanned = taken
        self._rest_start = max(self._rest_start, self._sink.consumed, newline + 1)
        end = framing.end_of_last(self._rest_start, taken, self._sink.limit_bytes)
        settled = self._sink.settled_end(end) if end == self._rest_start else end
        return RecordEnds(end, settled)


def copy(context: WorkerContext, route: Route, buffer: LineBuffer, sink: RecordSink) -> None:
    """Copy to end of file. An unfinished line stays in the buffer until its end.

    Raises:
        CopyError: The source failed.
        OSError: The sink failed. The buffer, the staging pipe or the source has the rest.
    """
    # A killed worker may not have counted its last write.
    context.add_copied(sink.consumed - context.counters.copied_bytes(context.slot))
    context.copied_bytes = 0
    bytes(_MALLOC_BYTES)
    reader = LineReader(route, buffer, context)
    ends = EndFinder(buffer, sink)
    while True:
        complete, settled = ends.find()
        _write(context, sink, settled)
        filled = reader.fill(sink.consumed, None if settled == complete else HOLD_MS)
        if filled is Filled.NOTHING:
            _write(context, sink, complete)
        elif filled is Filled.END:
            _write(context, sink, buffer.read().taken)
            return


def _write(context: WorkerContext, sink: RecordSink, end: int) -> None:
    """Write everything up to `end`. An unfinished line does not count as in flight."""
    context.set_in_flight(end - sink.consumed)
    while sink.consumed < end:
        before = sink.consumed
        sink.write(end)
        context.add_copied(sink.consumed - before)
        context.set_in_flight(end - sink.consumed)
