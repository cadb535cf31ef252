"""One forked worker as the supervisor sees it: pid, task, report.

A worker is gone when it was reaped and its report pipe is at end of file, in any order.
"""

from __future__ import annotations

import os
import signal
from enum import Enum
from functools import partial

from supervisor.linux import fds, spawn, syscalls
from workers.common.records import replace
from workers.copy import output, stdin
from workers.process import report
from workers.process.context import WorkerContext
from workers.process.orphan import OrphanedFifo

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from supervisor.io.slot_context import SlotContext
    from supervisor.io.stream import Stream
    from supervisor.linux.exit_status import Termination
    from workers.process.task import Task


class WorkerState(Enum):
    """What a stream's worker does now.

    NONE: the source was not readable yet, and the supervisor watches it.
    LEAVING: the supervisor has killed it, or has reaped it but not read its report to the end.
    """

    NONE = "none"
    RETRY_SCHEDULED = "retry scheduled"
    WAITING_FOR_PREDECESSOR = "waiting for predecessor"
    BACKING_OFF = "backing off"
    COPYING = "copying"
    REPORTED = "reported"
    LEAVING = "leaving"


_LEAVE_S = 0.2
"""Time to exit after the leave signal, then SIGKILL: the worker may be stopped."""

WITHOUT_WORKER = frozenset({WorkerState.NONE, WorkerState.RETRY_SCHEDULED})


class Worker:
    """A child of this process. Owns the read end of its report pipe."""

    def __init__(
        self,
        context: SlotContext,
        pid: int,
        report_rfd: fds.Fd,
        task: Task,
        *,
        on_gone: Callable[[Termination, bytes], None],
    ) -> None:
        """Watch the worker `pid`. Owns `report_rfd`.

        `on_gone` is called when the worker is gone, with its termination and its report. The report
        may be empty or invalid. After `dismiss` it is not called.
        """
        self._loop = context.loop
        self.pid = pid
        self.task = task
        self._report_rfd = report_rfd
        self._record = b""
        self._termination: Termination | None = None
        self._on_left: Callable[[Worker], None] | None = None
        self._on_gone = on_gone
        self.is_killed = False
        self._kill_timer = context.loop.timer(self.kill)
        self._loop.watch(report_rfd.fileno(), self._on_readable)
        context.reaper.expect(pid, self._on_exit)

    def fileno(self) -> int:
        """Return the read end of the report pipe, borrowed."""
        return self._report_rfd.fileno()

    @property
    def is_reaped(self) -> bool:
        """Whether the worker was reaped: the pid may belong to another process."""
        return self._termination is not None

    @property
    def has_reported(self) -> bool:
        """Whether the worker has sent its report and closed the pipe. Its exit follows."""
        return bool(self._record) and not self._report_rfd.is_open

    @property
    def is_untouched(self) -> bool:
        """Whether the supervisor has seen neither a report nor the exit of the worker."""
        return not self.is_reaped and self._report_rfd.is_open and not self._record

    def kill(self) -> None:
        """Send SIGKILL, unless the worker was reaped."""
        if not self.is_reaped:
            self.is_killed = True
            os.kill(self.pid, signal.SIGKILL)

    def dismiss(self, on_left: Callable[[Worker], None], *, leave_signal: int = 0) -> None:
        """Kill the worker and ignore its report. `on_left` is called when it was reaped.

        With `leave_signal` the worker gets that signal first, and SIGKILL 0.2 s later.
        """
        self._on_left = on_left
        if self._report_rfd.is_open:
            self._close_report_pipe()
        if leave_signal and not self.is_reaped:
            os.kill(self.pid, leave_signal)
            self._kill_timer.start(_LEAVE_S)
        else:
            self.kill()

    def _close_report_pipe(self) -> None:
        self._loop.forget(self._report_rfd.fileno())
        self._report_rfd.close()

    def _on_readable(self) -> None:
        chunk = os.read(self._report_rfd.fileno(), report.MOST_BYTES + 1)
        self._record = (self._record + chunk)[: report.MOST_BYTES + 1]
        if not chunk:
            self._close_report_pipe()
            self._call_if_gone()

    def _on_exit(self, termination: Termination) -> None:
        self._termination = termination
        self._kill_timer.cancel()
        if self._on_left is not None:
            self._on_left(self)
        else:
            self._call_if_gone()

    def _call_if_gone(self) -> None:
        if self._termination is not None and not self._report_rfd.is_open:
            self._on_gone(self._termination, self._record)


def fork(
    context: SlotContext, stream: Stream, number: int, task: Task, predecessors: Sequence[fds.Fd]
) -> tuple[int, fds.Fd]:
    """Fork a worker for `stream`. Before it copies, it waits for the exit of `predecessors`.

    Args:
        context: What all slots share.
        stream: The stream, borrowed.
        number: The stream's slot in the shared counters.
        task: What the worker does.
        predecessors: pidfds, borrowed.

    Returns:
        The worker's pid, and the read end of its report pipe, which the caller owns.

    Raises:
        OSError: EMFILE, ENFILE; EAGAIN, ENOMEM: the limits of the supervisor's cgroup.
    """
    report_rfd, report_wfd = fds.pipe(report.MOST_BYTES)
    os.set_blocking(report_rfd.fileno(), False)
    worker_context = WorkerContext(
        stream=stream.name,
        title=f"{context.title} [{stream.name}]",
        counters=context.counters,
        slot=number,
        report_wfd=report_wfd.fileno(),
        null_fd=context.null_fd,
        predecessors=tuple(each.fileno() for each in predecessors),
        task=task,
        reported_dropped_bytes=context.stream_log.reported_drops(stream).bytes,
        orphaned_fifo=_orphaned_fifo(context, stream),
    )
    try:
        pid = spawn.fork_worker(_work(context, stream, worker_context))
    except OSError:
        report_rfd.close()
        raise
    finally:
        report_wfd.close()  # only the worker has a write end now: its death is end of file here
    return pid, report_rfd


def _orphaned_fifo(context: SlotContext, stream: Stream) -> OrphanedFifo | None:
    """Return what the worker needs to end when the supervisor dies and no adoption can follow.

    None if the worker then ends without it, or if another supervisor may adopt the container.
    """
    if context.is_adoptable or not stream.has_own_fifo:
        return None
    return OrphanedFifo(stream.sink.fileno(), os.getpid(), syscalls.set_pdeathsig)


def _work(
    context: SlotContext, stream: Stream, worker_context: WorkerContext
) -> Callable[[], None]:
    route = stream.route
    if stream.packet_input is not None:
        from workers.copy import packet_stdin  # loaded already, with the stream's `packet_input`

        return partial(packet_stdin.work, worker_context, route, stream.packet_input)
    if stream.is_input:
        return partial(stdin.work, worker_context, route, context.raw_terminal)
    attach_clients = context.attach_hub.clients_of(stream)
    if attach_clients:
        route = replace(route, attach_clients=attach_clients, tee=syscalls.tee)
    if stream.line_sink is not None:
        return partial(stream.line_sink.work, worker_context, route)
    return partial(output.work, worker_context, route)
