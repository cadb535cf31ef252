"""What follows the end of the process: its status is written, then its output is drained.

`supervisor.io.drain` decides how long the drain waits, and for what. `ExitSequence` carries its
verdicts out and logs them.
"""

from __future__ import annotations

from supervisor.io.drain import IDLE_S, DrainWatch, Verdict
from supervisor.linux.exit_status import Unknown, shell_status
from supervisor.state.journal_log import Kind

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from supervisor.container.init_process import ContainerInit, Process
    from supervisor.container.service_status import ServiceStatus
    from supervisor.io.stream import Stream
    from supervisor.io.stream_set import StreamSet
    from supervisor.linux.event_loop import Loop
    from supervisor.state.log import Log


class ExitSequence:
    """Follows the end of one process. Borrows everything."""

    def __init__(
        self,
        loop: Loop,
        stream_set: StreamSet,
        service: ServiceStatus,
        log: Log,
        *,
        is_stopping: Callable[[], bool],
        keeps_unread: bool = True,
        waits_for_others: bool = True,
        on_delivered: Callable[[], None] = lambda: None,
    ) -> None:
        """Do nothing before `record`.

        Args:
            loop: Has the timer of the next look.
            stream_set: The streams of the process.
            service: Gets time for a drain that makes progress.
            log: The container's.
            is_stopping: Returns whether a stop was asked for, which may be as late as the drain.
            keeps_unread: Clients may come back, so the drain waits for them.
            waits_for_others: Processes that outlive this one are given time to write.
            on_delivered: Called when an exec'd process has ended and its client has all its output,
                although other processes of the container still have its streams.
        """
        self._loop = loop
        self._next_look = loop.timer(self.look)
        self._stream_set = stream_set
        self._service = service
        self._log = log
        self._is_stopping = is_stopping
        self._keeps_unread = keeps_unread
        self._waits_for_others = waits_for_others
        self._on_delivered = on_delivered
        self._is_delivered = self._is_hurried = False
        self._container: ContainerInit | None = None
        self._watch: DrainWatch | None = None
        self._on_drained: Callable[[], None] | None = None

    def record(self, process: Process) -> None:
        """Write `exitStatus`, and log how the process ended.

        The drain waits for what is in the pipes now: the process cannot have written more.
        """
        # First: the front end waits for the file.
        try:
            process.record_end()
        except OSError as error:
            self._log.error(f"write exitStatus: {error.strerror}; the engine gets no status")
        self._watch = self._new_watch(is_read=self._keeps_unread)
        self._log_end(process)

    def _log_end(self, process: Process) -> None:
        message = f"process {process.pid} ended: {process.end_in_words()}"
        end = process.termination
        is_failure = end is not None and shell_status(end) != 0
        if process.oom_kills or isinstance(end, Unknown):
            self._log.warning(message, Kind.ENDED)
        elif is_failure and not self._is_stopping() and self._service.has_manager:
            # systemd sees only the supervisor's status: 137 for SIGKILL and for exit(137).
            self._log.notice(message, Kind.ENDED)
        else:
            self._log.info(message)

    def drain(self, on_drained: Callable[[], None], container: ContainerInit | None = None) -> None:
        """Wait for the output streams, then call `on_drained` once.

        While `container` runs, other processes in it may have the streams of an exec'd process: the
        drain is bounded only from the container's end on. After a failed creation there was no
        process, and the drain does not wait for clients.
        """
        self._container = container
        if container is not None:
            container.expect(self._on_container_end)
        if self._watch is None:
            self._watch = self._new_watch(is_read=False)
        self._watch.begin()
        self._on_drained = on_drained
        self.look()

    def _new_watch(self, *, is_read: bool) -> DrainWatch:
        idle_s = IDLE_S if self._waits_for_others else 0.0
        return DrainWatch(self._stream_set, is_read=is_read, idle_s=idle_s)

    def look(self) -> None:
        """Apply the rule, if a drain is under way. Called by the timer and when a stream ends."""
        if self._watch is None or self._on_drained is None:
            return
        is_stopping = self._is_stopping()
        has_others = self._container is not None and self._container.is_alive
        is_bounded = is_stopping or not has_others or not self._waits_for_others
        if is_bounded and not self._is_hurried:
            self._is_hurried = True
            self._stream_set.end_pauses()
        for stream, verdict in self._watch.judge(is_stopping=is_stopping, is_bounded=is_bounded):
            self._carry_out(stream, verdict)
        if self._on_drained is None:
            return  # a verdict has closed the last stream, which has called this again
        self._next_look.cancel()
        if self._watch.is_over:
            self._log_unread()
            on_drained, self._on_drained = self._on_drained, None
            on_drained()
        elif is_bounded or not self._watch.is_last_word_out:
            self._service.ask_for_more_time()
            self._next_look.start(self._watch.next_look_s())
        else:  # from here on each change is an event of the loop
            self._note_others()

    def _log_unread(self) -> None:
        """Log what is lost with the fifos, where the drain has not waited for clients."""
        for stream in self._stream_set.outputs:
            lost = 0 if self._keeps_unread else self._stream_set.unread_bytes(stream)
            if lost:
                self._log.warning(
                    f"{stream.name}: {lost} bytes were never read: its fifo has no reader"
                )

    def _note_others(self) -> None:
        if not self._is_delivered:
            self._is_delivered = True
            names = " and ".join(
                each.name for each in self._stream_set.outputs if not each.is_closed
            )
            self._log.info(f"{names}: other processes of the container still have it open")
            self._on_delivered()

    def _on_container_end(self) -> None:
        """Drain boundedly from now on."""
        if self._watch is not None:
            self._watch.begin()
        self.look()

    def _carry_out(self, stream: Stream, verdict: Verdict) -> None:
        if verdict is Verdict.STUCK:
            self._stream_set.kill_stuck_worker(stream)
            return
        if verdict is Verdict.CLOGGED:
            self._stream_set.look_for_client(stream)
            return
        copied = self._stream_set.copied_bytes(stream)
        lost = self._stream_set.unread_bytes(stream)
        self._log.warning(
            f"{stream.name}: given up after {copied} bytes"
            f"{f', of which {lost} were never read' if lost else ''}: {verdict.value}",
            Kind.LOST,
        )
        if verdict is Verdict.STRAY:
            self._stream_set.hang_up(stream)
        else:
            self._stream_set.give_up(stream)
