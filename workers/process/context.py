"""Context passed to a worker across fork(2): stream name, counter slot, report pipe, task, fds."""

from __future__ import annotations

import contextlib
import os
import select
import time

from workers.common import fd_state
from workers.common.records import dataclass
from workers.process import isolate, report
from workers.process.task import COPY, TaskKind

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from workers.process.counters import StreamCounters
    from workers.process.orphan import OrphanedFifo
    from workers.process.task import Task


_EXIT_FIRST_S = 0.001
"""Delay of an end-of-file report: see `WorkerContext.send_last`."""


@dataclass(slots=True)
class WorkerContext:
    """Context of one worker. Every descriptor is borrowed from the supervisor across the fork.

    Attributes:
        stream: "stdin", "stdout", "stderr" or "console", as in the report.
        title: Process title for ps(1).
        counters: Shared with the supervisor and with every other worker.
        slot: The slot of the stream in `counters`.
        report_wfd: The only write end of the report pipe, once the supervisor has closed its copy.
            So the supervisor reads end of file when this worker dies.
        null_fd: /dev/null, open for reading and writing.
        predecessors: pidfds of killed workers of this stream that may not have exited yet.
        task: What the worker does.
        reported_dropped_bytes: How many dropped bytes the supervisor has logged already.
        orphaned_fifo: The fifo to stop reading when the supervisor dies; None without one.
        copied_bytes: Copied by this worker; `counters` has the total of the stream.
    """

    stream: str
    title: str
    counters: StreamCounters
    slot: int
    report_wfd: int
    null_fd: int
    predecessors: tuple[int, ...] = ()
    task: Task = COPY
    reported_dropped_bytes: int = 0
    orphaned_fifo: OrphanedFifo | None = None
    copied_bytes: int = 0

    def enter(self, keep_fds: Iterable[int]) -> None:
        """Isolate the worker, wait until its predecessors have exited and until its task begins.

        `keep_fds`: descriptors that stay open, see `isolate.enter_worker`.
        """
        kept = (*keep_fds, *self.predecessors, self.report_wfd)
        isolate.enter_worker(self.title, kept, self.null_fd)
        if self.orphaned_fifo is not None:
            self.orphaned_fifo.install()
        for pidfd in self.predecessors:
            fd_state.wait_for(pidfd, select.POLLIN)
            os.close(pidfd)
        if self.task.kind is TaskKind.WAIT_UNTIL:
            select.poll().poll(self.task.remaining_s() * 1000)

    @property
    def is_to_count(self) -> bool:
        """Whether the stream was given up, and the worker only counts the rest."""
        return self.task.kind is TaskKind.COUNT_REST

    def add_copied(self, copied_bytes: int) -> None:
        """Count bytes that have reached the sink."""
        self.copied_bytes += copied_bytes
        self.counters.add_copied(self.slot, copied_bytes)

    def set_in_flight(self, in_flight_bytes: int) -> None:
        """Set how many bytes are between source and sink."""
        self.counters.set_in_flight(self.slot, in_flight_bytes)

    @property
    def is_teed(self) -> bool:
        """Whether the bytes between source and sink were teed to the attach clients."""
        return self.counters.is_teed(self.slot)

    def set_teed(self, *, is_teed: bool) -> None:
        """Set `is_teed`."""
        self.counters.set_teed(self.slot, is_teed=is_teed)

    def add_skipped(self, client: int, skipped_bytes: int) -> None:
        """Count bytes for which an attach client had no room."""
        self.counters.add_skipped(client, skipped_bytes)

    def unteed_bytes(self, branch: int) -> int:
        """Return how many bytes at the end of the staging pipe were not teed to a branch."""
        return self.counters.unteed_bytes(self.slot, branch)

    def set_unteed_bytes(self, branch: int, count: int) -> None:
        """Set `unteed_bytes`."""
        self.counters.set_unteed_bytes(self.slot, branch, count)

    def make_report(self, errno: int = 0, side: str = "") -> report.Report:
        """Return the completion record of this worker, see `Report`."""
        return report.Report(self.stream, self.copied_bytes, errno, side)

    def send(self, record: report.Report) -> None:
        """Write the completion record. Do nothing if the supervisor has died."""
        with contextlib.suppress(BrokenPipeError):
            os.write(self.report_wfd, report.encode(record))

    def send_last(self, record: report.Report) -> None:
        """Write the completion record, as the last action of an output's worker.

        The worker delays the report of an end of file, which nearly always means the container's
        exit. That wakes every worker before the kernel notifies the supervisor. Without the delay
        the workers keep the processors busy, while clients wait for `exitStatus`.
        """
        if not record.errno:
            time.sleep(_EXIT_FIRST_S)
        self.send(record)
