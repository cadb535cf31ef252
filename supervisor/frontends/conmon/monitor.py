"""One container, or one exec'd process, on behalf of an engine that speaks conmon's command line.

Order of the start: attach socket, `ctl`, `winsz`, the engine's second word, the runtime, the pid.
Order of the end: streams drained and closed, parked descriptors, `oom`, `attach` removed, exit
files, the exit status of an exec, the link, the exit command.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from functools import partial

from supervisor.container.api import ContainerApi
from supervisor.container.container import Container
from supervisor.container.host import Host
from supervisor.container.lifecycle import Notice, State
from supervisor.container.request import ContainerSpec, Origin, StartRequest
from supervisor.frontends.conmon import exit_command
from supervisor.frontends.conmon.attach_socket import AttachSocket
from supervisor.frontends.conmon.bundle_files import BundleFiles
from supervisor.frontends.conmon.command_line import runtime_argv
from supervisor.frontends.conmon.control import Control
from supervisor.frontends.conmon.engine import take_null_stdio
from supervisor.frontends.conmon.exit_files import ExitFiles
from supervisor.frontends.conmon.options import Driver
from supervisor.frontends.conmon.settings import notifier, process_config
from supervisor.linux.errors import RuntimeFailedError, ShimError, StoppedError, describe
from supervisor.linux.exit_status import Unknown, shell_status, signal_name
from supervisor.oci.engine_call import EngineCall
from supervisor.oci.process_json import CheckpointRecord
from supervisor.state.directory import StateDirectory
from supervisor.systemd.notify import SILENT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from supervisor.container.request import Outcome
    from supervisor.frontends.conmon.engine import Engine
    from supervisor.frontends.conmon.options import LogTarget, Options
    from supervisor.state.log import Log
    from supervisor.systemd.notify_proxy import NotifyProxy

_STATE_NAME = ".forkshim"
_FORWARDED = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGQUIT})
_PRIORITY_VARIABLE = "FORKSHIM_JOURNAL_PRIORITY"
_FAILED = 1
_UNKNOWN = -1


class Monitor:
    """Supervises for one engine. Owns what the engine sees in the bundle, until `run` returns.

    Many attributes: one for each thing that an engine sees, and for each step of a start.
    """

    def __init__(
        self,
        options: Options,
        targets: Sequence[LogTarget],
        engine: Engine,
        log: Log,
        state_dir: StateDirectory,
        files: BundleFiles | None,
    ) -> None:
        """Borrow everything but `files`, which an exec without a bundle does not have."""
        self._options = options
        self._targets = targets
        self._engine = engine
        self._log = log
        self._state_dir = state_dir
        self._files = files
        self._passes_stdio = any(each.driver is Driver.PASSTHROUGH for each in targets)
        self._attach: AttachSocket | None = None
        self._control: Control | None = None
        self._notify_proxy: NotifyProxy | None = None
        self._notifier = SILENT
        self._container: Container | None = None
        self._has_begun = self._is_created = self._has_timed_out = False
        self._early_signals: list[int] = []
        self._why_not: ShimError | None = None

    def run(self) -> int:
        """Supervise to the end; returns the exit status, that of the container's process."""
        host = Host(self._log, self._engine.environment)
        host.on_signal = self._on_signal
        try:
            self._open_files()
            container = self._make(host)
            self._wait_for_second_word(host)
            if self._why_not is not None:
                raise self._why_not
            self._begin(host, container)
            host.run()
            return self._over(container.outcome)
        except (ShimError, OSError) as error:
            self._log.error(describe(error))
            self._tell_failure(error)
            return _FAILED
        finally:
            if self._control is not None:
                self._control.close()
            if self._attach is not None:
                self._attach.close()
                self._attach.remove_link()
            if self._files is not None:
                self._files.close()
            if self._notify_proxy is not None:
                self._notify_proxy.close()
            self._notifier.close()
            host.close()

    # The start.

    def _open_files(self) -> None:
        options, files = self._options, self._files
        if options.sdnotify_socket and files is not None and not options.exec:
            self._notify_proxy = make_notify_proxy(files)
        if files is None or self._passes_stdio:
            return
        socket_dir = "" if options.full_attach else options.socket_dir_path
        self._attach = AttachSocket.open(files.path, socket_dir=socket_dir, cuuid=options.cuuid)
        self._control = Control(files)
        if options.exec_attach:
            self._engine.is_listening()

    def _make(self, host: Host) -> Container:
        options, engine = self._options, self._engine
        pid_file = os.path.abspath(options.container_pidfile or f"pidfile-{options.cid}")
        bundle = self._files.path if self._files else ""
        argv = partial(runtime_argv, options, bundle=bundle, pid_file=pid_file)
        call = EngineCall(
            lambda console: argv(console=console),
            pid_file,
            engine.environment,
            engine.prepare_runtime,
            (0, 1, 2) if self._passes_stdio else None,
        )
        # A name without a slash is a file of the current directory, as for execv(3).
        runtime = options.runtime if "/" in options.runtime else f"./{options.runtime}"
        log_path = next(
            (each.path for each in reversed(self._targets) if each.driver is Driver.K8S_FILE), ""
        )
        config = process_config(
            options,
            self._targets,
            log_path=os.path.abspath(log_path) if log_path else "",
            uid=os.geteuid(),
            gid=os.getegid(),
            reads_priority=engine.environment.get(_PRIORITY_VARIABLE) != "stream",
        )
        spec = ContainerSpec(
            options.cid,
            bundle or "/",
            runtime,
            engine_call=call,
            notify_proxy=self._notify_proxy,
        )
        self._notifier = notifier(options)
        origin = Origin(environment=engine.environment, notifier=self._notifier)
        request = StartRequest(spec, origin=origin)
        container = Container(host, request, self._log, self._state_dir, config)
        self._container = container
        ContainerApi(container).subscribe(partial(self._on_notice, host))
        return container

    def _wait_for_second_word(self, host: Host) -> None:
        """Let the engine attach before the process is executed; its end of file means the same."""
        start = self._engine.start
        if not start.is_open:
            return

        def on_word() -> None:
            host.loop.forget(start.fileno())
            os.read(start.fileno(), 1)
            start.close()
            self._has_begun = True

        host.loop.watch(start.fileno(), on_word)
        host.loop.run_until(lambda: self._has_begun or self._why_not is not None)

    def _begin(self, host: Host, container: Container) -> None:
        self._has_begun = True
        container.begin(CheckpointRecord() if self._options.restore else None)
        if self._passes_stdio:
            take_null_stdio()  # the runtime has its own copies
        if self._attach is not None and container.state is not State.ENDED:
            # Those who have connected earlier hear the first byte: none was taken yet.
            streams = container.running.stream_set
            self._attach.serve(streams.serve_packets(container.launch.stdio.line_sinks))

    # While it runs.

    def _on_notice(self, host: Host, notice: Notice, _detail: str) -> None:
        container = self._container
        if notice is Notice.EXITED and self._attach is not None:
            self._attach.unlink()  # before a client sees its end
        if notice is not Notice.CREATED or container is None:
            return
        self._is_created = True
        for signum in self._early_signals:
            container.signal_process(signum)
        self._engine.created(container.pid)
        if self._control is not None:
            api = ContainerApi(container)
            self._control.serve(host.loop, self._log, api)
        if self._options.timeout > 0:
            host.loop.timer(self._on_timeout).start(self._options.timeout)

    def _on_signal(self, signum: int) -> None:
        """TERM, INT and QUIT are the container's, and first the runtime's while that creates it."""
        if signum not in _FORWARDED:
            return
        container = self._container
        if not self._has_begun or container is None:
            self._why_not = StoppedError(f"{signal_name(signum)} before the runtime was executed")
        elif self._is_created:
            container.signal_process(signum)
        else:
            container.launch.creation.signal(signum)
            self._early_signals.append(signum)  # a runtime that is nearly done may ignore it

    def _on_timeout(self) -> None:
        container = self._container
        if container is None or not container.is_alive:
            return
        self._has_timed_out = True
        self._log.warning(f"killed: {self._options.timeout} s have passed")
        with suppress(ProcessLookupError):
            group = os.getpgid(container.pid)
            if group not in (1, os.getpgrp()):
                os.killpg(group, signal.SIGKILL)
        container.signal_process(signal.SIGKILL)

    # The end.

    def _tell_failure(self, error: ShimError | OSError) -> None:
        said = error.said if isinstance(error, RuntimeFailedError) else b""
        self._engine.failed(said or describe(error).encode(errors="surrogateescape"))

    def _over(self, outcome: Outcome) -> int:
        if outcome.termination is None:
            raise outcome.error or ShimError("the process was never created")
        status = _UNKNOWN
        if not (self._has_timed_out or isinstance(outcome.termination, Unknown)):
            status = shell_status(outcome.termination)
        self._engine.release()
        exit_files = ExitFiles(self._log)
        options = self._options
        if outcome.oom_kills:
            bundle = self._files.path if self._files else ""
            for directory in filter(None, (options.persist_dir, bundle)):
                exit_files.write(os.path.join(directory, "oom"), "")
        if options.persist_dir:
            exit_files.write(os.path.join(options.persist_dir, "exit"), str(status))
        if options.exit_dir:
            exit_files.write(os.path.join(options.exit_dir, options.cid), str(status))
        if options.exec:
            self._engine.exec_ended(status, has_timed_out=self._has_timed_out)
        return status


