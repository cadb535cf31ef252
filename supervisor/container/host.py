"""The supervisor process: one event loop, one reaper, one signal router, and N containers.

`Host` owns what a process has once. A `Container` borrows it. `supervise` is all that a front end
with one container needs: signals, subreaper, fifos, process.json, the container's life and end.
"""

from __future__ import annotations

import gc
import os
import signal

from supervisor.container.container import Container
from supervisor.linux import fd_limit, fds, syscalls
from supervisor.linux.errors import AbandonedError
from supervisor.linux.event_loop import Loop
from supervisor.linux.reaper import Reaper
from supervisor.linux.signals import FORWARDED_SIGNALS, STOP_SIGNALS, SignalRouter
from supervisor.oci import process_json
from supervisor.sinks.spec import SinkKind, parse_sink, with_absolute_path
from supervisor.state.retried_file import RetriedFile
from workers.common.records import replace
from workers.process import title as title_of_process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from supervisor.container.request import Outcome, StartRequest
    from supervisor.container.snapshot import Snapshot
    from supervisor.handover.reload import Reload
    from supervisor.state.directory import StateDirectory
    from supervisor.state.fd_store import FdWriter
    from supervisor.state.log import Log

_NEEDED_FDS = 3
"""A start fails before the runtime runs if the supervisor cannot open so many descriptors."""


