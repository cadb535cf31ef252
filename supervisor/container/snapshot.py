"""What a successor of this supervisor needs: packed by `Snapshot`, and restored from it.

A successor is the next program in this process, after a reload, or another process, after an
adoption. Both find a document and descriptors in an fd store.
"""

from __future__ import annotations

import os
from contextlib import ExitStack

from supervisor import __version__
from supervisor.container.handover_manager import Inherited
from supervisor.container.init_process import Process
from supervisor.container.lifecycle import State
from supervisor.container.request import origin_of
from supervisor.container.request import snapshot as snapshot_of_request
from supervisor.handover import reexec
from supervisor.io.stdio import restore as restore_stdio
from supervisor.linux import fds
from supervisor.oci import kill_scope, process_json
from supervisor.state.fd_store import FdStoreError
from supervisor.state.journal_log import Kind
from supervisor.state.log import Log
from workers.common.records import asdict, replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from supervisor.container.container import Container
    from supervisor.container.handover_manager import Leftovers
    from supervisor.container.host import Host
    from supervisor.container.request import Outcome, StartRequest
    from supervisor.container.running import Running
    from supervisor.container.start import Launch
    from supervisor.state.directory import StateDirectory
    from supervisor.state.fd_store import FdReader, FdWriter


class Snapshot:
    """Packs one container, and tells it what becomes of the handover. Borrows everything."""

    def __init__(self, container: Container, launch: Launch, running: Running) -> None:
        """Borrow; nothing is read before `document`."""
        self._container = container
        self._launch = launch
        self._running = running

    @property
    def is_alive(self) -> bool:
        """Whether the container has started and not ended."""
        return self._container.is_alive

    @property
    def is_running(self) -> bool:
        """Whether the same, and no stop was asked for."""
        return self._container.state is State.RUNNING and self._container.is_started

    @property
    def is_settled(self) -> bool:
        """Whether nothing is halfway: no worker is about to go, no signal waits to be served."""
        return self._running.stream_set.is_settled and not self._launch.host.router.has_notes

    def reloading(self) -> None:
        """Tell that another version is being tried."""
        self._running.service.reloading()

    def reload_is_over(self) -> None:
        """Tell that it was not taken."""
        if self._container.state is State.RUNNING:
            self._running.service.running(self._container.state, self._container.description())

    @property
    def counters_fd(self) -> int:
        """The memory that every worker of the container has mapped, and no other process."""
        return self._running.stream_set.counters_fd

    def document(self, fd_writer: FdWriter) -> dict[str, Any]:
        """Return all that is known and held of the container, for `restore` of a successor."""
        launch, running, process = self._launch, self._running, self._container.process
        if process is None:
            raise AssertionError("nothing to hand over")
        request, scope = launch.request, running.stopper.kill_scope
        proxy, notify_worker = request.spec.notify_proxy, running.notify_worker
        return {
            "pid": os.getpid(),
            "version": __version__,
            "origin": origin_of(request),
            "request": snapshot_of_request(request),
            "container": {
                "config": asdict(launch.config),
                "exit": fd_writer.add(launch.exit_fifo.fileno()),
                "control": fd_writer.add(launch.control_fifo.fileno()),
                "control_rest": running.control.rest,
                "notify_proxy": proxy.snapshot(fd_writer) if proxy and proxy.is_open else None,
                "notify_worker": notify_worker.snapshot(fd_writer) if notify_worker else None,
                **process.snapshot(fd_writer),
                "began_at": launch.creation.began_at,
                "is_paused": running.is_paused,
                "is_stopping": self._container.is_stopping,
                "stop_timeout_s": running.stop_timeout_s,
                "kill_scope": scope.snapshot() if scope else None,
                "stdio": launch.stdio.snapshot(fd_writer),
                "pipes": launch.pipes.snapshot(fd_writer),
                "stream_set": running.stream_set.snapshot(fd_writer),
                "service": running.service.snapshot(),
            },
        }

    def add_own(self, document: dict[str, Any], fd_writer: FdWriter) -> None:
        """Add to what `document` has returned what only this very process goes on with."""
        document["container"]["pipes"]["peer"] = self._launch.pipes.snapshot_peer(fd_writer)


def restore(
    request: StartRequest,
    log: Log,
    state_dir: StateDirectory,
    contents: FdReader,
    leftovers: Leftovers | None = None,
) -> Outcome:
    """Continue with the process of an earlier supervisor, until it is gone; as `host.supervise`.

    Args:
        request: From `request_of`.
        log: As for `host.supervise`.
        state_dir: Borrowed.
        contents: What that supervisor had; owned from now on.
        leftovers: What else is left, if that supervisor is dead; owned from now on. None: it was
            this very process, and its children are ours.

    Raises:
        ShimError: What it had cannot be used.
    """
    with ExitStack() as stack:
        inherited = Inherited(contents, leftovers)
        host, container = _restore(request, log, state_dir, inherited, stack)
        _begin(host, container, inherited)
        host.run()
        return container.outcome


