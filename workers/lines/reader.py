"""Reads from the container's pipe into the line buffer. Every byte always is in exactly one place.

    source pipe --splice--> staging pipe --readv--> line buffer

Only the living worker of the stream reads the staging pipe, and only this module fills it. The
worker commits the size of the staging pipe's content before it reads. So the bytes that have left
the pipe are the bytes that have arrived in the buffer, even if the worker is killed in readv(2).
Reading from the source could not be counted like that, because the container keeps writing.
"""

from __future__ import annotations

import os
import select
from enum import Enum

from workers.common.fd_state import pending_bytes
from workers.copy import branch, staging
from workers.lines.buffer import READ_BYTES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from workers.copy.route import Progress, Route
    from workers.lines.buffer import LineBuffer

_SMALL_BYTES = 32 << 10
"""A batch takes 0.1 ms, however few bytes it has. A page of small writes arrives in that time."""


class Filled(Enum):
    """The result of `LineReader.fill`."""

    SOME = "there may be more in the buffer now"
    NOTHING = "the source was silent for the whole time"
    END = "end of file"


class LineReader:
    """Fills one line buffer. Borrows everything."""

    def __init__(self, route: Route, buffer: LineBuffer, progress: Progress) -> None:
        """Continue where a killed worker stopped. `route.staging` is required.

        The reader reports bytes in flight to `progress`. The caller reports when they have left.
        """
        if route.staging is None:
            raise ValueError("a line reader needs a staging pipe")
        self._route = route
        self._staging = route.staging
        self._buffer = buffer
        self._progress = progress
        self._readable = select.poll()
        self._readable.register(route.source_fd, select.POLLIN)
        self._batching = route.batching(READ_BYTES, _SMALL_BYTES)
        staging.tee_to_clients(route, self._staging, progress)
        branch.ready_bytes(route, self._staging, progress)  # before a flush: see `flush_branches`
        pending = buffer.read().pending
        if pending:
            self._accept(pending - pending_bytes(self._staging[0]))

    @property
    def staged_bytes(self) -> int:
        """How many bytes the staging pipe holds. They come before those of the source."""
        return pending_bytes(self._staging[0])

    def fill(self, consumed: int, timeout_ms: int | None = None) -> Filled:
        """Read the available bytes of the source. Wait for them at most `timeout_ms`.

        Args:
            consumed: Position up to which the sink has every byte: that room is free.
            timeout_ms: 0 does not wait, None waits without a limit.

        Raises:
            CopyError: The source failed.
        """
        self._buffer.make_room(consumed)
        self.flush_branches()
        staged_bytes = self.staged_bytes
        if staged_bytes == 0:
            if timeout_ms != 0:
                self.pause_when_due()
            if not self._readable.poll(timeout_ms):
                return Filled.NOTHING
            try:
                staged_bytes = staging.fill(self._route, self._staging, self._progress, READ_BYTES)
            except BlockingIOError:  # another process of a shared terminal has read it
                return Filled.SOME
            if staged_bytes == 0:
                return Filled.END
            self._batching.record(staged_bytes)
        self._pull(staged_bytes)
        return Filled.SOME

    def flush_branches(self) -> None:
        """Move the content of the tee pipes to the branches, and wait for room there.

        The content of a tee pipe tells how much a killed worker has teed. `branch.ready_bytes`
        reads that first.
        """
        branch.flush(self._route)

    def pause_when_due(self) -> None:
        """Pause to batch small writes, where that pays. For a caller that waits itself."""
        self._batching.pause_when_due()

    def _pull(self, staged_bytes: int) -> None:
        state = self._buffer.read()
        self._buffer.commit(state._replace(pending=staged_bytes))
        start = state.taken - state.base
        ready_bytes = staged_bytes
        if self._route.branches:
            ready_bytes = branch.ready_bytes(self._route, self._staging, self._progress)
        end = min(start + ready_bytes, self._buffer.room_bytes)
        self._accept(os.readv(self._staging[0], [self._buffer.memory.room(start, end)]))

    def _accept(self, arrived: int) -> None:
        """Take the bytes that have arrived after `taken`, in one step."""
        state = self._buffer.read()
        self._buffer.commit(state._replace(taken=state.taken + arrived, pending=0))
