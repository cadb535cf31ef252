"""Reopening log files by their names, after logrotate has renamed them."""

from __future__ import annotations

import math
import time

from supervisor.linux import fds
from supervisor.linux.errors import ShimError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from supervisor.io.stream_copy import StreamCopy
    from supervisor.io.stream_log import StreamLog
    from supervisor.linux.event_loop import Loop

_EVERY_S = 0.1
RETRY_S = 5.0
"""A refused file is opened again after this pause, like a sink that fails."""


class LogReopener:
    """Reopens the log files of one container. Borrows its slots."""

    SNAPSHOT = ("is_pending",)
    TRANSIENT = ("_slots", "_stream_log", "_on_change", "_reopened_at_s", "_next", "_retry")

    def __init__(
        self,
        loop: Loop,
        slots: Sequence[StreamCopy],
        stream_log: StreamLog,
        on_change: Callable[[], None],
    ) -> None:
        """Borrow everything.

        Args:
            loop: Runs the two timers.
            slots: The streams' slots; may grow.
            stream_log: Gets refusals.
            on_change: Called when the published fd store is out of date.
        """
        self._slots = slots
        self._stream_log = stream_log
        self._on_change = on_change
        self._reopened_at_s = -math.inf
        self._next = loop.timer(self.reopen_now)
        self._retry = loop.timer(self._reopen_refused)
        self.is_pending = False

    def reopen(self) -> None:
        """Reopen every log file whose name now belongs to another file.

        At most once in 0.1 s, later calls are delayed: each reopening replaces a worker, and a
        flood of calls would leave no worker time to copy.
        """
        too_soon_s = self._reopened_at_s + _EVERY_S - time.monotonic()
        if too_soon_s <= 0:
            self.reopen_now()
            return
        if not self.is_pending:
            self.is_pending = True
            self._on_change()  # a supervisor that adopts the container then does it
        self._next.start(too_soon_s)

    def reopen_now(self) -> None:
        """Reopen without the limit of `reopen`."""
        self._reopened_at_s = time.monotonic()
        self._reopen_all(self._slots)

    def _reopen_refused(self) -> None:
        """Try the refused files again: no event tells that a name is trusted again."""
        self._reopen_all([slot for slot in self._slots if self._stream_log.refusal(slot.stream)])

    def _reopen_all(self, slots: Sequence[StreamCopy]) -> None:
        for slot in slots:
            if slot.stream.is_live_output and self._reopen(slot):
                self._on_change()
                if slot.worker is None and slot.stream.line_sink is not None:
                    slot.begin()  # the worker makes the file, which exists before its first line
                else:
                    slot.replace()
                # Logged after the old worker was replaced: an operator who reads it may compress
                # the old file at once.
                self._stream_log.reopened(slot.stream)
        is_refused = any(
            slot.stream.is_live_output and self._stream_log.refusal(slot.stream)
            for slot in self._slots
        )
        if is_refused:
            self._retry.start(RETRY_S)
        was_pending, self.is_pending = self.is_pending, is_refused or self._next.is_running
        if self.is_pending and not was_pending:
            self._on_change()  # a supervisor that adopts the container then tries again

    def _reopen(self, slot: StreamCopy) -> bool:
        """Open the stream's name. Return whether the caller must replace its worker."""
        stream = slot.stream
        if stream.line_sink is not None:  # the next worker opens the name
            return stream.line_sink.is_file and slot.renew_sink()
        if stream.reopen is None:
            return False
        try:
            fresh = stream.reopen()
        except ShimError as error:
            self._stream_log.reopen_refused(stream, error)
            return False
        if fds.is_same_file(fresh.fileno(), stream.sink.fileno()):
            fresh.close()  # the file was not renamed, so the worker keeps it
            self._stream_log.reopened(stream)
            return False
        stream.sink.close()
        stream.sink = fresh
        return True

    def stop(self) -> None:
        """Cancel both timers."""
        self._next.cancel()
        self._retry.cancel()
