"""One container, or one exec'd process, on behalf of an engine that speaks conmon's command line.

Order of the start: attach socket, `ctl`, `winsz`, the engine's second word, the runtime, the pid.
Order of the end: streams drained and closed, parked descriptors, `oom`, `attach` removed, exit
files, the exit status of an exec, the link, the exit command.

A container's monitor has a guardian, which starts a successor if the monitor was killed: the fd
store has all of it, see `arrival`.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from functools import partial

from supervisor.container.api import ContainerApi
from supervisor.container.container import Container
from supervisor.container.host import Host
from supervisor.container.lifecycle import Notice, State
from supervisor.container.request import ContainerSpec, Origin, StartRequest
from supervisor.container.restore import begin, restore_containers
from supervisor.frontends.conmon.attach_socket import AttachSocket
from supervisor.frontends.conmon.bundle_files import make_notify_proxy
from supervisor.frontends.conmon.command_line import runtime_argv
from supervisor.frontends.conmon.control import Control
from supervisor.frontends.conmon.engine import take_null_stdio
from supervisor.frontends.conmon.exit_files import ExitFiles
from supervisor.frontends.conmon.guardian.orphans import OrphanWatch
from supervisor.frontends.conmon.guardian.succession import Succession
from supervisor.frontends.conmon.options import Driver
from supervisor.frontends.conmon.settings import notifier, process_config
from supervisor.handover.own_command import own_command
from supervisor.linux.errors import (
    AbandonedError,
    RuntimeFailedError,
    ShimError,
    StoppedError,
    describe,
)
from supervisor.linux.exit_status import Unknown, shell_status, signal_name
from supervisor.linux.process_exit import exit_process
from supervisor.oci.engine_call import EngineCall
from supervisor.oci.process_json import CheckpointRecord
from supervisor.systemd.notify import SILENT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import ExitStack
    from typing import Any

    from supervisor.container.request import Outcome
    from supervisor.container.restore import Place
    from supervisor.frontends.conmon.bundle_files import BundleFiles
    from supervisor.frontends.conmon.engine import Engine
    from supervisor.frontends.conmon.guardian.link import GuardianLink
    from supervisor.frontends.conmon.options import LogTarget, Options
    from supervisor.state.directory import StateDirectory
    from supervisor.state.fd_store import FdReader, FdWriter
    from supervisor.state.log import Log
    from supervisor.systemd.notify_proxy import NotifyProxy

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
        link: GuardianLink | None,
    ) -> None:
        """Borrow everything but `files`, which an exec without a bundle does not have.

        `link`: to the guardian; an exec has none.
        """
        self._options = options
        self._targets = targets
        self.engine = engine
        self._log = log
        self._state_dir = state_dir
        self._files = files
        self._link = link
        self._host = Host(log, engine.environment)
        self._host.on_signal = self._on_signal
        if link is not None:
            link.document = self.document
            self._host.front_end_document = lambda fd_writer: {
                "link": link.snapshot(fd_writer),
                **self.document(fd_writer),
            }
        self._passes_stdio = any(each.driver is Driver.PASSTHROUGH for each in targets)
        self._attach: AttachSocket | None = None
        self._control: Control | None = None
        self._notify_proxy: NotifyProxy | None = None
        self._notifier = SILENT
        self._container: Container | None = None
        self._has_begun = self._is_created = self._has_timed_out = False
        self._early_signals: list[int] = []
        self._why_not: ShimError | None = None
        self._deadline_s = 0.0

    def run(self) -> int:
        """Supervise to the end; returns the exit status, that of the container's process."""
        try:
            if self._link is not None:
                self._link.up()
            self._open_files()
            container = self._make(self._host)
            self._wait_for_second_word(self._host)
            if self._why_not is not None:
                raise self._why_not
            self._begin(container)
            return self._serve(container)
        except (ShimError, OSError) as error:
            self._log.error(describe(error))
            self._tell_failure(error)
            return _FAILED
        finally:
            self._close()

    def _serve(self, container: Container) -> int:
        """Serve to the end. After an unforeseen error this process ends without a word.

        Raises:
            ShimError: As `_over`; AbandonedError only without a guardian.
        """
        try:
            self._host.run()
        except AbandonedError as error:
            if self._link is None or not self._is_created:
                raise
            self._log.error(f"{error}; the guardian starts a successor")
            exit_process(_FAILED)
        return self._over(container.outcome)

    def _close(self) -> None:
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
        self._host.close()

    # After an earlier supervisor.

    def restore(
        self, packed: Mapping[str, Any], contents: FdReader, place: Place, stack: ExitStack
    ) -> None:
        """Have the container as the earlier supervisor had it; `go_on` follows.

        Args:
            packed: What `document` of the earlier supervisor has returned.
            contents: Has its descriptors.
            place: Of the container.
            stack: As for `restore_containers`.

        Raises:
            KeyError, TypeError, ValueError, ShimError: The document cannot be used. No name was
                removed.
        """
        (container,) = restore_containers(self._host, [place], stack)
        self._follow(container)
        self._deadline_s, self._has_timed_out = packed["deadline_s"], packed["has_timed_out"]
        if packed["control"] is not None:
            self._control = Control.restore(packed["control"], contents)
        clients = container.running.stream_set.packet_clients
        if clients is not None and self._files is not None:
            self._attach = AttachSocket.restore(
                clients, self._files.path, socket_dir=self._socket_dir, cuuid=self._options.cuuid
            )

    def go_on(self, place: Place) -> int:
        """Supervise what `restore` has brought to the end; returns as `run`."""
        container = self._container
        if container is None:
            raise AssertionError("not restored")
        self._has_begun = True
        try:
            begin(self._host, [container], [place])
            self._serve_created(container)
            if self._link is not None:
                self._link.up()
                OrphanWatch(self._link, container).begin()
            return self._serve(container)
        finally:
            self._close()

    def document(self, fd_writer: FdWriter) -> dict[str, Any]:
        """Return what `restore` needs."""
        return {
            "engine": self.engine.snapshot(fd_writer),
            "control": self._control and self._control.snapshot(fd_writer),
            "deadline_s": self._deadline_s,
            "has_timed_out": self._has_timed_out,
        }

    # The start.

    @property
    def _socket_dir(self) -> str:
        return "" if self._options.full_attach else self._options.socket_dir_path

    def _open_files(self) -> None:
        options, files = self._options, self._files
        if options.sdnotify_socket and files is not None and not options.exec:
            self._notify_proxy = make_notify_proxy(files)
        if files is None or self._passes_stdio:
            return
        self._attach = AttachSocket.open(
            files.path, socket_dir=self._socket_dir, cuuid=options.cuuid
        )
        self._control = Control.make(files)
        if options.exec_attach:
            self.engine.is_listening()

    def origin(self) -> Origin:
        """Return what this front end is to the core."""
        environment, link = self.engine.environment, self._link
        self._notifier = notifier(self._options)
        if link is None:
            return Origin(environment=environment, notifier=self._notifier)
        return Origin(
            environment=environment,
            notifier=self._notifier,
            command=own_command(),
            is_adoptable=True,
            store_holder=link,
        )

    def _make(self, host: Host) -> Container:
        options, engine = self._options, self.engine
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
        request = StartRequest(spec, origin=self.origin())
        container = Container(host, request, self._log, self._state_dir, config)
        self._follow(container)
        return container

    def _follow(self, container: Container) -> None:
        self._container = container
        ContainerApi(container).subscribe(self._on_notice)

    def _wait_for_second_word(self, host: Host) -> None:
        """Let the engine attach before the process is executed; its end of file means the same."""
        start = self.engine.start
        if not start.is_open:
            return

        def on_word() -> None:
            host.loop.forget(start.fileno())
            os.read(start.fileno(), 1)
            start.close()
            self._has_begun = True

        host.loop.watch(start.fileno(), on_word)
        host.loop.run_until(lambda: self._has_begun or self._why_not is not None)

    def _begin(self, container: Container) -> None:
        self._has_begun = True
        container.begin(CheckpointRecord() if self._options.restore else None)
        if self._passes_stdio:
            take_null_stdio()  # the runtime has its own copies
        if self._attach is not None and container.state is not State.ENDED:
            # Those who have connected earlier hear the first byte: none was taken yet.
            streams = container.running.stream_set
            self._attach.serve(streams.serve_packets(container.launch.stdio.line_sinks))

    # While it runs.

    def _on_notice(self, notice: Notice, _detail: str) -> None:
        container = self._container
        if notice is Notice.EXITED and self._attach is not None:
            self._attach.unlink()  # before a client sees its end
        if notice is not Notice.CREATED or container is None:
            return
        if self._link is not None:
            self._link.created(container.pid)
        self._is_created = True
        for signum in self._early_signals:
            container.signal_process(signum)
        self.engine.created(container.pid)
        if self._options.timeout > 0:
            self._deadline_s = time.monotonic() + self._options.timeout
        self._serve_created(container)

    def _serve_created(self, container: Container) -> None:
        self._is_created = True
        if self._control is not None:
            self._control.serve(self._host.loop, self._log, ContainerApi(container))
        if self._deadline_s:
            left_s = max(0.0, self._deadline_s - time.monotonic())
            self._host.loop.timer(self._on_timeout).start(left_s)
        if self._link is not None:
            Succession(self._options, self.engine, self._log, self._link, container).begin()

    def _on_signal(self, signum: int) -> None:
        if signum == signal.SIGHUP and self._link is not None:
            self._link.took(signum)
            self._host.ask_for_reload()
        if signum in _FORWARDED:
            self._forward(signum)
            if self._link is not None:
                self._link.took(signum)

    def _forward(self, signum: int) -> None:
        """TERM, INT and QUIT are the container's, and first the runtime's while that creates it."""
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
        self.engine.failed(said or describe(error).encode(errors="surrogateescape"))

    def _over(self, outcome: Outcome) -> int:
        if outcome.termination is None:
            raise outcome.error or ShimError("the process was never created")
        status = _UNKNOWN
        if not (self._has_timed_out or isinstance(outcome.termination, Unknown)):
            status = shell_status(outcome.termination)
        self.engine.release()
        bundle = self._files.path if self._files else ""
        ExitFiles(self._log).write_all(
            self._options, status, bundle=bundle, oom_kills=outcome.oom_kills
        )
        if self._options.exec:
            self.engine.exec_ended(status, has_timed_out=self._has_timed_out)
        return status
