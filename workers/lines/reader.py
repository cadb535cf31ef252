"""From the container's pipe into the line buffer: every byte is always in exactly one place.

    source pipe --splice--> staging pipe --readv--> line buffer

Nobody but the stream's one living worker reads the staging pipe, and only this module fills it. So
the number of bytes that have left it tells how many have arrived here, even if the worker
was killed in readv(2) or right after it: what it held before is committed first. Reading from the
source itself could not be counted like that, because the container goes on writing.
"""

from __future__ import annotations

import os
import select
from enum import Enum

from workers.copy import splice
from workers.lines.buffer import READ_BYTES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from workers.lines.buffer import LineBuffer

_SMALL_BYTES = 32 << 10
"""A batch takes 0.1 ms, however few bytes are in it; a page of small writes comes meanwhile."""


class Filled(Enum):
    """What came of a wait for bytes."""

    SOME = "there may be more in the buffer now"
    NOTHING = "the source was silent for as long as was asked"
    END = "end of file"


class LineReader:
    """Fills one line buffer. Borrows everything."""

    def __init__(self, route: splice.Route, buffer: LineBuffer, tally: splice.Tally) -> None:
        """Go on where a killed predecessor stopped. `route.staging` is needed.

        `tally` is told of what is on its way here; to take it back is the caller's part.
        """
        if route.staging is None:
            raise ValueError("a line reader needs a staging pipe")
        self._route = route
        self._staging = route.staging
        self._buffer = buffer
        self._tally = tally
        self._readable = select.poll()
        self._readable.register(route.source_fd, select.POLLIN)
        self._batching = splice.make_batching(route, READ_BYTES, _SMALL_BYTES)
        splice.tee_to_clients(route, self._staging, tally)
        pending = buffer.read().pending
        if pending:
            self._keep(pending - splice.pending_bytes(self._staging[0]))

    @property
    def staging_rfd(self) -> int:
        """Lend the end of the staging pipe from which it reads."""
        return self._staging[0]

    def fill(self, consumed: int, timeout_ms: int | None = None) -> Filled:
        """Take what the source has, waiting for it at most `timeout_ms`; None is for ever.

        Args:
            consumed: The position up to which the sink has everything: that room is free.
            timeout_ms: 0 only looks.

        Raises:
            splice.CopyError: The source failed.
        """
        self._buffer.make_room(consumed)
        staged_bytes = splice.pending_bytes(self._staging[0])
        if staged_bytes == 0:
            if timeout_ms != 0:
                self.pause_when_due()
            if not self._readable.poll(timeout_ms):
                return Filled.NOTHING
            try:
                staged_bytes = splice.fill_staging(
                    self._route, self._staging, self._tally, READ_BYTES
                )
            except BlockingIOError:  # somebody else has taken it: it is a shared terminal
                return Filled.SOME
            if staged_bytes == 0:
                return Filled.END
            self._batching.record(staged_bytes)
        self._pull(staged_bytes)
        return Filled.SOME

    def pause_when_due(self) -> None:
        """Let small writes gather, where that pays: for whoever waits himself, before he does."""
        self._batching.pause_when_due()

    def _pull(self, staged_bytes: int) -> None:
        state = self._buffer.read()
        self._buffer.commit(state._replace(pending=staged_bytes))
        start = state.taken - state.base
        end = min(start + staged_bytes, self._buffer.room_bytes)
        self._keep(os.readv(self._staging[0], [self._buffer.memory.room(start, end)]))

    def _keep(self, arrived: int) -> None:
        """Take what has arrived behind the last byte, in one step."""
        state = self._buffer.read()
        self._buffer.commit(state._replace(taken=state.taken + arrived, pending=0))
