"""What every worker is handed before the fork: its name, its slot, its way to report."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time

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
"""So long an end of file waits to be told: see `WorkerContext.send_and_keep`."""


@dataclass(slots=True)
class WorkerContext:
    """One worker's place. Every descriptor is borrowed from the parent across the fork.

    Attributes:
        stream: "stdin", "stdout", "stderr" or "console", as the report names it.
        title: As ps(1) shows the worker.
        slot: The stream's count in `ledger`.
        report_wfd: The only write end of the report pipe once the parent has closed its own, so
            that this worker's death is the parent's end of file.
        null_fd: /dev/null, open for reading and writing.
        held: What the worker has no use for, and keeps for whoever supervises after our parent;
            the first can be read when something has been laid down there.
        predecessors: pidfds of workers that have been told to go, and may still be at it.
        task: What the worker is forked for.
        reported_dropped_bytes: So much of what was dropped has been told.
        orphaned_fifo: What to do when our parent dies, for a worker that nobody can adopt.
        copied_bytes: By this worker; the ledger has the stream's total.
    """

    stream: str
    title: str
    counters: StreamCounters
    slot: int
    report_wfd: int
    null_fd: int
    held: tuple[int, ...] = ()
    predecessors: tuple[int, ...] = ()
    task: Task = COPY
    reported_dropped_bytes: int = 0
    orphaned_fifo: OrphanedFifo | None = None
    copied_bytes: int = 0

    def enter(self, keep_fds: Iterable[int]) -> None:
        """Become the worker (`isolate.enter_worker`); wait for predecessors, and for `rest_s`."""
        kept = (*keep_fds, *self.held, *self.predecessors, self.report_wfd)
        isolate.enter_worker(self.title, kept, self.null_fd)
        if self.orphaned_fifo is not None:
            self.orphaned_fifo.install()
        for pidfd in self.predecessors:
            poller = select.poll()
            poller.register(pidfd, select.POLLIN)
            poller.poll()
            os.close(pidfd)
        if self.task.kind is TaskKind.WAIT_UNTIL:
            select.poll().poll(self.task.remaining_s() * 1000)

    @property
    def is_to_count(self) -> bool:
        """Whether the stream was given up: the worker only counts what is left of it."""
        return self.task.kind is TaskKind.COUNT_REST

    def add_copied(self, copied_bytes: int) -> None:
        """Count bytes that have reached the sink."""
        self.copied_bytes += copied_bytes
        self.counters.add_copied(self.slot, copied_bytes)

    def set_in_flight(self, in_flight_bytes: int) -> None:
        """Note what is between source and sink."""
        self.counters.set_in_flight(self.slot, in_flight_bytes)

    @property
    def is_teed(self) -> bool:
        """Whether the listeners have heard what is between source and sink."""
        return self.counters.is_teed(self.slot)

    def set_teed(self, *, is_teed: bool) -> None:
        """Note that they have, or that something else comes."""
        self.counters.set_teed(self.slot, is_teed=is_teed)

    def add_skipped(self, client: int, skipped_bytes: int) -> None:
        """Count what came too fast for a listener."""
        self.counters.add_skipped(client, skipped_bytes)

    def send(self, record: report.Report) -> None:
        """Write the completion record. A parent that is gone is told nothing."""
        with contextlib.suppress(BrokenPipeError):
            os.write(self.report_wfd, report.encode(record))

    def send_and_keep(self, record: report.Report) -> None:
        """Write the completion record; the last thing that the worker of an output does.

        An end of file is told after a pause. It is the container's end nearly always, which wakes
        every worker before the kernel tells our parent; what keeps those who wait for `exitStatus`
        waiting is then that all processors are busy with ends of file, for which nobody waits.

        `held` is kept until another worker has it, or somebody comes for it, who ends this process:
        if there is something in it, how the container ends may be known to nobody else.
        """
        if not record.errno:
            time.sleep(_EXIT_FIRST_S)
        self.send(record)
        os.close(self.report_wfd)  # all has been said: our parent need not wait for our end
        while self.held and _is_readable(self.held[0]):
            signal.pause()


def _is_readable(fd: int) -> bool:
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(0))
