"""What follows the end of the supervised process: it is told, its output drained, all reaped.

How long a drain waits, and for what, is the rule of `supervisor.drain`; its verdicts are carried
out here, and said in the log.
"""

from __future__ import annotations

from supervisor.drain import DrainWatch, Verdict
from supervisor.journal_log import Kind
from supervisor.waitstatus import Unknown, shell_status

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from supervisor.calls import RuntimeCalls
    from supervisor.crew import Crew
    from supervisor.log import Log
    from supervisor.loop import Loop
    from supervisor.process import Process
    from supervisor.relay_worker import RelayWorker
    from supervisor.service import Service
    from supervisor.stdio import StdioOpener
    from supervisor.stream import Stream

REAP_LIMIT_S = 5.0
_LATE = "late children"
_LOOK = "drain"


class Ending:
    """Follows one end. Borrows everything."""

    def __init__(
        self,
        loop: Loop,
        crew: Crew,
        service: Service,
        log: Log,
        *,
        is_stopping: Callable[[], bool],
    ) -> None:
        """`is_stopping` says whether a stop has been asked for, which may be as late as a drain."""
        self._loop = loop
        self._crew = crew
        self._service = service
        self._log = log
        self._is_stopping = is_stopping
        self._watch: DrainWatch | None = None
        self._is_read = False
        self._on_drained: Callable[[], None] | None = None

    def record(self, process: Process) -> None:
        """Write `exitStatus` and say how it ended; its last words are what is in its pipes now."""
        # First of all: somebody waits for it.
        try:
            process.record_end()
        except OSError as error:
            # The engine will find no status, which is the truth; our caller gets it all the same.
            self._log.error(f"write exitStatus: {error.strerror}")
        self._crew.let_go()
        self._is_read = True
        self._watch = DrainWatch(self._crew)
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

    def drain(self, on_drained: Callable[[], None]) -> None:
        """Wait for the output streams, boundedly; `on_drained` follows once.

        After a failed creation there was no process: the clients are not waited for, then.
        """
        if self._watch is None:
            self._watch = DrainWatch(self._crew)
        self._watch.begin()
        self._crew.hurry()
        self._on_drained = on_drained
        self.look()

    def look(self) -> None:
        """Apply the rule, if we are draining: a stream has come to its end, or it is time to."""
        if self._watch is None or self._on_drained is None:
            return
        for stream, verdict in self._watch.judge(
            is_read=self._is_read, is_stopping=self._is_stopping()
        ):
            self._carry_out(stream, verdict)
        if not self._watch.is_over:
            self._service.going_on()
            self._loop.call_after(_LOOK, self._watch.next_look_s(), self.look)
        elif self._on_drained is not None:  # else a stream that ended just now was the last
            self._loop.cancel(_LOOK)
            on_drained, self._on_drained = self._on_drained, None
            on_drained()

    def _carry_out(self, stream: Stream, verdict: Verdict) -> None:
        if verdict is Verdict.STUCK:
            self._log.warning(f"{stream.name}: worker {stream.pid} does not move; killing it")
            self._crew.kill_worker(stream)
            return
        copied = self._crew.copied_bytes(stream)
        lost = self._crew.unread_bytes(stream)
        self._log.warning(
            f"{stream.name}: given up after {copied} bytes"
            f"{f', of which {lost} were never read' if lost else ''}: {verdict.value}",
            Kind.LOST,
        )
        if verdict is Verdict.STRAY:
            self._crew.hang_up(stream)
        else:
            self._crew.give_up(stream)

    def leave_nobody(
        self, calls: RuntimeCalls, opener: StdioOpener, relay_worker: RelayWorker | None = None
    ) -> None:
        """Kill and reap each process that still works for us; boundedly."""
        self._crew.stop()
        if relay_worker is not None:
            relay_worker.stop()
        calls.kill_running()
        is_late: list[bool] = []
        # A worker that sleeps uninterruptibly dies when it can: no reason for us to hang with it.
        self._loop.call_after(_LATE, REAP_LIMIT_S, lambda: is_late.append(True))
        self._loop.run_until(
            lambda: (
                bool(is_late)
                or (
                    not self._crew.has_workers
                    and calls.is_idle
                    and opener.is_idle
                    and (relay_worker is None or relay_worker.is_gone)
                )
            )
        )
        if relay_worker is not None:
            relay_worker.close()
