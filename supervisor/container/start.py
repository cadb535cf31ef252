"""From opened stdio to a running process: what is needed before the runtime is executed.

The runtime is executed as soon as possible. `Launch` imports little; `Launch.assemble` imports and
makes the rest while the runtime works, or at once where a client lets the supervisor wait: then a
package upgrade in that time cannot mix two versions.

The workers are forked when the runtime runs. Where an engine waits for the pid file, they are
forked after the runtime has written it: the runtime keeps two cores busy by itself.
"""

from __future__ import annotations

from supervisor.container.lifecycle import Event, State
from supervisor.io.client_stdio import Stdio
from supervisor.io.pipes import Pipes
from supervisor.io.stdio import READER_WAIT_S, StdioOpener
from supervisor.linux import fds, procfs
from supervisor.linux.errors import RuntimeFailedError, ShimError, StoppedError
from supervisor.linux.exit_status import shell_status
from supervisor.linux.text import printable
from supervisor.oci.command_line import RuntimeCommand, joined_lines
from supervisor.oci.create import CreateOperation
from supervisor.oci.engine_call import MOST_STDERR_BYTES
from supervisor.oci.exec_watch import ExecWatch
from supervisor.oci.failed_create import explain
from supervisor.oci.invoke import CANCEL_LIMIT_S, RuntimeInvoker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from supervisor.container.container import Container
    from supervisor.container.host import Host
    from supervisor.container.request import StartRequest
    from supervisor.container.running import Running
    from supervisor.handover.manager import Inherited
    from supervisor.io.stream import Stream
    from supervisor.linux.event_loop import Loop
    from supervisor.linux.exit_status import Termination
    from supervisor.oci.process_json import ProcessConfig
    from supervisor.state.directory import StateDirectory
    from supervisor.state.log import Log

_MOST_TOLD_STDERR = 1024
_STDERR_LOOK_S = 0.1
_LATEST_WORKERS_S = 0.1
"""Hooks of the runtime that write more than a pipe takes wait this long for a worker."""


class Launch:
    """What a container has before its runtime is executed. Owns both fifos and its stdio."""

    SNAPSHOT = ("request", "config", "exit_fifo", "control_fifo", "stdio", "creation", "pipes")
    TRANSIENT = (
        "host",
        "loop",
        "log",  # a successor opens these two by their names
        "state_dir",
        "invoker",  # no call runs during a reload; those of a killed supervisor die with it
        "command",
        "opener",
        "owned",
    )

    def __init__(
        self,
        host: Host,
        loop: Loop,
        request: StartRequest,
        log: Log,
        state_dir: StateDirectory,
        config: ProcessConfig,
        exit_fifo: fds.Fd,
        control_fifo: fds.Fd,
    ) -> None:
        """Own the fifos. A closed fifo stands for a front end without it."""
        self.host = host
        self.loop = loop
        self.request = request
        self.log = log
        self.state_dir = state_dir
        self.config = config
        self.exit_fifo = exit_fifo
        self.control_fifo = control_fifo
        null_fd = host.null.fileno()
        self.invoker = RuntimeInvoker(
            loop,
            host.reaper,
            name=request.spec.runtime,
            cwd=state_dir.path,
            null_fd=null_fd,
            environment=host.environment,
        )
        self.command = RuntimeCommand(
            name=request.spec.runtime,
            args=config.runtime_args,
            state_dir=state_dir.path,
            bundle=request.spec.bundle,
            container_id=request.spec.container_id,
            config=request.spec.config,
        )
        self.opener = StdioOpener(
            loop,
            host.reaper,
            container_id=request.spec.container_id,
            bundle=request.spec.bundle,
            title=self.title,
            null_fd=null_fd,
            dir_fd=state_dir.fileno(),
            is_typed=request.spec.starts_container and not request.spec.has_engines_fifos,
            reader_wait_s=None if request.spec.has_engines_fifos else READER_WAIT_S,
        )
        self.stdio = Stdio()
        self.creation = CreateOperation(
            loop,
            host.reaper,
            self.invoker,
            self.command,
            config,
            state_dir,
            from_three=request.spec.activation_fds.filenos(),
            engine_call=request.spec.engine_call,
        )
        self.pipes = Pipes(config, request.spec.terminal, null_fd, request.spec.engine_call)
        self.owned: list[Log | StateDirectory] = []
        """Closed last. What the front end has opened, the front end closes."""

    @property
    def title(self) -> str:
        """The process title, and the beginning of each worker's."""
        return f"forkshim: {self.request.spec.container_id}"

    @property
    def is_of_one_step(self) -> bool:
        """Whether the runtime creates and starts in one call: `exec` and `restore`."""
        return self.creation.verb != "create"

    @property
    def is_ours_to_start(self) -> bool:
        """Whether the supervisor runs the runtime's `start`, after a `create`."""
        return self.request.spec.starts_container and not self.is_of_one_step

    def assemble(self, container: Container, inherited: Inherited | None = None) -> Running:
        """Import and make what is needed from the start of the runtime on."""
        from supervisor.container.running import Running

        return Running(self, container, inherited)

    def close(self) -> None:
        """Close all but the exit fifo, whose end of file is the last word."""
        self.pipes.close()
        self.stdio.close()
        self.control_fifo.close()
        for each in self.owned:
            each.close()


