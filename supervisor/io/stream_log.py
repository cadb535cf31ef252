"""Log messages about the streams of one container, and which of them were logged already.

A worker may die, and a sink may fail, without end. Recurring events are logged less and less often,
so that no log fills a disk.
"""

from __future__ import annotations

import os

from supervisor.children import restart_policy
from supervisor.sinks.sink import Drops
from supervisor.state.journal_log import Kind

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from supervisor.children.restart_policy import Decision
    from supervisor.io.stream import Stream
    from supervisor.io.stream_copy import StreamCopy
    from supervisor.linux.errors import ShimError
    from supervisor.linux.exit_status import Termination
    from supervisor.state.log import Log
    from workers.process.report import Report


_NO_DROPS = Drops(0, 0)


class StreamLog:
    """Logs the failures of the streams. Borrows everything."""

    SNAPSHOT = ("_reported_drops", "_refusals")
    TRANSIENT = ("_log", "_on_trouble")

    def __init__(self, log: Log, on_trouble: Callable[[], None]) -> None:
        """Borrow everything. `on_trouble` is called when a stream fails or has dropped bytes."""
        self._log = log
        self._on_trouble = on_trouble
        self._reported_drops: dict[str, Drops] = {}
        self._refusals: dict[str, str] = {}

    def snapshot(self) -> dict[str, Any]:
        """Return what was logged already, for `restore`."""
        drops = {name: [drops.bytes, drops.lines] for name, drops in self._reported_drops.items()}
        return {"reported_drops": drops, "refusals": self._refusals}

    def restore(self, packed: Mapping[str, Any]) -> None:
        """Continue with what `snapshot` of an earlier supervisor returned."""
        self._reported_drops = {
            name: Drops(*drops) for name, drops in packed["reported_drops"].items()
        }
        self._refusals = dict(packed["refusals"])

    def worker_died(self, slot: StreamCopy, termination: Termination, decision: Decision) -> None:
        """Log the death of a worker."""
        name, deaths = slot.stream.name, decision.history.deaths
        if decision.is_logged:
            self._log.warning(f"{name}: worker {termination}, replaced; deaths: {deaths}")
        if decision.is_degraded:
            self._degraded(slot, f"its workers die without progress: {termination}")
        else:
            self._on_trouble()

    def fork_refused(self, slot: StreamCopy, error: OSError, decision: Decision) -> None:
        """Log that a worker could not be forked."""
        if decision.is_logged:
            self._log.warning(
                f"{slot.stream.name}: fork: {error.strerror}; trying again in "
                f"{decision.pause_s:g} s; failures: {decision.history.failed_forks}"
            )
        if decision.is_degraded:
            self._degraded(slot, f"the supervisor cannot fork a worker: {error.strerror}")

    def _degraded(self, slot: StreamCopy, why: str) -> None:
        slot.trouble = f"degraded: {why}"
        self._log.warning(
            f"{slot.stream.name}: {slot.trouble}; the supervisor forks another at least every "
            f"{restart_policy.LONGEST_PAUSE_S:.0f} s; the container waits when its pipe is full",
            Kind.DEGRADED,
        )
        self._on_trouble()

    def worker_failed(self, slot: StreamCopy, report: Report) -> None:
        """Log the first error of a series, and what follows it."""
        stream = slot.stream
        follows = restart_policy.action_after(
            stream.name, report, has_line_sink=stream.line_sink is not None
        ).value
        if stream.is_lossy:
            follows = (
                "the worker tries again at least every 5 s; "
                "lines are dropped when the buffer is full"
            )
        self._log.warning(
            f"{stream.name}{_target(stream)}: {os.strerror(report.errno)} "
            f"({report.errno_name}) after {slot.copied_bytes} bytes; {follows}",
            Kind.SINK,
        )

    def reopen_refused(self, stream: Stream, error: ShimError) -> None:
        """Log, once, that the stream's log file was not reopened."""
        old = "the worker keeps the old file"
        if stream.is_sink_deleted:
            old = "the old file was deleted, so new lines are lost"
        message = f"{error}; {old}"
        if self._refusals.get(stream.name) != message:
            self._refusals[stream.name] = message
            self._log.warning(f"{stream.name}: {message}")
            self._on_trouble()

    def reopened(self, stream: Stream) -> None:
        """Note that the log file was reopened, and log it after a refusal."""
        refusal = self._refusals.pop(stream.name, None)
        if refusal is not None:
            self._log.notice(f"{stream.name}: reopened (was: {refusal})", Kind.SINK)
            self._on_trouble()

    def refusal(self, stream: Stream) -> str:
        """Return why the last reopening of the log file failed; "" if it did not."""
        return self._refusals.get(stream.name, "")

    def in_trouble(self, slot: StreamCopy, why: str) -> None:
        """Note that the stream copies nothing. `worker_failed` has logged the reason."""
        if slot.trouble != why:
            slot.trouble = why
            self._on_trouble()

    def recovered(self, slot: StreamCopy) -> None:
        """Log that the stream copies bytes again."""
        self._log.info(f"{slot.stream.name}: recovered (was: {slot.trouble})")
        slot.trouble = ""

    def reported_drops(self, stream: Stream) -> Drops:
        """Return the bytes and lines dropped by the stream that were logged already."""
        return self._reported_drops.get(stream.name, _NO_DROPS)

    def drops(self, slot: StreamCopy) -> None:
        """Log the bytes and lines that the stream has dropped since the last call."""
        stream, dropped, before = slot.stream, slot.drops, self.reported_drops(slot.stream)
        if dropped.bytes == before.bytes:
            return
        self._log.warning(
            f"{stream.name}{_target(stream)}: dropped {dropped.bytes - before.bytes} bytes, "
            f"{dropped.lines - before.lines} lines",
            Kind.LOST,
        )
        self._reported_drops[stream.name] = dropped
        self._on_trouble()


def _target(stream: Stream) -> str:
    return f" {stream.sink_name}" if stream.sink_name else ""
