"""Reopening log files by their names, after logrotate has renamed them."""

from __future__ import annotations

import math
import time

from supervisor.linux import fds
from supervisor.linux.errors import ShimError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from supervisor.io.stream_log import StreamLog
    from supervisor.io.worker_slot import WorkerSlot
    from supervisor.linux.event_loop import Loop

_EVERY_S = 0.1


class LogReopener:
    """Serves the slots of one container. Borrows them."""

    SNAPSHOT = ("is_pending",)
    TRANSIENT = ("_slots", "_stream_log", "_on_change", "_reopened_at_s", "_next")

    def __init__(
        self,
        loop: Loop,
        slots: Sequence[WorkerSlot],
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
        self.is_pending = False
        self._reopened_at_s = time.monotonic()
        for slot in self._slots:
            if slot.stream.is_live_output and self._reopen(slot):
                self._on_change()
                slot.replace()

    def _reopen(self, slot: WorkerSlot) -> bool:
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
        self._stream_log.reopened(stream)
        if fds.is_same_file(fresh.fileno(), stream.sink.fileno()):
            fresh.close()  # no file was renamed: the worker goes on
            return False
        stream.sink.close()
        stream.sink = fresh
        return True

    def stop(self) -> None:
        """Reopen nothing any more."""
        self._next.cancel()
