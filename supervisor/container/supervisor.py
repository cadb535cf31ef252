"""The contents page: the one process that supervises one container process.

`supervise` is the whole story in its order: signals, subreaper, fifos, process.json, stdio, the
runtime, the container's life, its death, and the tidying up. What happens when is decided by the
table in `supervisor.container.lifecycle`; here the actions are carried out. Front ends prepare the
state directory, choose an `Order`, and look at the `Outcome`. Who has a past begins in
`supervisor.container.restore`.

The runtime is started as soon as can be. What a supervisor needs only afterwards is imported while
the runtime works (`_equip`), and the crew gets to its work (`_gather`); where an engine waits for
the pid file, when that is there: a runtime keeps two cores busy by itself.
"""

from __future__ import annotations

import os
import signal
import traceback

from supervisor import __version__
from supervisor.container import lifecycle
from supervisor.container.container_init import ContainerInit
from supervisor.container.exec_watch import ExecWatch
from supervisor.container.lifecycle import Action, Event, State
from supervisor.container.request import Outcome, StreamEnd
from supervisor.container.request import pack as pack_order
from supervisor.io.open import Stdio, StdioOpener
from supervisor.io.open import go_on as go_on_with_stdio
from supervisor.io.pipes import Pipes
from supervisor.linux import fd_limit, fds, procfs, syscalls
from supervisor.linux.errors import (
    AbandonedError,
    RuntimeFailedError,
    ShimError,
    StoppedError,
    reason,
)
from supervisor.linux.event_loop import Loop
from supervisor.linux.exit_status import Termination, shell_status, signal_name
from supervisor.linux.reaper import Reaper
from supervisor.linux.signals import FORWARDED_SIGNALS, STOP_SIGNALS, SignalRouter
from supervisor.oci import kill_scope, process_json
from supervisor.oci.command_line import RuntimeCommand
from supervisor.oci.create import CreateOperation, explain
from supervisor.oci.invoke import HURRY_S, RuntimeInvoker
from supervisor.sinks.spec import SinkKind, is_journal_setting, parse_sink, with_absolute_path
from supervisor.state import control_protocol
from supervisor.state.journal_log import Kind
from workers.common.records import asdict, replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from supervisor.children.notify_worker import NotifyWorker
    from supervisor.container.exit import ExitSequence
    from supervisor.container.handover import HandoverManager, Inherited
    from supervisor.container.init_process import Process
    from supervisor.container.request import StartRequest
    from supervisor.container.service_status import ServiceStatus
    from supervisor.container.stop import Stopper
    from supervisor.io.stream import Stream
    from supervisor.io.workers import StreamSet
    from supervisor.state.directory import StateDirectory
    from supervisor.state.fd_store import FdWriter
    from supervisor.state.log import Log


def supervise(order: StartRequest, log: Log, state_dir: StateDirectory) -> Outcome:
    """Supervise one process until it is gone. `state_dir` is borrowed.

    Order of the start: signals, subreaper, `exit`, `control`, process.json, stdio, the runtime.
    Order of the end: `exitStatus`, kill --all, drain, delete; `exit` is closed last, by returning.

    Raises:
        ShimError: It could not even begin: a file of the state directory is missing or wrong.
    """
    router = SignalRouter(
        has_job_control=order.has_job_control, has_watchdog=order.notifier.watchdog_s > 0
    )
    try:
        syscalls.set_child_subreaper(True)
        exit_fifo = state_dir.open_fifo("exit")
        try:
            control_fifo = state_dir.open_fifo("control")
            record = process_json.read_process("process.json", state_dir.fileno())
            record = _with_absolute_logs(record, state_dir.path)
            checkpoint = (
                process_json.read_checkpoint(record.checkpoint) if record.checkpoint else None
            )
            fd_limit.check(3)
            supervisor = Supervisor(order, log, state_dir, router, exit_fifo, control_fifo, record)
            return supervisor.run(checkpoint)
        finally:
            exit_fifo.close()
    finally:
        router.close()


