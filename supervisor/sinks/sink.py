"""The interface of a sink that is more than a descriptor: a log file, the journal, a buffer."""

from __future__ import annotations

from workers.common.policy import BLOCK
from workers.common.records import dataclass
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
        """The destination of a stream. The stream's workers write to it, one after the other."""

        @property
        def policy(self) -> str:
            """What happens if the sink accepts nothing: "block", "drop-new" or "drop-old"."""

        def drops(self) -> Drops:
            """Return the number of dropped bytes and lines."""

        @property
        def held_bytes(self) -> int:
            """The most bytes that can be between the container's pipe and the sink."""

        @property
        def is_file(self) -> bool:
            """Whether each worker opens a file by its name."""

        @property
        def is_deleted(self) -> bool:
            """Whether the file that the worker writes to has no name any more."""

        def has_room(self, sink_fd: int) -> bool:
            """Return whether a write would not block."""

        def work(self, context: WorkerContext, route: Route) -> None:
            """Run a worker to its report. Called in the child."""

        def reopen(self) -> None:
            """Reopen or reconnect the sink after a worker has reported an error.

            Raises:
                OSError: The sink is not available yet.
                UntrustedError: The directory or the file is not trusted.
            """

        def renew_file(self) -> None:
            """Rotate or replace a k8s-file. Do nothing for any other sink.

            Raises:
                OSError: The directory does not exist.
            """

        def snapshot(self, fd_writer: FdWriter) -> dict[str, Any]:
            """Return the state for `open_sinks` of another supervisor."""

        def close(self) -> None:
            """Close everything. A second call does nothing."""


@dataclass(frozen=True, slots=True)
class Drops:
    """What a policy has dropped: bytes, and how many of them were line ends."""

    bytes: int
    lines: int


def drops_of(buffer: LineBuffer) -> Drops:
    """Return what was dropped because the buffer was full."""
    state = buffer.read()
    return Drops(min(state.dropped_bytes, MOST_BYTES), min(state.dropped_lines, MOST_BYTES))


def buffer_bytes_of(sink: SinkSpec) -> int:
    """Return the size of the buffer before a sink; 0 for none."""
    return 0 if sink.policy == BLOCK else sink.buffer_bytes
