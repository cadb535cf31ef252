"""What all worker slots of one container share."""

from __future__ import annotations

from supervisor.children.restart_policy import RestartPolicy
from workers.common.records import dataclass, field

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from supervisor.io.attach.hub import AttachHub
    from supervisor.io.stream import Stream
    from supervisor.io.stream_log import StreamLog
    from supervisor.linux import fds
    from supervisor.linux.event_loop import Loop
    from supervisor.linux.reaper import Reaper
    from supervisor.state.log import Log
    from workers.copy.stdin import RawTerminal
    from workers.process.counters import StreamCounters


def _do_nothing() -> None:
    pass


@dataclass(slots=True)
class SlotContext:
    """Made and owned by a `StreamSet`. Its slots borrow everything.

    It has many attributes, because each slot would otherwise get them one by one.

    Attributes:
        title: Prefix of a worker's process title.
        null_fd: /dev/null, open for reading and writing.
        is_adoptable: Another supervisor can adopt the container when this one is killed.
        on_change: Called when the descriptors of a stream have changed.
        on_closed: Called when a stream was closed.
        before_first_byte: Called before a stream's first worker is forked.
        policy: Decides what follows a failure.
        leftover_workers: pidfds of workers of a dead supervisor, which were sent SIGKILL.
        raw_terminal: The user's terminal, in raw mode.
        is_closing: The supervisor replaces no worker any more.
    """

    loop: Loop
    reaper: Reaper
    log: Log
    stream_log: StreamLog
    attach_hub: AttachHub
    counters: StreamCounters
    title: str
    null_fd: int
    is_adoptable: bool
    on_change: Callable[[], None]
    on_closed: Callable[[Stream], None]
    before_first_byte: Callable[[], None] = _do_nothing
    policy: RestartPolicy = RestartPolicy()
    leftover_workers: list[fds.Fd] = field(default_factory=list)
    raw_terminal: RawTerminal | None = None
    is_closing: bool = False
