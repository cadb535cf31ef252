"""What a stream is written to, where that is more than a descriptor."""

from __future__ import annotations

from typing import NamedTuple

from workers.lines.buffer import BLOCK
from workers.process.counters import MOST_BYTES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    from supervisor.sinks.spec import SinkSpec
    from supervisor.state.fd_store import FdWriter
    from workers.copy.route import Route
    from workers.lines.buffer import LineBuffer
    from workers.process.context import WorkerContext

    class Sink(Protocol):
        """What the workers of one stream write to, one after the other."""

        @property
        def policy(self) -> str:
            """What becomes of what it does not take: "block", "drop-new", "drop-old"."""

        def drops(self) -> Drops:
            """Return what was dropped so far."""

        @property
        def held_bytes(self) -> int:
            """What a line may have that is neither in the container's pipe nor in the sink."""

        @property
        def is_file(self) -> bool:
            """Whether a worker begins by opening the file of a name."""

        def has_room(self, sink_fd: int) -> bool:
            """Say whether a worker that writes now would not have to wait."""

        def work(self, context: WorkerContext, route: Route) -> None:
            """Be a worker, to its report; in the child."""

        def renew(self) -> None:
            """Make the sink fit for use again after a worker has reported an error.

            Raises:
                OSError: It is not there yet.
                UntrustedError: What is there by its name is not believed.
            """

        def pack(self, fd_writer: FdWriter) -> dict[str, Any]:
            """Return what `open_sinks` of a successor is given for this stream."""

        def close(self) -> None:
            """Close everything; a second call does nothing."""


class Drops(NamedTuple):
    """What a policy has cost so far: bytes, and ends of lines among them."""

    bytes: int
    lines: int


def drops_of(buffer: LineBuffer) -> Drops:
    """Return what was dropped before it came into a buffer."""
    state = buffer.read()
    return Drops(min(state.dropped_bytes, MOST_BYTES), min(state.dropped_lines, MOST_BYTES))


def buffer_bytes_of(sink: SinkSpec) -> int:
    """Return the size of the buffer before a sink; 0 for none."""
    return 0 if sink.policy == BLOCK else sink.buffer_bytes
