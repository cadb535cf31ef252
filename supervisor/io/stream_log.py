"""What is said of a crew's streams: in the log, and as the trouble one is in.

A worker may die, and a sink fail, again and again: what recurs is said less and less often, so that
no log fills a disk.
"""

from __future__ import annotations

import os

from supervisor.children import restart_policy
from supervisor.state.journal_log import Kind

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from supervisor.children.restart_policy import Mend
    from supervisor.io.stream import Stream
    from supervisor.linux.errors import ShimError
    from supervisor.linux.exit_status import Termination
    from supervisor.state.log import Log
    from workers.process.counters import StreamCounters
    from workers.process.report import Report


class StreamLog:
    """Tells of one crew's streams, and notes in them what was told. Borrows everything."""

    def __init__(self, log: Log, counters: StreamCounters, on_trouble: Callable[[], None]) -> None:
        """`on_trouble` follows when a stream is worse off, or has dropped something."""
        self._log = log
        self._counters = counters
        self._on_trouble = on_trouble

    def died(self, stream: Stream, termination: Termination) -> None:
        """Another of its workers has died, which is counted already."""
        if restart_policy.is_said(stream.deaths):
            self._log.warning(
                f"{stream.name}: worker {termination}, replaced; {stream.deaths} so far"
            )
        if stream.deaths_without_progress == restart_policy.DEGRADED_AFTER:
            self._degraded(stream, f"its workers do not live: {termination}")
        else:
            self._on_trouble()

    def fork_failed(self, stream: Stream, error: OSError) -> None:
        """Another fork of a worker has failed, which is counted already."""
        if restart_policy.is_said(stream.failed_forks):
            self._log.warning(
                f"{stream.name}: fork: {error.strerror}; trying again; "
                f"{stream.failed_forks} times so far"
            )
        if stream.failed_forks == restart_policy.DEGRADED_AFTER:
            self._degraded(stream, f"no worker can be forked: {error.strerror}")

    def _degraded(self, stream: Stream, why: str) -> None:
        stream.trouble = f"degraded: {why}"
        self._log.warning(
            f"{stream.name}: {stream.trouble}; the container waits when its pipe is full, "
            f"and it is tried again at least every {restart_policy.LONGEST_PAUSE_S:.0f} s",
            Kind.DEGRADED,
        )
        self._on_trouble()

    def failed(self, stream: Stream, failed: Report, choice: Mend) -> None:
        """A worker has failed, the first of a row; `choice` follows."""
        follows = choice.value
        if stream.is_lossy:
            follows = "lines are dropped when the buffer is full, and it is tried again"
        self._log.warning(
            f"{stream.name}{_target(stream)}: {os.strerror(failed.errno)} "
            f"({failed.errno_name}) after {self._counters.copied_bytes(stream.slot)} bytes; "
            f"{follows}",
            Kind.SINK,
        )

    def refused(self, stream: Stream, error: ShimError) -> None:
        """Its file was not opened anew; said once, until it was."""
        if stream.refusal != str(error):
            stream.refusal = str(error)
            self._log.warning(f"{stream.name}: {error}; the old file is written on")

    def in_trouble(self, stream: Stream, why: str) -> None:
        """Nothing of it moves, until `moves_again`; the log knows."""
        if stream.trouble != why:
            stream.trouble = why
            self._on_trouble()

    def moves_again(self, stream: Stream) -> None:
        """It is out of its trouble."""
        self._log.info(f"{stream.name}: moves again, after: {stream.trouble}")
        stream.trouble = ""

    def dropped(self, stream: Stream) -> None:
        """Say what was dropped since the last time."""
        dropped, lines = stream.drops
        if dropped == stream.reported_dropped_bytes:
            return
        new_bytes = dropped - stream.reported_dropped_bytes
        new_lines = lines - stream.reported_dropped_lines
        self._log.warning(
            f"{stream.name}{_target(stream)}: dropped {new_bytes} bytes, {new_lines} lines",
            Kind.LOST,
        )
        stream.reported_dropped_bytes, stream.reported_dropped_lines = dropped, lines
        self._on_trouble()


def _target(stream: Stream) -> str:
    return f" {stream.sink_name}" if stream.sink_name else ""