def dry_run(request: StartRequest, state_dir: StateDirectory, contents: FdReader) -> None:
    """Do what `restore` does before it begins to serve, then supervise something small.

    Raises:
        ShimError: What there is cannot be used, or what is installed does not work.
    """
    with ExitStack() as stack:
        log = Log(fds.Fd(os.dup(2)))
        stack.callback(log.close)
        _restore(request, log, state_dir, Inherited(contents), stack)
        reexec.try_a_worker(log, f"forkshim: {request.spec.container_id}")


def _restore(
    request: StartRequest,
    log: Log,
    state_dir: StateDirectory,
    inherited: Inherited,
    stack: ExitStack,
) -> tuple[Host, Container]:
    from supervisor.container.container import Container
    from supervisor.container.host import Host

    contents = inherited.contents
    stack.callback(contents.close)
    host = Host(
        log,
        request.origin.environment,
        has_job_control=request.origin.has_job_control,
        has_watchdog=request.origin.notifier.watchdog_s > 0,
    )
    stack.callback(host.close)
    document = contents.document
    try:
        packed = document["container"]
        exit_fifo = contents.take(packed["exit"])
        stack.callback(exit_fifo.close)
        control_fifo = contents.take(packed["control"])
        config = process_json.ProcessConfig(
            **{**packed["config"], "runtime_args": tuple(packed["config"]["runtime_args"])}
        )
        if packed["notify_proxy"] is not None:
            from supervisor.systemd.notify_proxy import NotifyProxy  # for containers that have one

            notify_proxy = NotifyProxy.restore(packed["notify_proxy"], contents)
            stack.callback(notify_proxy.close)
            request = replace(request, spec=replace(request.spec, notify_proxy=notify_proxy))
        container = Container(
            host, request, log, state_dir, config, exit_fifo=exit_fifo, control_fifo=control_fifo
        )
        _unpack(container, inherited, packed)
    except (KeyError, TypeError, ValueError) as error:
        raise FdStoreError(f"handover: {type(error).__name__}: {error}") from error
    return host, container


def _unpack(container: Container, inherited: Inherited, packed: dict[str, Any]) -> None:
    """Have the container be what `Snapshot.document` says."""
    launch, contents, is_parent = container.launch, inherited.contents, inherited.is_parent
    container.assemble(inherited)
    running = container.running
    container.machine.state = State.RUNNING
    container.is_started = True
    running.control.restore(packed["control_rest"])
    running.is_paused = packed["is_paused"]
    container.is_stopping = packed["is_stopping"]
    running.stop_timeout_s = packed["stop_timeout_s"]
    container.process = Process.restore(
        launch.loop, container.host.reaper, launch.state_dir, packed, contents, is_parent=is_parent
    )
    launch.creation.began_at = packed["began_at"]
    if packed["kill_scope"] is not None:
        running.stopper.kill_scope = kill_scope.restore(packed["kill_scope"])
    request = launch.request
    launch.stdio = restore_stdio(
        packed["stdio"], contents, launch.config, request.spec.container_id, request.spec.bundle
    )
    streams = running.stream_set
    launch.pipes.restore(
        packed["pipes"],
        packed["stream_set"]["streams"],
        contents,
        launch.stdio,
        streams,
        is_parent=is_parent,
    )
    if running.notify_worker is not None:
        running.notify_worker.restore(packed["notify_worker"], contents, is_parent=is_parent)
    streams.attach_clients.restore(
        packed["stream_set"]["attach_clients"], contents, streams.streams
    )
    streams.restore(packed["stream_set"])


def _begin(host: Host, container: Container, inherited: Inherited) -> None:
    running, process = container.running, container.process
    if process is None:
        raise AssertionError("restored without a process")
    host.prepare_forks(container.launch.title)
    container.enter_host()
    is_parent = inherited.is_parent
    verb, kind = ("reloaded", Kind.RELOADED) if is_parent else ("adopted", Kind.ADOPTED)
    version = inherited.contents.document.get("version", "before this one")
    container.launch.log.notice(
        f"{verb}: version {version} is replaced, "
        f"version {__version__} goes on, process {container.pid}",
        kind,
    )
    running.stream_set.renew(running.handover.leftover_workers)
    container.request.origin.on_started()
    running.service.running(container.state, container.description())
    running.handover.changed()
    running.expect_end(process)
    host.reap()  # what has ended in between
    if container.is_stopping and container.state is State.RUNNING:
        # The earlier supervisor may have been killed before it sent the signal.
        container.stop("the supervisor before this one")
