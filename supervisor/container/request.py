"""What a front end asks the core for, and the outcome."""

from __future__ import annotations

import signal

from supervisor.systemd.notify import SILENT
from supervisor.systemd.socket_activation import ActivationFds
from workers.common.records import dataclass, field

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from supervisor.handover.manager import StoreHolder
    from supervisor.io.user_terminal import UserTerminal
    from supervisor.linux.errors import ShimError
    from supervisor.linux.exit_status import Termination
    from supervisor.oci.engine_call import EngineCall
    from supervisor.systemd.notify import Notifier
    from supervisor.systemd.notify_proxy import NotifyProxy

NO_ACTIVATION_FDS = ActivationFds()


@dataclass(frozen=True, slots=True)
class ContainerSpec:
    """The container, or the exec'd process, and what the runtime needs to create it.

    Attributes:
        container_id: Checked.
        bundle: Absolute path; the runtime's working directory.
        runtime: Name or path of the OCI runtime.
        config: A config.json that replaces the bundle's; "" for none. Only the creation reads it.
        activation_fds: What the container's process listens on. The creation closes them.
        starts_container: The supervisor runs the runtime's `start`, and not an engine.
        is_start_awaited: That `start` waits for the verb of `supervisor.container.api`, and so does
            a stdin that is a fifo.
        is_delete_awaited: After its end the output is copied, and the container kept, until the
            verb `delete`.
        has_engines_fifos: An engine names the streams' fifos. They are opened as they are, and each
            reader is waited for without a limit: the engine ends the wait with a stop.
        terminal: The user's terminal that is joined to the container's, or None.
        notify_proxy: The container's notify socket; lent. None if it has none.
        engine_call: The engine's own call of the runtime, which is then the only one.
    """

    container_id: str
    bundle: str
    runtime: str
    config: str = ""
    activation_fds: ActivationFds = NO_ACTIVATION_FDS
    starts_container: bool = False
    is_start_awaited: bool = False
    is_delete_awaited: bool = False
    has_engines_fifos: bool = False
    terminal: UserTerminal | None = None
    notify_proxy: NotifyProxy | None = None
    engine_call: EngineCall | None = None


@dataclass(frozen=True, slots=True)
class StopPolicy:
    """How a stop ends the container: this signal, and SIGKILL after the grace period."""

    signal: int = signal.SIGTERM
    timeout_s: float = 10.0


@dataclass(frozen=True, slots=True)
class Origin:
    """The front end, and the process in which it runs.

    The first five fields belong to the front end, which reads them again after a reload.

    Attributes:
        path: ROOT/ID; "" for a state directory of an engine.
        exit_dir: Where an exit record is written, or None.
        is_daemon: Whether no caller waits for this process.
        starts: When the last successors were started; monotonic seconds.
        began_ns: When the front end began; nanoseconds since the epoch, for the exit record.
        has_job_control: A shell may stop and continue this process.
        write_pid: Writes the pid of this process; raises OSError.
        on_started: Called once when the container process runs.
        notifier: The way to the service manager; the default has none.
        lock_fd: The front end's lock, which a reload keeps; -1 for none.
        command: How to start this program again, for a reload; empty if it may not be.
        is_adoptable: The fd store is published, so that a successor can restore the container.
        is_kept: The service manager keeps the store, too.
        store_holder: What holds the fd store, with those of the other containers of this process;
            None for an fd holder of its own.
        environment: That of this process, read once at its entry.
    """

    path: str = ""
    exit_dir: str | None = None
    is_daemon: bool = False
    starts: tuple[float, ...] = ()
    began_ns: int = 0
    has_job_control: bool = False
    write_pid: Callable[[], None] = lambda: None
    on_started: Callable[[], None] = lambda: None
    notifier: Notifier = SILENT
    lock_fd: int = -1
    command: tuple[str, ...] = ()
    is_adoptable: bool = False
    is_kept: bool = False
    store_holder: StoreHolder | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StartRequest:
    """Which container, how it is stopped, and for which front end."""

    spec: ContainerSpec
    stop: StopPolicy = StopPolicy()
    origin: Origin = Origin()


@dataclass(frozen=True, slots=True)
class StreamEnd:
    """What one stream has copied and lost."""

    name: str
    copied_bytes: int
    deaths: int
    dropped_bytes: int
    dropped_lines: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the container has ended, or why it has not begun. A failed start may have both.

    Attributes:
        termination: The end of the process; None if it never ran.
        error: Why the container could not begin.
        was_asked_to_stop: A stop was asked for at some time.
        pid: Of the container's process; 0 if there was none.
        oom_kills: How many processes of the container the kernel has killed for want of memory.
        streams: What each stream has copied and lost.
    """

    termination: Termination | None
    error: ShimError | None
    was_asked_to_stop: bool = False
    pid: int = 0
    oom_kills: int = 0
    streams: tuple[StreamEnd, ...] = ()


_ORIGIN_FIELDS = ("path", "exit_dir", "is_daemon", "starts", "began_ns")


def origin_of(request: StartRequest) -> dict[str, Any]:
    """Return the front end's own fields, for the handover document."""
    return {name: getattr(request.origin, name) for name in _ORIGIN_FIELDS}


def snapshot(request: StartRequest) -> dict[str, Any]:
    """Return the other fields that `request_of` needs. The rest belongs to this process."""
    spec, stop, origin = request.spec, request.stop, request.origin
    return {
        "container_id": spec.container_id,
        "bundle": spec.bundle,
        "runtime": spec.runtime,
        "starts_container": spec.starts_container,
        "is_start_awaited": spec.is_start_awaited,
        "is_delete_awaited": spec.is_delete_awaited,
        "has_engines_fifos": spec.has_engines_fifos,
        "stop_signal": stop.signal,
        "stop_timeout_s": stop.timeout_s,
        "is_adoptable": origin.is_adoptable,
        "is_kept": origin.is_kept,
    }


def request_of(
    document: Mapping[str, Any],
    *,
    notifier: Notifier,
    command: tuple[str, ...],
    environment: Mapping[str, str],
) -> StartRequest:
    """Return the request of an earlier supervisor, from its handover document."""
    packed, origin = document["request"], document["origin"]
    return StartRequest(
        ContainerSpec(
            packed["container_id"],
            packed["bundle"],
            packed["runtime"],
            starts_container=packed["starts_container"],
            is_start_awaited=packed["is_start_awaited"],
            is_delete_awaited=packed["is_delete_awaited"],
            has_engines_fifos=packed["has_engines_fifos"],
        ),
        StopPolicy(packed["stop_signal"], packed["stop_timeout_s"]),
        Origin(
            origin["path"],
            origin["exit_dir"],
            origin["is_daemon"],
            tuple(origin["starts"]),
            origin["began_ns"],
            notifier=notifier,
            command=command,
            is_adoptable=packed["is_adoptable"],
            is_kept=packed["is_kept"],
            environment=environment,
        ),
    )
