"""One worker's two ends, its pipe's and its own, which come in any order.

A worker counts as gone when both its report pipe is at end of file and it has been reaped. One that
has reported may live on: it keeps what a successor of ours would need until it is sent away.
"""

from __future__ import annotations

import os

from workers.process import report

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from supervisor.io.stream import Stream
    from supervisor.linux import fds
    from supervisor.linux.event_loop import Loop
    from supervisor.linux.exit_status import Termination
    from supervisor.linux.reaper import Reaper


class WorkerWatch:
    """Joins a worker's two ends. Owns the read end of its report pipe."""

    def __init__(
        self,
        loop: Loop,
        reaper: Reaper,
        stream: Stream,
        report_rfd: fds.Fd,
        *,
        on_report: Callable[[Stream, bytes], None],
        on_gone: Callable[[Stream, Termination, bytes], None],
    ) -> None:
        """Watch the worker that the stream has now.

        `on_report` follows when it has reported and is still there; `on_gone` when it is gone, with
        its report, which may be empty or junk. Neither follows after `abandon`.
        """
        self._loop = loop
        self._stream = stream
        self._report_rfd = report_rfd
        self._record = b""
        self._termination: Termination | None = None
        self._has_reported = False
        self._on_report = on_report
        self._on_gone = on_gone
        loop.watch(report_rfd.fileno(), self._on_readable)
        reaper.expect(stream.pid, self._on_exit)

    def fileno(self) -> int:
        """Lend the report pipe's read end."""
        return self._report_rfd.fileno()

    def abandon(self) -> None:
        """Listen no more; somebody else expects the worker's end."""
        if self._report_rfd.is_open:
            self._loop.forget(self._report_rfd.fileno())
            self._report_rfd.close()

    @property
    def is_untouched(self) -> bool:
        """Whether nothing has been heard of the worker so far."""
        return self._termination is None and self._report_rfd.is_open and not self._record

    @property
    def has_reported(self) -> bool:
        """Whether `on_report` has been called."""
        return self._has_reported

    def _on_readable(self) -> None:
        chunk = os.read(self._report_rfd.fileno(), report.MOST_BYTES + 1)
        self._record = (self._record + chunk)[: report.MOST_BYTES + 1]
        if not chunk:
            self._loop.forget(self._report_rfd.fileno())
            self._report_rfd.close()
            if self._record and self._termination is None:
                self._has_reported = True
                self._on_report(self._stream, self._record)
            else:
                self._tell_if_both()

    def _on_exit(self, termination: Termination) -> None:
        self._stream.is_reaped = True
        self._termination = termination
        self._tell_if_both()

    def _tell_if_both(self) -> None:
        if self._termination is not None and not self._report_rfd.is_open:
            self._on_gone(self._stream, self._termination, self._record)