class Host:
    """One per process. Owns the loop, the reaper, the signal router, /dev/null; borrows the log.

    Attributes:
        containers: All that have not ended; each before the processes that were exec'd in it.
        on_signal: What a signal other than SIGCHLD does; see `SignalPolicy`.
        reload: Made with the first container that is assembled.
        front_end_document: Returns what the front end needs after a reload, as JSON.
        is_front_end_settled: Says whether the front end can be reloaded at this moment.
    """

    def __init__(
        self,
        log: Log,
        environment: Mapping[str, str],
        *,
        has_job_control: bool = False,
        has_watchdog: bool = False,
        keeps_title: bool = False,
    ) -> None:
        """Route signals and become a subreaper. `environment` was read once, at the entry.

        `keeps_title`: tools know this process by its arguments.
        """
        self.log = log
        self.environment = environment
        self.router = SignalRouter(has_job_control=has_job_control, has_watchdog=has_watchdog)
        self.null = fds.Fd(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
        self.loop = Loop()
        self.loop.watch(self.router.fileno(), self._dispatch)  # first: an end comes before all
        self.reaper = Reaper()
        self.containers: list[Container] = []
        self.on_signal: Callable[[int], None] = SignalPolicy(self).deliver
        self.reload: Reload | None = None
        self.front_end_document: Callable[[FdWriter], Any] = lambda _fd_writer: None
        self.is_front_end_settled: Callable[[], bool] = lambda: True
        self._reap_more = self.loop.timer(self.reap)
        self._title = "kept" if keeps_title else ""
        syscalls.set_child_subreaper(True)

    def prepare_forks(self, title: str) -> None:
        """Set the process title and freeze the heap, once, before the first worker is forked.

        One full collection in a worker would copy 4.2 MB of pages that it shares with this process;
        after gc.freeze() 0.3 MB.
        """
        if not self._title:
            self._title = title
            gc.freeze()
            title_of_process.set_title(title)

    def run(
        self,
        is_wanted: Callable[[], bool] = lambda: False,
        has_to_leave: Callable[[], bool] = lambda: False,
    ) -> None:
        """Serve until each container has ended and left nothing behind.

        `is_wanted`: whether a front end may bring another container; asked when none is left.
        `has_to_leave`: whether a front end leaves its living containers to another program.

        Raises:
            AbandonedError: An unforeseen error. Nothing was ended or removed: the workers, or the
                fd holder, keep what a successor needs.
        """
        try:
            self.loop.run_until(lambda: has_to_leave() or (self._is_empty() and not is_wanted()))
        except Exception as error:
            for container in self.containers:
                container.tell_of_bug(error)
            what = f"{type(error).__name__}: {error}"
            for container in self.containers:
                if container.is_alive and container.request.origin.is_adoptable:
                    what += f"; `forkshim adopt {container.request.spec.container_id}` goes on"
            raise AbandonedError(f"unforeseen, the supervisor ends: {what}") from error

    def ask_for_reload(self) -> None:
        """Execute the installed version, with all containers, if its dry run succeeds."""
        for container in self.containers:
            container.assemble()
        if self.reload is not None:
            self.reload.ask()

    def reload_sources(self) -> list[Snapshot]:
        """Return the containers for a reload, in the order of `containers`."""
        return [container.running.snapshot for container in self.containers]

    def _is_empty(self) -> bool:
        for container in [*self.containers]:
            if container.has_left():
                self.containers.remove(container)
                if self.reload is not None:
                    self.reload.look()
        return not self.containers

    def _dispatch(self) -> None:
        self.router.dispatch(self._dispatch_one)

    def _dispatch_one(self, signum: int) -> None:
        if signum == signal.SIGCHLD:
            self.reap()
        else:
            self.on_signal(signum)

    def reap(self) -> None:
        """Reap children that have ended. The rest of a flood waits for the next round."""
        if self.reaper.reap():
            self._reap_more.start(0.0)

    def close(self) -> None:
        """Stop routing signals, and close what is owned."""
        self.null.close()
        self.loop.close()
        self.router.close()


class SignalPolicy:
    """What a signal to the supervisor does to its containers. Borrows the host.

    TERM and INT stop each container. WINCH fits a console to the user's terminal. HUP reloads if
    the front end has said how to start the program again. Other signals are forwarded. A process
    that was exec'd in a container of this host gets no signal.
    """

    def __init__(self, host: Host) -> None:
        """Borrow the host."""
        self._host = host

    def deliver(self, signum: int) -> None:
        """Carry out what the signal means."""
        containers = [each for each in self._host.containers if each.parent is None]
        if signum == signal.SIGHUP and any(each.request.origin.command for each in containers):
            self._host.ask_for_reload()
            return
        for container in containers:
            self._deliver(container, signum)

    def _deliver(self, container: Container, signum: int) -> None:
        request = container.request
        if signum in STOP_SIGNALS:
            container.stop_by(signum)
        elif signum == signal.SIGWINCH and request.spec.terminal is not None:
            container.launch.loop.guarded("window size", container.launch.pipes.fit_to_window)()
        elif signum in FORWARDED_SIGNALS:
            container.sequence.forward(signum)


def supervise(request: StartRequest, log: Log, state_dir: StateDirectory) -> Outcome:
    """Supervise one container, or one exec'd process, until it is gone. `state_dir` is borrowed.

    Order of the start: signals, subreaper, `exit`, `control`, process.json, stdio, the runtime.
    Order of the end: `exitStatus`, kill --all, drain, delete; `exit` is closed last.

    Raises:
        ShimError: A file of the state directory is missing or wrong. Nothing was started.
    """
    host = host_for(request, log)
    try:
        exit_fifo = state_dir.open_fifo("exit")
        try:
            control_fifo = state_dir.open_fifo("control")
            config = process_json.read_process("process.json", state_dir.fileno())
            config = with_absolute_logs(config, state_dir.path)
            checkpoint = (
                process_json.read_checkpoint(config.checkpoint) if config.checkpoint else None
            )
            fd_limit.check(_NEEDED_FDS)
            container = Container(
                host,
                request,
                log,
                state_dir,
                config,
                exit_fifo=exit_fifo,
                control_fifo=control_fifo,
            )
            container.begin(checkpoint)
            host.run()
            return container.outcome
        finally:
            exit_fifo.close()
    finally:
        host.close()


def host_for(request: StartRequest, log: Log) -> Host:
    """Return the host of one front end, and write its pid where the front end wants that."""
    origin = request.origin
    host = Host(
        log,
        origin.environment,
        has_job_control=origin.has_job_control,
        has_watchdog=origin.notifier.watchdog_s > 0,
    )
    RetriedFile(host.loop, log, "supervisor.pid", origin.write_pid).write()
    return host


def with_absolute_logs(
    config: process_json.ProcessConfig, directory: str
) -> process_json.ProcessConfig:
    """Return `config` with absolute paths of log files: the workers open them again by name."""
    return replace(
        config,
        stdout=_with_absolute_log(config.stdout, directory),
        stderr=config.stderr if config.terminal else _with_absolute_log(config.stderr, directory),
    )


def _with_absolute_log(setting: str, directory: str) -> str:
    if parse_sink(setting).kind is SinkKind.PATH:
        return setting  # a fifo, opened once, relative to the state directory
    return with_absolute_path(setting, directory)
