"""What a front end wants of the core, and how it went."""

from __future__ import annotations

import signal
from typing import NamedTuple

from supervisor.systemd.notify import SILENT
from supervisor.systemd.socket_activation import ActivationFds
from workers.common.records import dataclass, field

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from supervisor.io.user_terminal import UserTerminal
    from supervisor.linux.errors import ShimError
    from supervisor.linux.exit_status import Termination
    from supervisor.systemd.notify import Notifier
    from supervisor.systemd.notify_proxy import NotifyProxy

NO_ACTIVATION_FDS = ActivationFds()

_PACKED_REQUEST = (
    "container_id",
    "bundle",
    "runtime",
    "starts_container",
    "stop_signal",
    "stop_timeout_s",
    "is_adoptable",
    "is_kept",
)
"""What a successor is told of an order; the rest belongs to the process that has it."""


@dataclass(frozen=True, slots=True)
class StartRequest:
    """What a front end wants.

    Attributes:
        container_id: Checked.
        bundle: Absolute path; the runtime's working directory.
        runtime: Name or path of the OCI runtime.
        config: A config.json in the place of the bundle's; "" for that. Only its creation reads it.
        activation_fds: What the container's process listens on; its creation closes it.
        starts_container: Run the runtime's `start` too; an engine does that itself.
        is_start_awaited: That `start` waits for the verb of `supervisor.container.api`.
        stop_signal: What a stop sends first.
        stop_timeout_s: The grace period after it.
        has_job_control: A shell may stop and continue us.
        terminal: The person's terminal that is joined to the container's, or None.
        on_started: Called once when the container process runs.
        notifier: The way to the service manager; the default has none.
        notify_proxy: The container's own way to it, by us; lent.
        front: What the front end itself wants to know again after a reload; JSON.
        lock_fd: The front end's lock, which a reload keeps; -1 for none.
        command: How to start this program again, for a reload; empty if it may not be.
        is_adoptable: All is laid down so that another supervisor can go on if we are killed.
        is_kept: The service manager keeps it, too.
        environment: That of this process, read once at its entry.
    """

    container_id: str
    bundle: str
    runtime: str
    config: str = ""
    activation_fds: ActivationFds = NO_ACTIVATION_FDS
    starts_container: bool = False
    is_start_awaited: bool = False
    stop_signal: int = signal.SIGTERM
    stop_timeout_s: float = 10.0
    has_job_control: bool = False
    terminal: UserTerminal | None = None
    on_started: Callable[[], None] = lambda: None
    notifier: Notifier = SILENT
    notify_proxy: NotifyProxy | None = None
    front: Mapping[str, Any] = field(default_factory=dict)
    lock_fd: int = -1
    command: tuple[str, ...] = ()
    is_adoptable: bool = False
    is_kept: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)


class StreamEnd(NamedTuple):
    """What a stream has come to."""

    name: str
    copied_bytes: int
    deaths: int
    dropped_bytes: int
    dropped_lines: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """How it went: the container process's end, or why there was none; start errors have both.

    Attributes:
        termination: None if it never ran.
        error: Why it could not begin.
        was_asked_to_stop: By TERM or INT, at any time.
        pid: The container process's; 0 if there was none.
        oom_kills: How many processes of the container the kernel has killed for want of memory.
        streams: What each has come to.
    """

    termination: Termination | None
    error: ShimError | None
    was_asked_to_stop: bool = False
    pid: int = 0
    oom_kills: int = 0
    streams: tuple[StreamEnd, ...] = ()


def pack(order: StartRequest) -> dict[str, Any]:
    """Return what `order_of` needs."""
    return {name: getattr(order, name) for name in _PACKED_REQUEST}


def request_of(
    document: Mapping[str, Any],
    *,
    notifier: Notifier,
    command: tuple[str, ...],
    environment: Mapping[str, str],
) -> StartRequest:
    """Return the order of an earlier supervisor, whose `document` this is, for us to carry out."""
    return StartRequest(
        **{name: document["order"][name] for name in _PACKED_REQUEST},
        front=document["front"],
        notifier=notifier,
        command=command,
        environment=environment,
    )
