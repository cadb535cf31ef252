"""Continuing with the containers of an earlier supervisor, from the documents of `snapshot`.

That supervisor was this process, before a reload, or it was killed and its container is adopted.
"""

from __future__ import annotations

import os
from contextlib import ExitStack

from supervisor import __version__
from supervisor.container.init_process import Process
from supervisor.container.lifecycle import State
from supervisor.container.request import request_of
from supervisor.handover import discover, reexec
from supervisor.handover.manager import Inherited, Leftovers
from supervisor.io.client_stdio import restore as restore_stdio
from supervisor.linux import fds
from supervisor.linux.errors import reason
from supervisor.oci import kill_scope, process_json
from supervisor.state.directory import StateDirectory
from supervisor.state.fd_store import FdStore, FdStoreError
from supervisor.state.journal_log import Kind
from supervisor.state.log import Log
from supervisor.systemd.notify import SILENT
from workers.common.records import dataclass, replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import Any

    from supervisor.container.container import Container
    from supervisor.container.host import Host
    from supervisor.container.request import Outcome, StartRequest
    from supervisor.state.fd_store import FdReader


@dataclass(frozen=True, slots=True)
class Place:
    """What is needed to continue with one container of an earlier supervisor.

    Attributes:
        request: From `request_of`.
        log: Borrowed.
        state_dir: Borrowed.
        inherited: What that supervisor had of the container; owned by `restore_containers`.
    """

    request: StartRequest
    log: Log
    state_dir: StateDirectory
    inherited: Inherited


def restore(
    request: StartRequest,
    log: Log,
    state_dir: StateDirectory,
    containers: Sequence[FdReader],
    leftovers: Leftovers | None = None,
) -> Outcome:
    """Continue with the containers of an earlier supervisor until each is gone; as `supervise`.

    Args:
        request: From `request_of`, for the first container.
        log: Of the first container, and of the host.
        state_dir: Of the first container; borrowed.
        containers: What that supervisor had: the front end's container, then the processes that
            were exec'd in it. Owned from now on.
        leftovers: What else there is, if that supervisor is dead; owned from now on. None after a
            reload: that supervisor was this process.

    Returns:
        How it went with the first container.

    Raises:
        ShimError: What that supervisor had cannot be used.
    """
    with ExitStack() as stack:
        host = _host_for(request, log, stack)
        first, environment = containers[0], request.origin.environment
        places = [Place(request, log, state_dir, Inherited(first, leftovers))]
        places.extend(place_of(each, environment, stack) for each in containers[1:])
        if leftovers is not None:
            places.extend(adopted_execs(first, environment, stack))
        restored = restore_containers(host, places, stack)
        begin(host, restored, places)
        host.run()
        return restored[0].outcome


def dry_run(
    request: StartRequest, state_dir: StateDirectory, containers: Sequence[FdReader]
) -> None:
    """Do what `restore` does before it begins to serve. Then copy a byte with a worker.

    Raises:
        ShimError: The documents cannot be used, or the installed version does not work.
    """
    with ExitStack() as stack:
        log = Log(fds.Fd(os.dup(2)))
        stack.callback(log.close)
        host = _host_for(request, log, stack)
        places = [Place(request, log, state_dir, Inherited(containers[0]))]
        environment = request.origin.environment
        places.extend(
            place_of(each, environment, stack, lambda _state_dir: log) for each in containers[1:]
        )
        restore_containers(host, places, stack)
        reexec.try_a_worker(log, f"forkshim: {request.spec.container_id}")


def _host_for(request: StartRequest, log: Log, stack: ExitStack) -> Host:
    from supervisor.container.host import host_for

    host = host_for(request, log)
    stack.callback(host.close)
    return host


