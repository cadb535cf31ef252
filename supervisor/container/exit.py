"""What follows the end of the supervised process: it is told, its output drained, all reaped.

How long a drain waits, and for what, is the rule of `supervisor.io.drain`; its verdicts are carried
out here, and said in the log.
"""

from __future__ import annotations

from supervisor.io.drain import DrainWatch, Verdict
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
    """Follows one end. Borrows everything."""

    def __init__(
        self,
        loop: Loop,
        stream_set: StreamSet,
        service: ServiceStatus,
        log: Log,
        *,
        is_stopping: Callable[[], bool],
        keeps_unread: bool = True,
        on_told: Callable[[], None] = lambda: None,
    ) -> None:
        """`is_stopping` says whether a stop has been asked for, which may be as late as a drain.

        `keeps_unread`: clients may come back, and are waited for. `on_told` follows when an exec'd
        process has ended and all that it has said is with its client, although others of its
        container go on.
        """
        self._loop = loop
        self._next_look = loop.timer(self.look)
        self._stream_set = stream_set
        self._service = service
        self._log = log
        self._is_stopping = is_stopping
        self._keeps_unread = keeps_unread
        self._on_told = on_told
        self._is_told = self._is_hurried = False
        self._container: ContainerInit | None = None
        self._watch: DrainWatch | None = None
        self._on_drained: Callable[[], None] | None = None

    def record(self, process: Process) -> None:
        """Write `exitStatus` and say how it ended; its last words are what is in its pipes now."""
        # First of all: the front end waits for it.
        try:
            process.record_end()
        except OSError as error:
            # The engine will find no status, which is the truth; our caller gets it all the same.
            self._log.error(f"write exitStatus: {error.strerror}")
        self._watch = DrainWatch(self._stream_set, is_read=self._keeps_unread)
        self._tell(process)

    def _tell(self, process: Process) -> None:
        message = f"process {process.pid} ended: {process.end_in_words()}"
        end = process.termination
        is_failure = end is not None and shell_status(end) != 0
        if process.oom_kills or isinstance(end, Unknown):
            self._log.warning(message, Kind.ENDED)
        elif is_failure and not self._is_stopping() and self._service.is_heard:
            # systemd only sees our own status, in which a signal and a 137 are the same.
            self._log.notice(message, Kind.ENDED)
        else:
            self._log.info(message)

    def drain(self, on_drained: Callable[[], None], container: ContainerInit | None = None) -> None:
        """Wait for the output streams; `on_drained` follows once.

        Boundedly, from the end of `container` on: others in it may have the streams. After a failed
        creation there was no process: the clients are not waited for, then.
        """
        self._container = container
        if container is not None:
            container.expect(self._on_container_end)
        if self._watch is None:
            self._watch = DrainWatch(self._stream_set, is_read=False)
        self._watch.begin()
        self._on_drained = on_drained
        self.look()

    def look(self) -> None:
        """Apply the rule, if we are draining: a stream has come to its end, or it is time to."""
        if self._watch is None or self._on_drained is None:
            return
        is_stopping = self._is_stopping()
        is_bounded = is_stopping or self._container is None or not self._container.is_alive
        if is_bounded and not self._is_hurried:
            self._is_hurried = True
            self._stream_set.hurry()
        for stream, verdict in self._watch.judge(is_stopping=is_stopping, is_bounded=is_bounded):
            self._carry_out(stream, verdict)
        if self._on_drained is None:
            return  # a stream that ended just now was the last
        self._next_look.cancel()
        if self._watch.is_over:
            self._tell_of_unread()
            on_drained, self._on_drained = self._on_drained, None
            on_drained()
        elif is_bounded or not self._watch.is_last_word_out:
            self._service.ask_for_more_time()
            self._next_look.start(self._watch.next_look_s())
        else:  # from here on each change is an event
            self._tell_of_others()

    def _tell_of_unread(self) -> None:
        """Say what is lost with us, since no client was waited for."""
        for stream in self._stream_set.outputs:
            lost = 0 if self._keeps_unread else self._stream_set.unread_bytes(stream)
            if lost:
                self._log.warning(f"{stream.name}: {lost} bytes were never read: it has no client")

    def _tell_of_others(self) -> None:
        if not self._is_told:
            self._is_told = True
            names = " and ".join(
                each.name for each in self._stream_set.outputs if not each.is_closed
            )
            self._log.info(f"{names}: others of the container go on with it")
            self._on_told()

    def _on_container_end(self) -> None:
        """Begin with the bounds."""
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
