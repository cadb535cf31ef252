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
"""A refused file is tried again so often, like a sink that fails."""


class LogReopener:
    """Serves the slots of one container. Borrows them."""

    SNAPSHOT = ("is_pending",)
    TRANSIENT = ("_slots", "_stream_log", "_on_change", "_reopened_at_s", "_next", "_retry")

    def __init__(
        self,
        loop: Loop,
        slots: Sequence[StreamCopy],
        stream_log: StreamLog,
        on_change: Callable[[], None],
    ) -> None:
        """Borrow everything; `on_change` is called when the next supervisor would miss something.

        `slots` may grow.
        """
        self._slots = slots
        self._stream_log = stream_log
        self._on_change = on_change
        self._reopened_at_s = -math.inf
        self._next = loop.timer(self.reopen_now)
        self._retry = loop.timer(self._reopen_refused)
        self.is_pending = False

    def reopen(self) -> None:
        """Reopen every log file whose name is another file's by now.

        Within 0.1 s of the last time, a little later: each time there is a new worker, and no
        worker would get to its work.
        """
        too_soon_s = self._reopened_at_s + _EVERY_S - time.monotonic()
        if too_soon_s <= 0:
            self.reopen_now()
            return
        if not self.is_pending:
            self.is_pending = True
            self._on_change()  # the next supervisor does it
        self._next.start(too_soon_s)

    def reopen_now(self) -> None:
        """As `reopen`, whenever the last time was."""
        self._reopened_at_s = time.monotonic()
        self._reopen_all(self._slots)

    def _reopen_refused(self) -> None:
        """Try those again that were refused: nothing tells when the name is trusted again."""
        self._reopen_all([slot for slot in self._slots if self._stream_log.refusal(slot.stream)])

    def _reopen_all(self, slots: Sequence[StreamCopy]) -> None:
        for slot in slots:
            if slot.stream.is_live_output and self._reopen(slot):
                self._on_change()
                if slot.worker is None and slot.stream.line_sink is not None:
                    slot.begin()  # a log file is there from the start, before its first line
                else:
                    slot.replace()
                # After the worker with the old file: who reads it in the log may write at once.
                self._stream_log.reopened(slot.stream)
        is_refused = any(
            slot.stream.is_live_output and self._stream_log.refusal(slot.stream)
            for slot in self._slots
        )
        if is_refused:
            self._retry.start(RETRY_S)
        was_pending, self.is_pending = self.is_pending, is_refused or self._next.is_running
        if self.is_pending and not was_pending:
            self._on_change()  # the next supervisor goes on trying

    def _reopen(self, slot: StreamCopy) -> bool:
        """Say whether the stream has another file, or may have one, than its worker."""
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
            fresh.close()  # no file was renamed: the worker goes on
            self._stream_log.reopened(stream)
            return False
        stream.sink.close()
        stream.sink = fresh
        return True

    def stop(self) -> None:
        """Reopen nothing any more."""
        self._next.cancel()
        self._retry.cancel()
