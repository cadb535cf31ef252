"""One supervised process: a container's init, or a process that was exec'd in a container.

The table in `supervisor.container.lifecycle` decides what happens when. The parts carry its actions
out: `StartSequence` up to the running program, `Running` from there on. Clients use the verbs of
`supervisor.container.api`.
"""

from __future__ import annotations

from supervisor.container.lifecycle import Action, Event, Machine, Notice, State
from supervisor.container.request import Outcome, StreamEnd
from supervisor.container.start import Launch, StartSequence
from supervisor.linux import fds
from supervisor.linux.errors import MachineError, ShimError, StoppedError, reason
from supervisor.linux.event_loop import Loop
from supervisor.linux.exit_status import shell_status, signal_name
from supervisor.sinks.spec import is_journal_setting

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from supervisor.container.host import Host
    from supervisor.container.init_process import Process
    from supervisor.container.request import StartRequest
    from supervisor.container.running import Running
    from supervisor.handover.manager import Inherited
    from supervisor.linux.event_loop import Timer
    from supervisor.oci.process_json import CheckpointRecord, ProcessConfig
    from supervisor.state.directory import StateDirectory
    from supervisor.state.log import Log

REAP_LIMIT_S = 5.0
"""The supervisor does not wait longer for a worker in uninterruptible sleep."""


