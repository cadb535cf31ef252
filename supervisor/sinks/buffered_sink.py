"""A buffer of lines before a descriptor, for a policy that drops."""

from __future__ import annotations

from supervisor.linux import fds
from supervisor.linux.errors import MachineError, reason
from supervisor.sinks.sink import Drops, drops_of
from workers.sinks import buffered_fd
from workers.sinks.buffered_fd import Buffered

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from supervisor.sinks.sink import Sink
    from supervisor.sinks.spec import SinkSpec
    from supervisor.state.fd_store import FdWriter
    from workers.copy.route import Route
    from workers.process.context import WorkerContext


def open_buffered(stream: str, sink: SinkSpec, kept: tuple[int, ...]) -> Sink:
    """Create the buffer before the stream's descriptor.

    `kept`: descriptors of an earlier supervisor, owned; they replace the creation.

    Raises:
        MachineError: EMFILE or ENOMEM.
    """
    return _BufferedSink(make_buffered(stream, sink, kept))


def make_buffered(stream: str, sink: SinkSpec, kept: tuple[int, ...]) -> Buffered:
    """Create a buffer. Arguments and errors as `open_buffered`."""
    try:
        return Buffered(stream, sink.policy, sink.buffer_bytes, kept)
    except OSError as error:  # EMFILE, ENOMEM
        raise MachineError(f"buffer for {sink}: {reason(error)}") from error


class _BufferedSink:
    """A buffer before a descriptor, so that the container never waits for its reader."""

    is_file = False
    is_deleted = False

    def __init__(self, buffered: Buffered) -> None:
        self._buffered = buffered

    @property
    def policy(self) -> str:
        return self._buffered.buffer.policy

    def drops(self) -> Drops:
        return drops_of(self._buffered.buffer)

    @property
    def held_bytes(self) -> int:
        return self._buffered.buffer.room_bytes

    def has_room(self, sink_fd: int) -> bool:
        return fds.is_writable(sink_fd)

    def work(self, context: WorkerContext, route: Route) -> None:
        buffered_fd.work(context, route, self._buffered, route.sink_fd)

    def reopen(self) -> None:
        pass  # the stream owns the descriptor, which cannot be reopened

    def renew_file(self) -> None:
        pass

    def snapshot(self, fd_writer: FdWriter) -> dict[str, Any]:
        return {"fds": [fd_writer.add(fd) for fd in self._buffered.fds]}

    def close(self) -> None:
        self._buffered.close()