def make_notify_proxy(files: BundleFiles) -> NotifyProxy:
    """Make the container's socket in the directory that the engine mounts in the container.

    Raises:
        ShimError: The engine has not made the directory.
    """
    from supervisor.systemd.notify_proxy import DIRECTORY, NotifyProxy  # few containers have one

    try:
        return NotifyProxy.make_in(f"{files.by_descriptor}/{DIRECTORY}")
    except OSError as error:
        raise ShimError(f"{DIRECTORY}/ in {files.path}: {describe(error)}") from error


def open_state(files: BundleFiles | None, cid: str) -> StateDirectory:
    """Make the directory of the supervisor's own files: in the bundle, or for this process alone.

    Raises:
        ShimError: It cannot be made.
    """
    if files is not None:
        path = os.path.join(files.path, _STATE_NAME)
    else:
        parent = os.environ.get("XDG_RUNTIME_DIR") or "/run"
        path = os.path.join(parent, "forkshim", "conmon", f"{cid[:64]}-{os.getpid()}")
    try:
        os.makedirs(path, 0o700, exist_ok=True)
        state_dir = StateDirectory.open(path)
    except OSError as error:
        raise ShimError(f"{error.filename or path}: {describe(error)}") from error
    for name in os.listdir(state_dir.fileno()):  # of an earlier run of the container
        state_dir.remove(name)
    return state_dir