_LOOK_AT_STDERR_S = 0.1
_LATEST_CREW_S = 0.1
"""So long a runtime's hooks may wait that have more to say than a pipe takes."""


def _with_absolute_logs(
    record: process_json.ProcessConfig, directory: str
) -> process_json.ProcessConfig:
    """Return it with absolute paths of log files, which the workers open again by name."""
    return replace(
        record,
        stdout=_with_absolute_log(record.stdout, directory),
        stderr=record.stderr if record.terminal else _with_absolute_log(record.stderr, directory),
    )


def _with_absolute_log(setting: str, directory: str) -> str:
    if parse_sink(setting).kind is SinkKind.PATH:
        return setting  # a fifo, opened once, relative to the state directory
    return with_absolute_path(setting, directory)


class Supervisor:
    """Owns everything that lives as long as the supervised process."""

    # These come by `_equip`.
    _handover: HandoverManager
    _stream_set: StreamSet
    _stopper: Stopper
    _service: ServiceStatus
    _ending: ExitSequence

    def __init__(
        self,
        order: StartRequest,
        log: Log,
        state_dir: StateDirectory,
        router: SignalRouter,
        exit_fifo: fds.Fd,
        control_fifo: fds.Fd,
        record: process_json.ProcessConfig,
        past: Inherited | None = None,
    ) -> None:
        """`past`: what an earlier supervisor had, for this one to go on with; see `run_on`."""
        self._order = order
        self._log = log
        self._state_dir = state_dir
        self._router = router
        self._exit_fifo = exit_fifo
        self._control_fifo = control_fifo
        self._control = control_protocol.ControlParser()
        self._record = record
        self._title = f"forkshim: {order.container_id}"
        self._has_title = False
        self._has_crew = False
        self._held_stderr: Stream | None = None
        self._null = fds.Fd(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
        self._loop = Loop(self._feature_failed)
        self._loop.watch(router.fileno(), self._serve_signals)  # first: an end is told before all
        self._reaper = Reaper()
        self._reap_more = self._loop.timer(self._reap)
        self._latest_crew = self._loop.timer(self._gather)
        self._stderr_look = self._loop.timer(self._look_at_stderr)
        null_fd = self._null.fileno()
        self._calls = RuntimeInvoker(
            self._loop,
            self._reaper,
            name=order.runtime,
            cwd=state_dir.path,
            null_fd=null_fd,
            environment=order.environment,
        )
        self._caller = RuntimeCommand(
            name=order.runtime,
            args=record.runtime_args,
            state_dir=state_dir.path,
            bundle=order.bundle,
            container_id=order.container_id,
            config=order.config,
        )
        self._opener = StdioOpener(
            self._loop,
            self._reaper,
            container_id=order.container_id,
            bundle=order.bundle,
            title=self._title,
            null_fd=null_fd,
            dir_fd=state_dir.fileno(),
        )
        self._stdio = Stdio()
        self._creation = CreateOperation(
            self._loop,
            self._reaper,
            self._calls,
            self._caller,
            record,
            state_dir,
            from_three=order.activation_fds.filenos(),
        )
        self._pipes = Pipes(record, order.terminal, null_fd)
        self._state = State.OPENING
        self._is_taking_steps = False
        self._events: list[Event] = []
        self._error: ShimError | None = None
        self._process: Process | None = None
        self._container: ContainerInit | None = None
        self._start_pid = 0
        self._is_started = False
        self._exec_watch: ExecWatch | None = None
        self._is_stopping = False
        self._early_signals: set[int] = set()
        self._actions: dict[Action, Callable[[], None]] = {
            Action.CREATE: self._create,
            Action.KILL_RUNTIME: self._creation.cancel,
            Action.START: self._start,
            Action.HURRY_START: lambda: self._calls.hurry(self._start_pid, HURRY_S),
            Action.TELL_STARTED: self._tell_started,
            Action.SEND_STOP_SIGNAL: self._send_stop_signal,
            Action.KILL: lambda: self._stopper.kill(self._then(Event.KILL_OVERDUE)),
            Action.KILL_INIT: lambda: self._stopper.kill_again(self._then(Event.KILL_OVERDUE)),
            Action.NOTE_STOP_AGAIN: lambda: self._log.info("a stop is under way already"),
            Action.RECORD_EXIT: self._record_exit,
            Action.EMPTY: lambda: self._stopper.empty(self._then(Event.EMPTIED)),
            Action.CLEAN_UP: lambda: self._creation.clean_up(
                self._log, self._then(Event.CLEANED), is_alone=True
            ),
            Action.DRAIN: self._drain,
            Action.DELETE: self._delete,
        }

        self._notify_worker: NotifyWorker | None = None
        self._is_equipped = False
        if past is not None:
            self._equip(past)
            self._remember(past)
        elif order.notifier.is_heard:
            self._equip()

    def _equip(self, past: Inherited | None = None) -> None:
        """Import and make what is needed from the start of the runtime on; once."""
        if self._is_equipped:
            return
        self._is_equipped = True
        # This one is used later still, when an upgrade may have taken the file away.
        from supervisor.container import init_process as process  # noqa: F401
        from supervisor.container.exit import ExitSequence
        from supervisor.container.handover import HandoverManager
        from supervisor.container.service_status import ServiceStatus
        from supervisor.container.stop import Stopper
        from supervisor.io.workers import StreamSet

        order, log = self._order, self._log
        packed = past.contents.document["supervisor"] if past else None
        self._handover = HandoverManager(
            self._loop,
            self._reaper,
            self._calls,
            log,
            order,
            self._state_dir,
            self,
            past,
            title=self._title,
            null_fd=self._null.fileno(),
        )
        self._stream_set = StreamSet(
            self._loop,
            self._reaper,
            log,
            title=self._title,
            null_fd=self._null.fileno(),
            on_stream_over=lambda: self._ending.look(),
            on_change=self._handover.changed,
            on_trouble=lambda: self._service.look(),
            is_adoptable=self._handover.is_adoptable,
            dir_fd=self._state_dir.fileno(),
            counters=past.contents.take(packed["crew"]["ledger"]) if past and packed else None,
        )
        self._stopper = Stopper(
            self._loop,
            self._calls,
            self._caller,
            log,
            is_exec=self._record.is_exec,
            signal_init=self._signal_init,
        )
        self._service = ServiceStatus(
            order.notifier,
            self._loop,
            self._stream_set,
            log,
            stop_timeout_s=order.stop_timeout_s,
            has_notify_proxy=order.notify_proxy is not None,
            packed=packed["service"] if packed else None,
        )
        self._ending = ExitSequence(
            self._loop,
            self._stream_set,
            self._service,
            log,
            is_stopping=lambda: self._is_stopping,
            keeps_unread=order.starts_container,
            on_told=self._exit_fifo.close,
        )
        if order.notify_proxy is not None:
            from supervisor.children.notify_worker import NotifyWorker

            self._notify_worker = NotifyWorker(
                self._loop,
                self._reaper,
                log,
                order.notify_proxy,
                title=self._title,
                null_fd=self._null.fileno(),
                on_words=self._service.heard,
                on_change=self._handover.changed,
            )

    def run(self, checkpoint: process_json.CheckpointRecord | None) -> Outcome:
        """Create the process, or restore it from `checkpoint`, and supervise it to its end."""
        self._creation.checkpoint = checkpoint
        self._tell_the_journal()
        self._opener.begin(self._record, self._on_stdio)
        return self._serve()

    def run_restored(self) -> Outcome:
        """Go on where an earlier supervisor stopped."""
        self._take_title()
        self._tell_the_journal()
        verb, kind = self._way_here
        self._log.notice(
            f"{verb}: version {self._version_before} is replaced, "
            f"version {__version__} goes on, process {self._pid}",
            kind,
        )
        self._stream_set.renew(self._handover.orphans)
        self._order.on_started()
        self._service.go_on(self._state, self._description())
        self._handover.changed()
        self._expect_the_end()
        self._reap()  # who died in between
        return self._serve()

    def _tell_the_journal(self) -> None:
        """Have our own messages where the container's lines are, if that is the journal."""
        if is_journal_setting(self._record.stdout) or is_journal_setting(self._record.stderr):
            self._log.use_journal(self._order.container_id)

    def _serve(self) -> Outcome:
        """Serve to the end.

        Raises:
            AbandonedError: An unforeseen error. Nothing was ended or removed: the workers, or the
                keeper, have what a successor needs.
        """
        try:
            return self._serve_to_the_end()
        except Exception as error:
            self._log.info(traceback.format_exc())
            what = f"{type(error).__name__}: {error}"
            if self.is_alive and self._order.is_adoptable:
                what += f"; `forkshim adopt {self._order.container_id}` goes on"
            raise AbandonedError(f"unforeseen, the supervisor ends: {what}") from error

    def _serve_to_the_end(self) -> Outcome:
        if self._state is State.OPENING:  # a client lets us wait
            self._take_title()
        self._loop.run_until(lambda: self._state is State.ENDED)
        self._equip()  # to be tidied up, if it has not come to that
        streams = tuple(
            StreamEnd(
                stream.name,
                self._stream_set.copied_bytes(stream),
                self._stream_set.deaths(stream),
                *self._stream_set.drops(stream),
            )
            for stream in self._stream_set.streams
        )
        self._tidy_up()
        process = self._process
        return Outcome(
            process.termination if process else None,
            self._error,
            self._is_stopping,
            self._pid,
            process.oom_kills if process else 0,
            streams,
        )

    def _take_title(self) -> None:
        """Set the process title. Called before the first worker is forked, and for a wait."""
        if not self._has_title:
            self._has_title = True
            from setproctitle import setproctitle  # 7 ms: it imports logging

            setproctitle(self._title)

    # Events: from the outside world to the table.

    def _post(self, event: Event) -> None:
        """Take the step for `event`; those posted by its actions follow in their order."""
        self._events.append(event)
        if self._is_taking_steps:
            return
        self._is_taking_steps = True
        try:
            while self._events:
                self._state, actions = lifecycle.step(self._state, self._events.pop(0))
                if self._is_equipped:
                    self._service.entered(self._state, self._description())
                for action in actions:
                    self._actions[action]()
        finally:
            self._is_taking_steps = False

    def _then(self, event: Event) -> Callable[[], None]:
        """Return what posts `event`, for those who carry an action out."""
        return lambda: self._post(event)

    def _description(self) -> str:
        pid = f", pid {self._pid}" if self._pid else ""
        end = self._process.end_in_words() if self._process else ""
        return f"{self._state.value}{pid}{f' ({end})' if end else ''}"

    def _serve_signals(self) -> None:
        self._router.dispatch(self._on_signal)

    def _on_signal(self, signum: int) -> None:
        if signum == signal.SIGCHLD:
            self._reap()
        elif signum in STOP_SIGNALS:
            self._stop(signum)
        elif signum == signal.SIGWINCH and self._order.terminal is not None:
            self._loop.guarded("window size", self._pipes.fit_to_window)()
        elif signum == signal.SIGHUP and self._order.command:
            self._equip()
            self._handover.reload(is_yet_to_come=not self._is_started)
        elif signum in FORWARDED_SIGNALS:
            self._forward(signum)

    def _reap(self) -> None:
        if self._reaper.reap():
            self._reap_more.start(0.0)

    def _forward(self, signum: int) -> None:
        """Pass a signal on; one that comes before we know that the process runs has to wait.

        An engine starts it as soon as there is a pid file, which is before its create has ended.
        """
        if self._is_started:
            self._signal_init(signum)
        else:
            self._early_signals.add(signum)

    def _stop(self, signum: int) -> None:
        if self._state is State.OPENING:
            self._opener.cancel()
            self._error = StoppedError(f"stopped by {signal_name(signum)} before its creation")
        self._is_stopping = True
        if self._is_equipped:
            self._handover.stop_was_asked()
        self._log.info(f"{signal_name(signum)}: stopping")
        self._post(Event.STOP)
        if self._state is State.DRAINING:
            self._ending.look()  # it may be waiting for others

    def _on_stdio(self, opened: Stdio | ShimError) -> None:
        if isinstance(opened, ShimError):
            self._error = opened
            self._post(Event.OPEN_FAILED)
        else:
            self._stdio = opened
            self._post(Event.OPENED)

    def _on_creation_end(self, error: ShimError | None) -> None:
        self._gather()
        self._release_stderr(error)
        if error is not None:
            self._error = error
            self._post(Event.CREATE_FAILED)
            return
        is_too_late = self._state is State.ABORTING
        if is_too_late and self._is_ours_to_start:
            self._error = StoppedError("stopped while it was being created")
        try:
            self._take_process()
        except OSError as failed:  # EMFILE
            self._error = ShimError(f"{self._creation.verb}: {reason(failed)}")
            self._post(Event.CREATE_FAILED)
            return
        self._post(Event.STARTED if is_too_late and not self._is_ours_to_start else Event.CREATED)
        self._expect_the_end()

    def _take_process(self) -> None:
        from supervisor.container.init_process import Process

        process = Process.of_child(self._loop, self._reaper, self._creation.pid, self._state_dir)
        try:
            if self._is_ours_to_start:
                self._exec_watch = ExecWatch(
                    self._loop,
                    process.pid,
                    runtime=self._order.runtime,
                    config_path=self._caller.config_path,
                )
                self._reaper.look_before(process.pid, self._exec_watch.look)
            if (
                self._order.notify_proxy is not None
            ):  # whoever cannot be told from others is not heard
                self._order.notify_proxy.belongs_to(process.pid)
            if self._creation.console is not None:
                self._pipes.join_console(self._creation.console, self._stdio, self._stream_set)
                self._stream_set.start()
        except OSError:
            process.close()
            raise
        self._process = process
        if not self._record.is_exec:
            self._stopper.kill_scope = kill_scope.of(self._caller.config_path, process.pid)

    def _expect_the_end(self) -> None:
        """Serve the process that is there now, up to its end, which may have been."""
        if self._process is None:
            raise AssertionError("nothing to expect")
        if self._notify_worker is not None:
            self._loop.guarded(self._notify_worker.feature, self._notify_worker.start)()
        if self._record.is_exec:
            self._container = ContainerInit.of_exec(
                self._loop, self._process.pid, self._state_dir.fileno()
            )
        # Only now: what an engine sent to `control` earlier has waited in the fifo.
        self._loop.watch(self._control_fifo.fileno(), self._serve_control, feature="control")
        # May be called at once: the process may be dead already, and remembered.
        self._process.expect(self._on_init_exit)
        self._creation.known()

    @property
    def _pid(self) -> int:
        """The supervised process's; 0 before there is one."""
        return self._process.pid if self._process else self._creation.pid

    def _on_init_exit(self) -> None:
        if self._notify_worker is not None:  # its last words, before the phases of its end
            self._notify_worker.finish(self._after_the_last_words)
        else:
            self._after_the_last_words()

    def _after_the_last_words(self) -> None:
        if self._state not in (State.STARTING, State.HELD):
            self._post(Event.INIT_EXITED)
        elif self._exec_watch is not None and not self._exec_watch.has_run(
            self._end, is_started=self._start_pid > 0
        ):
            self._error = self._error_of_start(self._never_ran())
            self._post(Event.NEVER_RAN)
        else:
            if self._state is State.STARTING:
                self._post(Event.STARTED)  # it was quicker than the runtime's `start`
            self._post(Event.INIT_EXITED)

    @property
    def _end(self) -> Termination | None:
        return self._process.termination if self._process else None

    def _never_ran(self) -> str:
        detail = explain(self._state_dir)
        return (
            f"its init ended before it executed the container's program: {self._end}"
            f"{f': {detail}' if detail else ''}"
        )

    def _error_of_start(self, why: str) -> ShimError:
        if self._is_stopping:
            return StoppedError("stopped while it was being started")
        return RuntimeFailedError(f"{self._caller.name} start: {why}")

    def _feature_failed(self, feature: str, error: Exception) -> None:
        self._log.warning(f"{feature}: {type(error).__name__}: {error}; it is off from now on")
        if self._notify_worker is not None and feature == self._notify_worker.feature:
            self._notify_worker.give_up()

    def _serve_control(self) -> None:
        try:
            data = os.read(self._control_fifo.fileno(), 4096)
        except BlockingIOError:
            return
        for message in self._control.feed(data):
            if isinstance(message, control_protocol.Resize):
                self._pipes.resize(message.columns, message.rows)
            elif isinstance(message, control_protocol.Reopen):
                self._stream_set.reopen()
            elif isinstance(message, control_protocol.Attach):
                self._stream_set.attach(message.stream, message.fifo)
            elif self._stdio.stdin_closer is not None:
                # Only our own end: what lies in the fifo, or still comes, is delivered first.
                self._stdio.stdin_closer.close()
                self._stdio.stdin_closer = None
                self._handover.publish()

    @property
    def _is_ours_to_start(self) -> bool:
        """False where an engine starts it, and for exec and restore, which have."""
        return self._order.starts_container and not self._is_of_one_step

    @property
    def _is_of_one_step(self) -> bool:
        """Whether the runtime starts what it makes: an exec'd process, or a restored one."""
        return self._creation.verb != "create"

    # Actions: from the table to the outside world.

    def _create(self) -> None:
        container_side: list[fds.Fd] = []
        try:
            stdio = self._pipes.make_pipes(self._stdio, container_side)
            self._creation.begin(stdio, self._on_creation_end)
        except ShimError as error:
            self._error = error
            self._post(Event.CREATE_FAILED)
        finally:
            for owner in container_side:
                owner.close()
            self._order.activation_fds.close()
        self._equip()
        self._pipes.join_pipes(self._stdio, self._stream_set)
        is_engines = not self._order.starts_container and not self._is_of_one_step
        if is_engines and not self._record.terminal and self._error is None:
            # It waits for the pid file, and needs some time from there to its `start`. A terminal
            # has a size to be set in that time.
            self._latest_crew.start(_LATEST_CREW_S)
        else:
            self._gather()

    def _gather(self) -> None:
        """Have the crew at its work; once. A terminal's has to wait for the console."""
        if self._has_crew:
            return
        self._has_crew = True
        self._latest_crew.cancel()
        self._take_title()
        if not self._record.terminal:
            if self._order.starts_container and self._error is None:
                self._held_stderr = self._stream_of_the_runtime()
                self._stderr_look.start(_LOOK_AT_STDERR_S)
            self._stream_set.start(but=self._held_stderr)

    def _stream_of_the_runtime(self) -> Stream | None:
        """Return the stream that has the runtime's own stderr: the container's, until its exec."""
        name = "stdout" if self._stdio.stderr_joins_stdout else "stderr"
        return next((stream for stream in self._stream_set.streams if stream.name == name), None)

    def _look_at_stderr(self) -> None:
        """Release the stream if hooks say more than waits for the end of the `create`."""
        stream = self._held_stderr
        if stream is not None and fds.pending_bytes(stream.source.fileno()) > fds.PIPE_BYTES // 2:
            self._release_stderr(None)
        elif stream is not None:
            self._stderr_look.start(_LOOK_AT_STDERR_S)

    def _release_stderr(self, error: ShimError | None) -> None:
        """Let the stream go that was held back during the `create`, which may have failed.

        A runtime that fails says why to its log and to its stderr. The log's words are told, with
        all that is not printable escaped; the other copy, in which an image may have put anything,
        is discarded.
        """
        stream, self._held_stderr = self._held_stderr, None
        self._stderr_look.cancel()
        if stream is None:
            return
        if isinstance(error, RuntimeFailedError) and explain(self._state_dir):
            fds.discard_pending(stream.source.fileno(), self._null.fileno())
        self._stream_set.start()

    def _start(self) -> None:
        if not self._is_ours_to_start:
            self._post(Event.STARTED)
            return
        if self._is_gone:
            return  # the end of the process tells the rest
        try:
            # It may take its time: the container's own hooks run in it.
            self._start_pid = self._calls.run(
                self._caller.start(),
                self._on_start_end,
                cwd=self._caller.directory,
                limit_s=None,
            )
        except ShimError as error:
            self._error = error
            self._post(Event.START_FAILED)

    def _on_start_end(self, termination: Termination) -> None:
        if shell_status(termination) == 0 and self._exec_watch is not None:
            self._exec_watch.expect(self._on_run)
            return
        detail = explain(self._state_dir)
        why = f"{termination}{': ' if detail else ''}{detail}"
        if self._is_gone:  # its own end tells whether its program has run
            self._log.info(f"start failed, the process had ended: {why}")
            return
        self._error = self._error_of_start(why)
        self._post(Event.START_FAILED)

    def _on_run(self) -> None:
        if self._state in (State.STARTING, State.HELD) and not self._is_gone:
            self._post(Event.STARTED)

    @property
    def _is_gone(self) -> bool:
        """Whether the process has ended, seen by us or not yet."""
        if self._process is None or not self._process.is_alive:
            return True
        try:
            return procfs.is_ending(self._process.pid)
        except OSError:  # EMFILE
            return False

    def _tell_started(self) -> None:
        self._is_started = True
        self._order.on_started()
        self._service.ready()
        for signum in sorted(self._early_signals):
            self._signal_init(signum)
        self._handover.running()

    def _send_stop_signal(self) -> None:
        order = self._order
        self._stopper.ask(order.stop_signal, order.stop_timeout_s, self._then(Event.GRACE_OVER))

    def _record_exit(self) -> None:
        self._stopper.over()
        if self._process is None:
            raise AssertionError("an exit to record, and none seen")
        self._ending.record(self._process)
        self._pipes.let_go()

    def _clean_up(self) -> None:
        self._creation.clean_up(self._log, self._then(Event.CLEANED), is_alone=True)

    def _drain(self) -> None:
        self._pipes.let_go()  # also where there never was a process
        self._ending.drain(self._then(Event.DRAINED), self._container)

    def _delete(self) -> None:
        if self._process is None:
            self._post(Event.DELETED)
        else:
            self._stopper.delete(self._then(Event.DELETED))

    def _signal_init(self, signum: int) -> None:
        if self._process is not None:
            self._process.signal(signum)

    # What a successor needs; asked by `Succession`.

    @property
    def is_alive(self) -> bool:
        """Whether the container has started and not ended."""
        return self._is_started and self._process is not None and self._process.is_alive

    @property
    def is_running(self) -> bool:
        """Whether somebody could take over here."""
        return self._state is State.RUNNING and self._is_started

    @property
    def is_settled(self) -> bool:
        """Whether nothing is halfway: no worker is about to go, no signal was noted."""
        return self._stream_set.is_settled and not self._router.has_notes

    def reloading(self) -> None:
        """Tell that another version is being tried."""
        self._service.reloading()

    def reload_is_over(self) -> None:
        """Tell that it was not taken."""
        if self._state is State.RUNNING:
            self._service.go_on(self._state, self._description())

    @property
    def counters_fd(self) -> int:
        """The memory that every worker of the container has mapped, and no other process."""
        return self._stream_set.counters_fd

    def pack(self, fd_writer: FdWriter) -> dict[str, Any]:
        """Return all that this supervisor knows and holds, for `_remember` of its successor."""
        if self._process is None:
            raise AssertionError("nothing to hand over")
        order, notify_proxy, notify_worker = (
            self._order,
            self._order.notify_proxy,
            self._notify_worker,
        )
        return {
            "pid": os.getpid(),
            "version": __version__,
            "front": dict(order.front),
            "order": pack_order(order),
            "supervisor": {
                "record": asdict(self._record),
                "exit": fd_writer.add(self._exit_fifo.fileno()),
                "control": fd_writer.add(self._control_fifo.fileno()),
                "control_rest": self._control.rest,
                "notify_proxy": notify_proxy.snapshot(fd_writer)
                if notify_proxy and notify_proxy.is_open
                else None,
                "notify_worker": notify_worker.snapshot(fd_writer) if notify_worker else None,
                **self._process.pack(fd_writer),
                "began_at": self._creation.began_at,
                "kill_scope": self._stopper.kill_scope.snapshot()
                if self._stopper.kill_scope
                else None,
                "stdio": self._stdio.pack(fd_writer),
                "plumbing": self._pipes.pack(fd_writer),
                "crew": self._stream_set.pack(fd_writer),
                "service": self._service.pack(),
            },
        }

    def pack_own(self, document: dict[str, Any], fd_writer: FdWriter) -> None:
        """Add to what `pack` has returned what only this very process goes on with."""
        document["supervisor"]["plumbing"]["peer"] = self._pipes.pack_peer(fd_writer)

    def _remember(self, past: Inherited) -> None:
        """Be what `pack` says."""
        from supervisor.container.init_process import Process

        contents, is_parent = past.contents, past.is_parent
        packed = contents.document["supervisor"]
        self._state = State.RUNNING
        self._is_started = True
        self._version_before = str(contents.document.get("version", "before this one"))
        self._way_here = ("reloaded", Kind.RELOADED) if is_parent else ("adopted", Kind.ADOPTED)
        self._control.feed(packed["control_rest"].encode("latin-1"))
        self._process = Process.go_on(
            self._loop, self._reaper, self._state_dir, packed, contents, is_parent=is_parent
        )
        self._creation.began_at = packed["began_at"]
        if packed["kill_scope"] is not None:
            self._stopper.kill_scope = kill_scope.restore(packed["kill_scope"])
        self._stdio = go_on_with_stdio(
            packed["stdio"], contents, self._record, self._order.container_id, self._order.bundle
        )
        self._pipes.go_on(
            packed["plumbing"],
            packed["crew"]["streams"],
            contents,
            self._stdio,
            self._stream_set,
            is_parent=is_parent,
        )
        if self._notify_worker is not None:
            self._notify_worker.restore(packed["notify_worker"], contents, is_parent=is_parent)
        self._stream_set.attach_clients.restore(
            packed["crew"]["listeners"], contents, self._stream_set.streams
        )
        self._stream_set.go_on_with(packed["crew"])

    def _tidy_up(self) -> None:
        """Leave no process and no descriptor behind."""
        self._handover.close()
        self._pipes.close()
        if self._exec_watch is not None:
            self._exec_watch.close()
        if self._process is not None:
            self._process.close()
        if self._container is not None:
            self._container.close()
        self._ending.leave_nobody(self._calls, self._opener, self._handover, self._notify_worker)
        self._stream_set.close()
        self._stdio.close()
        self._control_fifo.close()
        self._null.close()
        self._loop.close()