class Container:
    """One supervised process. Owns its launch and all that follows, until `has_left`.

    Many methods: the parts report to it, the signal policy and the verbs ask it.

    Attributes:
        parent: The container in which this process was exec'd, if this host has it; else None.
        process: None before the runtime has created it.
        subscribers: Called with each notice and its detail.
        waiting: Called with the outcome when every child is reaped and every descriptor closed.
    """

    SNAPSHOT = ("launch", "_running", "process", "is_stopping")
    TRANSIENT = (
        "host",
        "parent",  # found by the container id
        "machine",  # only a container that runs is handed over
        "is_started",
        "sequence",
        "error",
        "subscribers",  # in-process clients: they end with the process
        "waiting",
        "_leave_limit",
        "_outcome",
    )

    def __init__(
        self,
        host: Host,
        request: StartRequest,
        log: Log,
        state_dir: StateDirectory,
        config: ProcessConfig,
        *,
        exit_fifo: fds.Fd | None = None,
        control_fifo: fds.Fd | None = None,
        parent: Container | None = None,
    ) -> None:
        """Borrow log and state directory, own the fifos. Nothing happens before `begin`.

        Raises:
            RuntimeMissingError: The runtime is not installed.
        """
        self.host = host
        self.parent = parent
        self.launch = Launch(
            host,
            Loop(self._feature_failed, part_of=host.loop),
            request,
            log,
            state_dir,
            config,
            exit_fifo or fds.Fd(-1),
            control_fifo or fds.Fd(-1),
        )
        self.machine = Machine(self._entered, self._carry_out)
        self.sequence = StartSequence(self.launch, self)
        self.error: ShimError | None = None
        self.process: Process | None = None
        self.is_started = False
        self.is_stopping = False
        self.subscribers: list[Callable[[Notice, str], None]] = []
        self.waiting: list[Callable[[Outcome], None]] = []
        self._running: Running | None = None
        self._leave_limit: Timer | None = None
        self._outcome: Outcome | None = None

    @property
    def request(self) -> StartRequest:
        """What the front end wants."""
        return self.launch.request

    @property
    def state(self) -> State:
        """The state in the table."""
        return self.machine.state

    @property
    def running(self) -> Running:
        """The parts that exist from the start of the runtime on."""
        if self._running is None:
            raise AssertionError("not assembled yet")
        return self._running

    @property
    def pid(self) -> int:
        """The pid of the supervised process; 0 before the runtime has created it."""
        return self.process.pid if self.process else self.launch.creation.pid

    @property
    def is_alive(self) -> bool:
        """Whether the program has started and not ended."""
        return self.is_started and self.process is not None and self.process.is_alive

    @property
    def outcome(self) -> Outcome:
        """How it went. Only after `has_left`."""
        if self._outcome is None:
            raise AssertionError("not over yet")
        return self._outcome

    def assemble(self, inherited: Inherited | None = None) -> None:
        """Make `running`. A second call does nothing."""
        if self._running is None:
            self._running = self.launch.assemble(self, inherited)

    def begin(self, checkpoint: CheckpointRecord | None = None) -> None:
        """Create the process, or restore it from `checkpoint`. The host's loop does the rest."""
        self.launch.creation.checkpoint = checkpoint
        self.enter_host()
        if self.request.origin.notifier.has_manager:
            self.assemble()
        self.sequence.open_stdio()
        if self.state is State.OPENING:  # a client lets the supervisor wait
            self.assemble()
            self.host.prepare_forks(self.launch.title)

    def enter_host(self) -> None:
        """Be served by the host. Log to the journal, too, if the container's lines go there.

        With an engine the records of the container's id are the container's alone.
        """
        self.host.containers.append(self)
        config, is_engines = self.launch.config, self.request.spec.engine_call is not None
        has_journal = is_journal_setting(config.stdout) or is_journal_setting(config.stderr)
        if has_journal and not is_engines:
            self.launch.log.use_journal(self.request.spec.container_id)

    # Steps: from the outside world to the table, and from the table to the parts.

    def _entered(self, state: State) -> None:
        if self._running is not None:
            self._running.service.entered(state, self.description())

    def _carry_out(self, action: Action) -> None:
        if action is Action.CREATE:
            self.sequence.create()
        else:
            self.running.actions[action]()

    def fail(self, error: ShimError, event: Event) -> None:
        """Set the reason of a failed start, and post `event`."""
        self.error = error
        self.machine.post(event)

    def description(self) -> str:
        """Return the state in words, for systemd."""
        pid = f", pid {self.pid}" if self.pid else ""
        end = self.process.end_in_words() if self.process else ""
        return f"{self.state.value}{pid}{f' ({end})' if end else ''}"

    def announce(self, notice: Notice, detail: str = "") -> None:
        """Call the subscribers."""
        for subscriber in self.subscribers:
            subscriber(notice, detail)

    def _feature_failed(self, feature: str, error: Exception) -> None:
        what = f"{feature}: {type(error).__name__}: {error}"
        self.launch.log.warning(f"{what}; {feature} is off from now on")
        notify_worker = self._running.notify_worker if self._running else None
        if notify_worker is not None and feature == notify_worker.feature:
            notify_worker.give_up()

    # What the parts report.

    def created(self) -> None:
        """The runtime has created the process: follow it."""
        launch = self.launch
        is_too_late = self.state is State.ABORTING
        if is_too_late and launch.is_ours_to_start:
            self.error = StoppedError("stopped while it was being created")
        try:
            process = self.running.take_process(launch.creation.pid)
        except OSError as failed:  # EMFILE
            error = MachineError(f"{launch.creation.verb}: {reason(failed)}")
            self.fail(error, Event.CREATE_FAILED)
            return
        self.process = process
        self.announce(Notice.CREATED)
        runs = is_too_late and not launch.is_ours_to_start
        self.machine.post(Event.STARTED if runs else Event.CREATED)
        self.running.expect_end(process)
        self._look_at_reload()

    def started(self) -> None:
        """The program runs: call the front end, and send the signals that have waited.

        Who is told that it runs may kill this supervisor next: the container is adoptable by then.
        """
        self.is_started = True
        self.running.handover.publish()
        self.request.origin.on_started()
        self.running.service.ready()
        for signum in self.sequence.early_signals():
            self.signal_process(signum)
        self.running.handover.changed()  # readiness, and the signals
        self._look_at_reload()
        self.announce(Notice.STARTED)

    def _look_at_reload(self) -> None:
        if self.host.reload is not None:
            self.host.reload.look()

    def process_ended(self) -> None:
        """The process has been reaped."""
        if self.state not in (State.STARTING, State.STOP_DEFERRED):
            self.machine.post(Event.INIT_EXITED)
            return
        error = self.sequence.error_if_never_ran()
        if error is not None:
            self.fail(error, Event.NEVER_RAN)
            return
        if self.state is State.STARTING:
            self.machine.post(Event.STARTED)  # the process ended before the runtime's `start`
        self.machine.post(Event.INIT_EXITED)

    def recorded(self) -> None:
        """`exitStatus` is on disk."""
        process = self.process
        if process is not None and process.termination is not None:
            self.announce(Notice.EXITED, str(shell_status(process.termination)))
            if process.oom_kills:
                self.announce(Notice.OOM, str(process.oom_kills))

    # What others want of it; see `SignalPolicy` and `api`.

    def stop(self, why: str) -> None:
        """Stop the process: the stop signal, the grace period, SIGKILL."""
        if self.state is State.OPENING:
            self.launch.opener.cancel()
            self.error = StoppedError(f"stopped by {why} before its creation")
        self.is_stopping = True
        self.launch.log.info(f"{why}: stopping")
        self.machine.post(Event.STOP)
        if self.state is State.DRAINING:
            self.running.exit.look()  # the drain may be waiting for other processes

    def stop_by(self, signum: int) -> None:
        """Stop the process because the supervisor has got this signal."""
        self.stop(signal_name(signum))

    def signal_process(self, signum: int) -> None:
        """Send a signal to the process, if it lives."""
        if self.process is not None:
            self.process.signal(signum)

    # The end.

    def tell_of_bug(self, error: Exception) -> None:
        """Log an unforeseen error. Before the runtime runs, the caller's line is enough."""
        if self._running is not None:
            self._running.tell_of_bug(error)

    def has_left(self) -> bool:
        """Return whether nothing is left of the container. Takes the next step towards that."""
        if self.state is not State.ENDED:
            return False
        if self._leave_limit is None:
            self._leave()
        launch, limit = self.launch, self._leave_limit
        is_gone = launch.invoker.is_idle and launch.opener.is_idle
        is_gone = is_gone and (self._running is None or self._running.has_left)
        if limit is not None and limit.is_running and not is_gone:
            return False
        self._close()
        return True

    def _leave(self) -> None:
        """Kill each worker and each runtime process of this container."""
        streams: tuple[StreamEnd, ...] = ()
        if self._running is not None:
            streams = self._running.stream_ends()
            self._running.leave()
        process = self.process
        self._outcome = Outcome(
            process.termination if process else None,
            self.error,
            self.is_stopping,
            self.pid,
            process.oom_kills if process else 0,
            streams,
        )
        self.launch.invoker.kill_running()
        self._leave_limit = self.launch.loop.timer(lambda: None)
        self._leave_limit.start(REAP_LIMIT_S)

    def _close(self) -> None:
        if self._leave_limit is not None:
            self._leave_limit.cancel()
        self.launch.creation.known()
        if self._running is not None:
            self._running.close()
        self.sequence.close()
        if self.process is not None:
            self.process.close()
        self.launch.close()
        for on_outcome in self.waiting:
            on_outcome(self.outcome)
        self.launch.exit_fifo.close()