class StartSequence:
    """Brings a container from its opened stdio to its running program. Borrows the launch."""

    def __init__(self, launch: Launch, container: Container) -> None:
        """Nothing happens before `begin`."""
        self._launch = launch
        self._container = container
        self._held_stderr: Stream | None = None
        self._has_workers = False
        self._start_pid = 0
        self._may_start = False
        self._exec_watch: ExecWatch | None = None
        self._early_signals: set[int] = set()
        self._latest_workers = launch.loop.timer(self._start_workers)
        self._stderr_look = launch.loop.timer(self._look_at_stderr)

    def open_stdio(self) -> None:
        """Open the clients' side, which may wait for a client."""
        is_awaited = self._launch.request.spec.is_start_awaited
        self._launch.opener.begin(self._launch.config, self._on_stdio, is_stdin_awaited=is_awaited)

    def _on_stdio(self, opened: Stdio | ShimError) -> None:
        if isinstance(opened, ShimError):
            self._container.fail(opened, Event.OPEN_FAILED)
        else:
            self._launch.stdio = opened
            self._container.machine.post(Event.OPENED)

    # Creation.

    def create(self) -> None:
        """Execute the runtime, and assemble the rest while it works."""
        launch, container = self._launch, self._container
        container_side: list[fds.Fd] = []
        has_failed = False
        try:
            stdio = launch.pipes.make_pipes(launch.stdio, container_side)
            launch.creation.begin(stdio, self._on_creation_end)
        except ShimError as error:
            has_failed = True
            container.fail(error, Event.CREATE_FAILED)
        finally:
            for owner in container_side:
                owner.close()
            launch.request.spec.activation_fds.close()
        container.assemble()
        launch.pipes.join_pipes(launch.stdio, container.running.stream_set)
        is_engines = not launch.request.spec.starts_container and not launch.is_of_one_step
        if is_engines and not launch.config.terminal and not has_failed:
            # The engine waits for the pid file, and needs some time from there to its `start`. The
            # engine sets the size of a terminal in that time.
            self._latest_workers.start(_LATEST_WORKERS_S)
        else:
            self._start_workers()

    def _start_workers(self) -> None:
        """Start the streams, once. The streams of a terminal wait for the console."""
        if self._has_workers:
            return
        self._has_workers = True
        self._latest_workers.cancel()
        launch = self._launch
        launch.host.prepare_forks(launch.title)
        if not launch.config.terminal:
            spec = launch.request.spec
            wants_words = spec.starts_container or spec.engine_call is not None
            if wants_words and self._container.error is None:
                self._held_stderr = self._stream_of_the_runtime()
                self._stderr_look.start(_STDERR_LOOK_S)
            self._container.running.stream_set.start(but=self._held_stderr)

    def _stream_of_the_runtime(self) -> Stream | None:
        """Return the stream of the runtime's own stderr: that of the container before its exec."""
        name = "stdout" if self._launch.stdio.stderr_joins_stdout else "stderr"
        streams = self._container.running.stream_set.streams
        return next((stream for stream in streams if stream.name == name), None)

    def _look_at_stderr(self) -> None:
        """Release the stream if hooks have written more than half a pipe during the `create`."""
        stream = self._held_stderr
        if stream is not None and fds.pending_bytes(stream.source.fileno()) > fds.PIPE_BYTES // 2:
            self._release_stderr(None)
        elif stream is not None:
            self._stderr_look.start(_STDERR_LOOK_S)

    def _release_stderr(self, error: ShimError | None) -> ShimError | None:
        """Start the stream that was held back during the `create`. Return the error, or a better.

        A runtime that fails writes the reason to its log and to its stderr. The error has the log's
        words, escaped. An image may have put anything into the other copy, which is discarded.
        Where the log has no words (/run is full), the error has the end of that copy.
        """
        stream, self._held_stderr = self._held_stderr, None
        self._stderr_look.cancel()
        if stream is None:
            if isinstance(error, RuntimeFailedError):
                error.said = self._launch.pipes.runtime_stderr()
            return error
        if isinstance(error, RuntimeFailedError):
            null_fd = self._launch.host.null.fileno()
            is_engines = self._launch.request.spec.engine_call is not None
            most_bytes = MOST_STDERR_BYTES if is_engines else _MOST_TOLD_STDERR
            said = fds.take_pending(stream.source.fileno(), null_fd, most_bytes)
            if said and not is_engines and not explain(self._launch.state_dir):
                error = RuntimeFailedError(f"{error}: {printable(joined_lines(said))}")
            error.said = said
        self._container.running.stream_set.start()
        return error

    def _on_creation_end(self, error: ShimError | None) -> None:
        self._start_workers()
        error = self._release_stderr(error)
        if error is not None:
            self._container.fail(error, Event.CREATE_FAILED)
        else:
            self._container.created()

    # The runtime's start.

    def start(self) -> None:
        """Run the runtime's `start`, where that is the supervisor's."""
        launch, container = self._launch, self._container
        if self.waits_for_verb:
            return
        if not launch.is_ours_to_start:
            container.machine.post(Event.STARTED)
            return
        if self._is_gone:
            return  # the process has ended: its end posts the next event
        if self._exec_watch is not None and self._exec_watch.has_run(None, is_started=False):
            container.machine.post(Event.STARTED)  # a killed supervisor's `start` has worked
            return
        try:
            # Without a limit: the container's own hooks run in this call.
            self._start_pid = launch.invoker.run(
                launch.command.start(),
                self._on_start_end,
                cwd=launch.command.directory,
                limit_s=None,
            )
        except ShimError as error:
            container.fail(error, Event.START_FAILED)

    @property
    def waits_for_verb(self) -> bool:
        """Whether the runtime's `start` waits for the verb of `supervisor.container.api`."""
        return self._launch.request.spec.is_start_awaited and not self._may_start

    def start_by_verb(self) -> bool:
        """Run the runtime's `start` now. Returns False if the request has not left it to a verb."""
        if not self.waits_for_verb:
            return False
        self._container.running.open_stdin()
        self._may_start = True
        self.start()
        return True

    def set_deadline(self) -> None:
        """Limit the runtime's `start` to a few seconds more: a stop waits for its end."""
        if self.waits_for_verb:
            error = StoppedError("stopped before it was started")
            self._container.fail(error, Event.START_FAILED)
            return
        self._launch.invoker.set_deadline(self._start_pid, CANCEL_LIMIT_S)

    def _on_start_end(self, termination: Termination) -> None:
        if shell_status(termination) == 0 and self._exec_watch is not None:
            self._exec_watch.expect(self._on_run)
            return
        detail = explain(self._launch.state_dir)
        why = f"{termination}{': ' if detail else ''}{detail}"
        if self._is_gone:  # `error_if_never_ran` decides whether the program has run
            self._launch.log.info(f"start failed, the process had ended: {why}")
            return
        self._container.fail(self._error_of_start(why), Event.START_FAILED)

    def watch_exec(self, pid: int) -> None:
        """Watch whether the init executes the container's program.

        Raises:
            OSError: EMFILE, ENFILE or ENOMEM.
        """
        launch = self._launch
        self._exec_watch = ExecWatch(
            launch.loop,
            pid,
            runtime=launch.request.spec.runtime,
            config_path=launch.command.config_path,
        )
        launch.host.reaper.look_before(pid, self._exec_watch.look)

    def _on_run(self) -> None:
        is_starting = self._container.state in (State.STARTING, State.STOP_DEFERRED)
        if is_starting and not self._is_gone:
            self._container.machine.post(Event.STARTED)

    @property
    def _is_gone(self) -> bool:
        """Whether the process has ended, reaped or not yet."""
        process = self._container.process
        if process is None or not process.is_alive:
            return True
        try:
            return procfs.is_ending(process.pid)
        except OSError:  # EMFILE
            return False

    def forward(self, signum: int) -> None:
        """Forward a signal. The signal waits until the program is known to run.

        An engine runs `start` as soon as there is a pid file, before the `create` has ended.
        """
        if self._container.is_started:
            self._container.signal_process(signum)
        else:
            self._early_signals.add(signum)

    def early_signals(self) -> list[int]:
        """Return the signals that have waited, lowest first."""
        return sorted(self._early_signals)

    # What the end of the process means for the start.

    def error_if_never_ran(self) -> ShimError | None:
        """Return why the process ended before it executed the program; None if it had."""
        process = self._container.process
        end = process.termination if process else None
        watch = self._exec_watch
        if watch is None or watch.has_run(end, is_started=self._start_pid > 0):
            return None
        detail = explain(self._launch.state_dir)
        return self._error_of_start(
            f"its init ended before it executed the container's program: {end}"
            f"{f': {detail}' if detail else ''}"
        )

    def close(self) -> None:
        """Stop watching the init."""
        if self._exec_watch is not None:
            self._exec_watch.close()

    def _error_of_start(self, why: str) -> ShimError:
        if self._container.is_stopping:
            return StoppedError("stopped while it was being started")
        return RuntimeFailedError(f"{self._launch.command.name} start: {why}")
