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
    """Made and owned by a `StreamSet`; its slots borrow everything.

    Attributes:
        title: Prefix of a worker's process title.
        null_fd: /dev/null, open for reading and writing.
        is_adoptable: Another supervisor can continue when this one is killed.
        on_change: Called when a stream has other descriptors than before.
        on_closed: Called when a stream was closed.
        before_first_byte: Called before a stream's first worker takes the first byte.
        policy: What follows a failure.
        leftover_workers: pidfds of workers of a dead supervisor, which are being killed.
        raw_terminal: The person's terminal, in raw mode.
        is_closing: No worker is followed by another one any more.

    Many attributes: what each slot would be given one by one.
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
