"""One stream's slot and its decisions: what follows the end of a worker, and the stream's end.

`restart_policy` has the rules. This module applies them.
"""

from __future__ import annotations

import os
import time

from supervisor.children.restart_policy import FailureHistory, Next
from supervisor.io.stream import StreamPhase
from supervisor.io.worker_process import WorkerState
from supervisor.io.worker_slot import WorkerSlot
from supervisor.linux import fds
from supervisor.linux.errors import UntrustedError
from supervisor.sinks.sink import Drops
from workers.common.records import asdict
from workers.process import report
from workers.process.task import COPY, COUNT_REST, Task, TaskKind

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from supervisor.children.restart_policy import Decision
    from supervisor.io.slot_context import SlotContext
    from supervisor.io.stream import Stream
    from supervisor.linux.exit_status import Termination
    from supervisor.state.fd_store import FdWriter


class StreamCopy(WorkerSlot):
    """A slot and its decisions.

    Attributes:
        trouble: Why the stream copies nothing, in a few words; see `current_trouble`.
        left: Bytes and lines that a worker has counted after the stream was given up.
    """

    SNAPSHOT = (
        "number", "worker", "history", "trouble", "left", "_copied_bytes_at_fork"
    )  # fmt: skip
    TRANSIENT = (
        "stream",  # has a snapshot of its own
        "_context",
        "_leaving",  # killed workers
        "_retry",  # the next supervisor forks a worker for a stream without one
        "_on_retry",
        "_is_client_looked_for",  # true only in a drain, which no handover interrupts
        "_is_watching",  # the counters tell whether there ever was a worker
    )

    def __init__(self, context: SlotContext, stream: Stream, number: int) -> None:
        """As `WorkerSlot`."""
        super().__init__(context, stream, number)
        self.trouble = ""
        self.left = Drops(0, 0)
        self._is_client_looked_for = False

    @property
    def drops(self) -> Drops:
        """Bytes and lines that a drop policy, or giving the stream up, has lost."""
        sink = self.stream.line_sink
        drops = Drops(0, 0) if sink is None else sink.drops()
        return Drops(drops.bytes + self.left.bytes, drops.lines + self.left.lines)

    @property
    def current_trouble(self) -> str:
        """Why the stream copies nothing; "" if it copies. Logs the recovery."""
        if self.trouble and self._has_progress:
            self._context.stream_log.recovered(self)
        return self.trouble

    def could_move(self) -> bool:
        """Return whether a worker is copying, has bytes to copy, and has room for them.

        False for a lossy stream in trouble: its worker does not write on purpose.
        """
        return (
            self.state is WorkerState.COPYING
            and not (self.stream.is_lossy and self.current_trouble)
            and (self.stream.has_pending() or self.in_flight_bytes > 0)
            and self.stream.has_room()
        )

    def snapshot(self, fd_writer: FdWriter) -> dict[str, Any]:
        """Return what `restore` needs.

        A worker that has reported or exited is left out: the next worker meets the same error.
        """
        worker = self.worker if self.worker and self.worker.is_untouched else None
        return {
            **self.stream.snapshot(fd_writer),
            "number": self.number,
            "pid": worker.pid if worker else 0,
            "report": fd_writer.add(worker.fileno()) if worker else -1,
            "task": [worker.task.kind.value, worker.task.until_s] if worker else None,
            "history": asdict(self.history),
            "trouble": self.trouble,
            "left": [self.left.bytes, self.left.lines],
            "copied_bytes_at_fork": self._copied_bytes_at_fork,
        }

    def restore(self, packed: Mapping[str, Any], report_rfd: fds.Fd, *, is_parent: bool) -> None:
        """Continue with what `snapshot` of an earlier supervisor returned; owns `report_rfd`.

        Without `is_parent` the worker is no child of this process, and is not taken.
        """
        self.history = FailureHistory(**packed["history"])
        self.trouble = packed["trouble"]
        self.left = Drops(*packed["left"])
        self._copied_bytes_at_fork = packed["copied_bytes_at_fork"]
        if packed["pid"] and is_parent:
            kind, until_s = packed["task"]
            self._watch(packed["pid"], report_rfd, Task(TaskKind(kind), until_s))
        else:
            report_rfd.close()

    def renew(self) -> None:
        """Replace the worker by a worker of this supervisor's code. A pause goes on."""
        if self.stream.is_closed:
            return
        if self.worker is None:
            self.start()
        elif self.stream.is_interruptible:
            self.replace(self.worker.task)

    def end_pauses(self) -> None:
        """End every pause: the container is dead, and its exit waits for the streams."""
        if self.stream.is_closed:
            return
        if self.worker is None:
            self._retry.cancel()
            self.start()
        elif self.worker.task.remaining_s() > 0 or (self.stream.is_lossy and self.current_trouble):
            self.replace()

    def hang_up(self) -> None:
        """Take no more from the container's side, and close the stream.

        With a line sink, a worker first writes the buffer. Its source is /dev/null, so it reads end
        of file, and an incomplete line becomes complete.
        """
        self.stream.phase = StreamPhase.HANGING_UP
        if self.stream.line_sink is not None and self._has_begun:
            self._put_null_at(self.stream.source)
            self.replace()
            return
        self._retry.cancel()
        if self.worker is not None:
            self.worker.kill()
        else:
            self._close()

    def give_up(self) -> None:
        """Stop copying: another worker counts what is left, then the stream is closed."""
        if not self.stream.is_closed:
            self.stream.phase = StreamPhase.COUNTING_REST
            self.replace(COUNT_REST)

    def look_for_client(self) -> None:
        """Continue only if another process has the stream's fifo open, else give the stream up.

        The worker has the fifo open with O_RDWR, and so is killed first.
        """
        try:
            self.stream.write_only()
        except OSError:  # EMFILE: wait for the client, as if it were there
            return
        self._is_client_looked_for = True
        if self.worker is not None:
            self.worker.kill()
        else:
            self._continue_with_client()

    def _continue_with_client(self) -> None:
        self._is_client_looked_for = False
        if fds.has_reader(self.stream.sink.fileno()):
            self.start()
        else:
            self.stream.phase = StreamPhase.COUNTING_REST
            self._fork(COUNT_REST)

    def renew_sink(self) -> bool:
        """Reopen the line sink. Return False, and log it, if the file of that name is untrusted."""
        if self.stream.line_sink is not None:
            try:
                self.stream.line_sink.reopen()
            except UntrustedError as error:
                self._context.stream_log.reopen_refused(self.stream, error)
                return False
            except OSError:  # the next worker reports it
                pass
        return True

    def _on_gone(self, termination: Termination, record: bytes) -> None:
        """Decide what follows a worker that was reaped and whose report was read."""
        gone, self.worker = self.worker, None
        if self._context.is_closing or gone is None:
            return
        try:
            ended = report.decode(record)
        except report.ReportError as error:
            self._context.log.warning(f"{self.stream.name}: worker: {error}")
            ended = None
        if self.stream.has_no_next_worker:
            if ended is not None:
                self.left = Drops(ended.left_bytes, ended.left_lines)
            self._close()
        elif ended is None and self._is_client_looked_for:
            self._continue_with_client()
        elif ended is None:
            self._follow_dead(termination, was_waiting=gone.task.remaining_s() > 0)
        elif not self._is_followed(ended):
            self._close_after(ended)
        else:
            self._follow(ended)

    def _pause_after_refusal(self, error: OSError) -> float:
        """Count and log a failed fork(2). Return the pause in seconds."""
        decision = self._context.policy.after_refused_fork(self.history)
        self.history = decision.history
        self._context.stream_log.fork_refused(self, error, decision)
        return decision.pause_s

    def _decide(self, ended: report.Report) -> Decision:
        return self._context.policy.after_report(
            self.history,
            ended,
            stream=self.stream.name,
            has_line_sink=self.stream.line_sink is not None,
            is_lossy=self.stream.is_lossy,
            has_progress=self._has_progress,
        )

    def _is_followed(self, ended: report.Report) -> bool:
        """Return whether another worker continues the stream."""
        return not self.stream.has_no_next_worker and (self._decide(ended).next is not Next.CLOSE)

    def _follow(self, ended: report.Report) -> None:
        """Replace a worker that has reported an error."""
        decision = self._decide(ended)
        self.history = decision.history
        if decision.is_logged:
            self._context.stream_log.worker_failed(self, ended)
        match decision.next:
            case Next.FORK:
                self.trouble = ""
                self._context.stream_log.drops(self)
                self.replace()
            case Next.FORK_TO_NULL:
                self._put_null_at(self.stream.sink)
                self._context.on_change()
                self.replace()
            case _:
                is_renewed = self.stream.line_sink is not None and self.renew_sink()
                if self.stream.line_sink is not None:
                    self._context.on_change()
                self.replace(self._pause_task(decision.pause_s))
                if is_renewed:
                    self._context.stream_log.reopened(self.stream)
                self._context.stream_log.in_trouble(self, os.strerror(ended.errno))

    def _follow_dead(self, termination: Termination, *, was_waiting: bool) -> None:
        """Replace a worker that died without a report."""
        decision = self._context.policy.after_death(
            self.history, has_progress=self._has_progress, was_waiting=was_waiting
        )
        self.history = decision.history
        self._context.stream_log.worker_died(self, termination, decision)
        if decision.next is Next.FORK_LATER:
            self._retry_later(decision.pause_s, self._fork_if_wanted)
        else:
            self._fork(self._pause_task(decision.pause_s))

    def _close_after(self, ended: report.Report) -> None:
        if self._decide(ended).is_logged:
            self._context.stream_log.worker_failed(self, ended)
        self._close()

    def _pause_task(self, pause_s: float) -> Task:
        """Return the task of a worker that writes nothing for `pause_s`."""
        if not pause_s:
            return COPY
        kind = TaskKind.DROP_UNTIL if self.stream.is_lossy else TaskKind.WAIT_UNTIL
        return Task(kind, time.monotonic() + pause_s)

    def _put_null_at(self, place: fds.Fd) -> None:
        """Replace the descriptor by /dev/null. dup2(2) needs no free number: no EMFILE."""
        os.dup2(self._context.null_fd, place.fileno(), inheritable=False)

    def _close(self) -> None:
        self._retry.cancel()
        self._stop_watching()
        self.trouble = ""
        self._context.stream_log.drops(self)
        self._context.attach_hub.end(self.stream)
        self.stream.close_container_side()
        self._context.on_closed(self.stream)
