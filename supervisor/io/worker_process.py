"""One forked worker as its parent sees it: pid, task, report.

A worker counts as gone when its report pipe is at end of file and it has been reaped. The two come
in any order.
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

    NONE: nothing could be read of the stream so far; the supervisor watches its source.
    LEAVING: the supervisor has killed it, or has reaped it and has still to read its report pipe.
    """

    NONE = "none"
    RETRY_SCHEDULED = "retry scheduled"
    WAITING_FOR_PREDECESSOR = "waiting for predecessor"
    BACKING_OFF = "backing off"
    COPYING = "copying"
    REPORTED = "reported"
    LEAVING = "leaving"


_LEAVE_S = 0.2
"""Until a worker is killed that was asked to leave: it may be stopped, or not listen yet."""

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
        """Watch the worker `pid`.

        `on_gone` is called when the worker is gone, with its report, which may be empty or junk.
        After `dismiss` it is not called.
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
        """Whether the pid may belong to another process by now."""
        return self._termination is not None

    @property
    def has_reported(self) -> bool:
        """Whether the worker has said its last word; its exit follows."""
        return bool(self._record) and not self._report_rfd.is_open

    @property
    def is_untouched(self) -> bool:
        """Whether the worker has neither reported nor exited, as far as is known."""
        return not self.is_reaped and self._report_rfd.is_open and not self._record

    def kill(self) -> None:
        """Send SIGKILL, if the worker has not been reaped."""
        if not self.is_reaped:
            self.is_killed = True
            os.kill(self.pid, signal.SIGKILL)

    def dismiss(self, on_left: Callable[[Worker], None], *, leave_signal: int = 0) -> None:
        """Kill the worker and ignore its report. `on_left` is called when it has been reaped.

        With `leave_signal` it is asked to leave by itself, and killed a moment later.
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
    """Fork a worker for `stream`; returns its pid and the read end of its report pipe, owned.

    The worker waits until the processes of `predecessors`, pidfds, have ended.

    Raises:
        OSError: EMFILE, ENFILE; EAGAIN, ENOMEM: the limits of our cgroup.
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
        report_wfd.close()  # the worker has the only one now: its death is our end of file
    return pid, report_rfd


def _orphaned_fifo(context: SlotContext, stream: Stream) -> OrphanedFifo | None:
    """Return how the worker ends when the supervisor dies and cannot be followed.

    None if the worker ends by itself then, or if another supervisor may adopt the container.
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
