"""The slot of one stream's workers: at most one that works, and those that leave.

The supervisor watches the source, and forks the first worker when it is readable. A source that is
at end of file without a byte needs no worker.

The stream owns the descriptors while the container lives. When a worker dies without a report, the
supervisor forks another on the same descriptors. It continues at the same byte, because every
position is in the kernel or in shared memory. `StreamCopy` applies the decisions of the restart
policy.
"""

from __future__ import annotations

import contextlib
import os
from abc import ABC, abstractmethod

from supervisor.children import restart_policy
from supervisor.children.restart_policy import FailureHistory
from supervisor.io import worker_process
from supervisor.io.stream import StreamPhase
from supervisor.io.worker_process import WITHOUT_WORKER, Worker, WorkerState
from supervisor.linux import fds
from workers.common.records import replace
from workers.process.task import COPY, COUNT_REST

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from supervisor.io.slot_context import SlotContext
    from supervisor.io.stream import Stream
    from supervisor.linux.exit_status import Termination
    from workers.process.task import Task


class WorkerSlot(ABC):
    """Owns the workers of one stream; borrows the stream.

    `StreamCopy` is the only subclass, and has the three abstract methods. A separate object would
    need twelve methods that only these two classes call. The class has many methods, because the
    life of a worker, from its fork to its replacement, is in one place.

    Attributes:
        number: The stream's slot in the shared counters.
        worker: The present worker; None without one.
        history: The failures of the workers.
    """

    def __init__(self, context: SlotContext, stream: Stream, number: int) -> None:
        """Borrow everything. There is no worker before `start`."""
        self._context = context
        self.stream = stream
        self.number = number
        self.worker: Worker | None = None
        self.history = FailureHistory()
        self._leaving: list[Worker] = []
        self._retry = context.loop.timer(lambda: self._on_retry())
        self._on_retry: Callable[[], None] = self._fork_if_wanted
        self._copied_bytes_at_fork = 0
        self._is_watching = False

    @abstractmethod
    def _on_gone(self, termination: Termination, record: bytes) -> None:
        """Decide what follows a worker that was reaped and whose report was read."""

    @abstractmethod
    def _pause_after_refusal(self, error: OSError) -> float:
        """Count and log a failed fork(2). Return the pause in seconds."""

    @abstractmethod
    def _close(self) -> None:
        """Close the stream."""

    @property
    def pid(self) -> int:
        """The worker's pid; 0 if there is none."""
        return self.worker.pid if self.worker else 0

    @property
    def state(self) -> WorkerState:
        """What the present worker does."""
        worker = self.worker
        if worker is None:
            return WorkerState.RETRY_SCHEDULED if self._retry.is_running else WorkerState.NONE
        if worker.is_killed or worker.is_reaped:
            return WorkerState.LEAVING
        if worker.has_reported:
            return WorkerState.REPORTED
        if self._leaving or self._context.leftover_workers:
            return WorkerState.WAITING_FOR_PREDECESSOR
        if worker.task.remaining_s() > 0:
            return WorkerState.BACKING_OFF
        return WorkerState.COPYING

    @property
    def has_processes(self) -> bool:
        """Whether a worker was not reaped yet."""
        return bool(self.worker or self._leaving)

    @property
    def is_settled(self) -> bool:
        """Whether there is no worker, or it has neither reported nor exited."""
        return self.worker is None or self.worker.is_untouched

    @property
    def copied_bytes(self) -> int:
        """How many bytes the stream has copied."""
        return self._context.counters.copied_bytes(self.number)

    @property
    def in_flight_bytes(self) -> int:
        """How many bytes its worker has read and not written yet."""
        return self._context.counters.in_flight_bytes(self.number)

    @property
    def _has_begun(self) -> bool:
        """Whether there ever was a worker: its buffers may have bytes."""
        return self._context.counters.has_begun(self.number)

    @property
    def _has_progress(self) -> bool:
        return self.copied_bytes != self._copied_bytes_at_fork

    def _first_task(self) -> Task:
        return COUNT_REST if self.stream.phase is StreamPhase.COUNTING_REST else COPY

    def start(self) -> None:
        """Fork a worker if there is none; the first when the source is readable.

        With the user's terminal in raw mode the worker of stdin is forked at once: it restores the
        terminal if the supervisor is killed.
        """
        is_raw = self.stream.is_input and self._context.raw_terminal is not None
        if is_raw or self._has_begun:
            self.begin()
        elif not (self._is_watching or self.stream.is_closed):
            try:
                self._context.loop.watch(self.stream.source.fileno(), self._on_source_ready)
            except PermissionError:  # EPERM, epoll_ctl(2): a file or /dev/null, always readable
                self.begin()
            else:
                self._is_watching = True

    def begin(self) -> None:
        """Fork a worker now if there is none."""
        if self.worker is None and not self.stream.is_closed:
            self._fork(self._first_task())

    def _on_source_ready(self) -> None:
        self._context.before_first_byte()
        if fds.is_at_end(self.stream.source.fileno()):
            self._close()
        elif self.stream.has_pending():
            self.begin()

    def _stop_watching(self) -> None:
        if self._is_watching:
            self._is_watching = False
            self._context.loop.forget(self.stream.source.fileno())

    def replace(self, task: Task = COPY) -> None:
        """Replace a healthy worker.

        The next worker is forked first, and waits for the exit of the present one. A stream that
        waits for its first byte gets no worker.
        """
        self._retry.cancel()
        if self.stream.is_closed:
            return
        old = self.worker
        if old is None or old.is_reaped:
            if task == COPY and not self._has_begun:
                self._context.attach_hub.accept(self.stream)
            elif old is None:
                self._fork(task)
            return  # or it is reaped, and `_on_gone` decides once its report was read
        self.worker = None
        self._leaving.append(old)
        if self._fork(task):
            old.dismiss(self._on_left, leave_signal=self.stream.leave_signal)
        else:
            self._leaving.remove(old)
            self.worker = old
            self._retry_later(restart_policy.FORK_AGAIN_S, lambda: self.replace(self._first_task()))

    def begin_or_replace(self) -> None:
        """Fork the first worker now, or replace the present one."""
        if self.worker is None and not self._has_begun:
            self.begin()
        else:
            self.replace()

    def park(self) -> None:
        """End the worker. Fork the next when the source is readable again."""
        self._retry.cancel()
        self._context.counters.clear_begun(self.number)
        old, self.worker = self.worker, None
        if old is not None and not old.is_reaped:
            self._leaving.append(old)
            old.dismiss(self._on_left, leave_signal=self.stream.leave_signal)
        self.start()

    def kill(self) -> None:
        """Kill the worker; `_on_gone` replaces it."""
        if self.worker is not None:
            self.worker.kill()

    def stop(self) -> None:
        """Kill the worker, which loses no byte. The caller waits until `has_processes` is false."""
        self._retry.cancel()
        self._stop_watching()
        self.kill()

    def _fork(self, task: Task) -> bool:
        """Fork a worker, which waits for the exit of all earlier ones.

        Returns False if fork(2) failed; a timer then tries again.
        """
        self._stop_watching()
        self._context.counters.set_begun(self.number)
        self._copied_bytes_at_fork = self.copied_bytes
        with contextlib.ExitStack() as stack:
            try:
                # All, because the last may have been killed while it waited for an earlier one.
                leaving = [
                    stack.enter_context(contextlib.closing(fds.Fd(os.pidfd_open(each.pid))))
                    for each in self._leaving  # unreaped, so no other process has the pid
                ]
                pid, report_rfd = worker_process.fork(
                    self._context,
                    self.stream,
                    self.number,
                    task,
                    [*leaving, *self._context.leftover_workers],
                )
            except OSError as error:  # EMFILE, ENFILE; EAGAIN, ENOMEM: limits of the cgroup
                self._retry_later(self._pause_after_refusal(error), self._fork_if_wanted)
                return False
        self.history = replace(self.history, failed_forks=0)
        self._watch(pid, report_rfd, task)
        if not self._leaving:
            self._context.attach_hub.accept(self.stream)
        return True

    def _watch(self, pid: int, report_rfd: fds.Fd, task: Task) -> None:
        self.worker = Worker(self._context, pid, report_rfd, task, on_gone=self._on_gone)

    def _retry_later(self, delay_s: float, callback: Callable[[], None]) -> None:
        self._on_retry = callback
        self._retry.start(delay_s)

    def _fork_if_wanted(self) -> None:
        if self.state in WITHOUT_WORKER and not self.stream.is_closed:
            self._fork(self._first_task())

    def _on_left(self, worker: Worker) -> None:
        self._leaving.remove(worker)
        # Not earlier: a worker that is killed in splice(2) may still move bytes to the sink only.
        if self.worker is not None and not self._leaving:
            self._context.attach_hub.accept(self.stream)