def supervise(options: Options, targets: Sequence[LogTarget], engine: Engine) -> int:
    """Run one monitor to its end, then the exit command, if there is one."""
    status = _FAILED
    bundle = options.bundle or ("" if options.exec else ".")
    files: BundleFiles | None = None
    try:
        files = BundleFiles(os.path.abspath(bundle)) if bundle else None
        state_dir = open_state(files, options.cid)
        log = state_dir.open_log()
        if options.syslog:
            log.use_syslog(options.cid, options.said_levels)
    except ShimError as error:
        engine.failed(str(error).encode(errors="surrogateescape"))
        if files is not None:
            files.close()
    else:
        try:
            status = Monitor(options, targets, engine, log, state_dir, files).run()
        finally:
            log.close()
            if files is None:
                _remove(state_dir)
            state_dir.close()
    engine.release()
    engine.hang_up()
    engine.restore_oom_score()
    if options.exit_command:
        command = (options.exit_command, *options.exit_command_arg)
        exit_command.become(
            command, engine.environment, delay_s=options.exit_delay, status=status & 0xFF
        )
    return status & 0xFF


def _remove(state_dir: StateDirectory) -> None:
    with suppress(OSError):
        for name in os.listdir(state_dir.fileno()):
            state_dir.remove(name)
        os.rmdir(state_dir.path)