def place_of(
    contents: FdReader,
    environment: Mapping[str, str],
    stack: ExitStack,
    open_log: Callable[[StateDirectory], Log] = StateDirectory.open_log,
    *,
    command: tuple[str, ...] = (),
    leftovers: Leftovers | None = None,
) -> Place:
    """Return the place of a container whose state directory is opened here.

    Args:
        contents: The container's document; owned by the place.
        environment: That of this process.
        stack: Owns the state directory and the log.
        open_log: Opens the container's log.
        command: How to start this program again; empty for an exec'd process.
        leftovers: As for `restore`.

    Raises:
        FdStoreError: The document has no state directory that can be opened.
    """
    stack.callback(contents.close)
    try:
        state_dir = StateDirectory.open(contents.document["container"]["state_dir"])
        stack.callback(state_dir.close)
        log = open_log(state_dir)
        stack.callback(log.close)
        request = request_of(
            contents.document, notifier=SILENT, command=command, environment=environment
        )
    except OSError as error:
        raise FdStoreError(f"handover: {error.filename}: {reason(error)}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise FdStoreError(f"handover: {type(error).__name__}: {error}") from error
    return Place(request, log, state_dir, Inherited(contents, leftovers))


def adopted_execs(
    contents: FdReader, environment: Mapping[str, str], stack: ExitStack
) -> Iterator[Place]:
    """Return the places of the processes that were exec'd in a container that is adopted.

    Args:
        contents: The container's document, from which the stores of the processes are taken.
        environment: That of this process.
        stack: As for `place_of`.

    Raises:
        FdStoreError: A store cannot be read, or the kernel hides what a worker is.
    """
    for packed in contents.document["container"]["execs"]:
        front, back = (contents.take(end).take() for end in packed["ends"])
        store = FdStore(ends=(front, back), nonce=packed["nonce"])
        stack.callback(store.close)
        found = store.look()
        container_id = found.document["request"]["container_id"]
        left = discover.workers_with(packed["counters"], container_id)
        yield place_of(found, environment, stack, leftovers=Leftovers(store, left, []))


def restore_containers(host: Host, places: Sequence[Place], stack: ExitStack) -> list[Container]:
    """Make each container as its earlier supervisor had it. `begin` has to follow.

    Args:
        host: Has no container yet.
        places: A container comes before the processes that were exec'd in it.
        stack: Owns what is taken from the documents and belongs to no container.

    Raises:
        ShimError: A document cannot be used. Nothing has been done to the containers.
    """
    restored: list[Container] = []
    for place in places:
        try:
            restored.append(_restore(host, place, restored, stack))
        except (KeyError, TypeError, ValueError) as error:
            raise FdStoreError(f"handover: {type(error).__name__}: {error}") from error
    return restored


def _restore(host: Host, place: Place, earlier: Sequence[Container], stack: ExitStack) -> Container:
    from supervisor.container.container import Container

    request, contents = place.request, place.inherited.contents
    stack.callback(contents.close)
    packed = contents.document["container"]
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
        host,
        request,
        place.log,
        place.state_dir,
        config,
        exit_fifo=exit_fifo,
        control_fifo=control_fifo,
        parent=_parent_of(request, config, earlier),
    )
    _unpack(container, place.inherited, packed)
    return container


def _parent_of(
    request: StartRequest, config: process_json.ProcessConfig, earlier: Sequence[Container]
) -> Container | None:
    """Return the container that an exec'd process is in, if this host has it."""
    if not config.is_exec:
        return None
    wanted = request.spec.container_id
    return next((each for each in earlier if each.request.spec.container_id == wanted), None)


def _unpack(container: Container, inherited: Inherited, packed: dict[str, Any]) -> None:
    """Give the container the state that is in the document."""
    launch, contents, is_parent = container.launch, inherited.contents, inherited.is_parent
    container.assemble(inherited)
    running = container.running
    container.is_started = packed["is_started"]
    container.machine.state = State.RUNNING if container.is_started else State.STARTING
    running.control.restore(packed["control_rest"])
    running.is_paused = packed["is_paused"]
    container.is_stopping = packed["is_stopping"]
    running.stopper.timeout_s = packed["stop_timeout_s"]
    running.stopper.grace_ends_at_s = packed["grace_ends_at_s"]
    container.process = Process.restore(
        launch.loop, container.host.reaper, launch.state_dir, packed, contents, is_parent=is_parent
    )
    if not container.is_started:
        container.sequence.watch_exec(container.pid)
        for signum in packed["early_signals"]:
            container.sequence.forward(signum)
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
    packet_clients = packed["stream_set"]["packet_clients"]
    if packet_clients is not None:
        streams.serve_packets(launch.stdio.line_sinks).restore(packet_clients, contents)
    streams.restore(packed["stream_set"])


def begin(host: Host, containers: Sequence[Container], places: Sequence[Place]) -> None:
    """Serve the restored containers from now on. `host.run` follows."""
    host.prepare_forks(containers[0].launch.title)
    for container in containers:
        container.enter_host()  # all first: a container's document names the processes exec'd in it
    for container, place in zip(containers, places, strict=True):
        _continue(container, place.inherited)
    host.reap()  # a process may have ended since the last supervisor's reap
    for container, place in zip(containers, places, strict=True):
        if container.is_stopping and container.state is State.RUNNING:
            # It may have been killed before it sent the signal.
            dead = place.inherited.contents.document["pid"]
            container.stop(f"supervisor {dead} was killed during a stop")


def _continue(container: Container, inherited: Inherited) -> None:
    running, process, log = container.running, container.process, container.launch.log
    if process is None:
        raise AssertionError("restored without a process")
    is_parent, document = inherited.is_parent, inherited.contents.document
    verb, kind = ("reloaded", Kind.RELOADED) if is_parent else ("adopted", Kind.ADOPTED)
    log.notice(
        f"{verb}: version {document.get('version', 'before this one')} is replaced, "
        f"version {__version__} goes on, process {container.pid}",
        kind,
    )
    running.stream_set.renew(running.handover.leftover_workers)
    running.handover.publish()
    if container.is_started:
        container.request.origin.on_started()
    running.service.running(
        container.state, container.description(), is_started=container.is_started
    )
    running.expect_end(process)
