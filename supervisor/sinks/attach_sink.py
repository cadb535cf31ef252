"""The sink `attach`: packets of one output to its attach clients, over SEQPACKET sockets."""

from __future__ import annotations

from supervisor.linux import fds
from supervisor.linux.errors import MachineError, reason
from supervisor.sinks.sink import Drops
from workers.common.policy import BLOCK
from workers.common.ring import RING_BYTES, Ring
from workers.copy import packet_hub

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from supervisor.state.fd_store import FdWriter
    from workers.copy.packet_hub import HubClient
    from workers.copy.route import Route
    from workers.process.context import WorkerContext

_STDOUT, _STDERR = 2, 3
"""First byte of a packet; a console is stdout. Source: conmon's attach protocol."""


class AttachSink:
    """A ring of packets and the present clients. Owns the ring; borrows the sockets.

    Attributes:
        ring: Shared memory that each worker maps.
        clients: The next worker gets them; `io.attach.packet_clients` assigns them.
    """

    is_file = False
    is_deleted = False
    policy = BLOCK

    def __init__(self, stream: str, kept: Sequence[int] = ()) -> None:
        """Make the ring of an output or its branch. `kept`: descriptors of an earlier supervisor.

        Raises:
            MachineError: EMFILE, ENOMEM.
        """
        kind = _STDERR if stream.startswith("stderr") else _STDOUT
        try:
            self.ring = Ring(kind, fd=kept[0] if kept else -1)
        except OSError as error:
            raise MachineError(f"shared memory for attach clients: {reason(error)}") from error
        self.clients: Sequence[HubClient] = ()

    def drops(self) -> Drops:
        """Return 0: only clients skip bytes, and each skips its own."""
        return Drops(0, 0)

    @property
    def held_bytes(self) -> int:
        """The size of the ring."""
        return RING_BYTES

    def has_room(self, _sink_fd: int) -> bool:
        """Return whether a client could take a packet. True without clients: it is discarded."""
        return not self.clients or any(fds.is_writable(client.fd) for client in self.clients)

    def work(self, context: WorkerContext, route: Route) -> None:
        """Run a worker to its report. Called in the child."""
        packet_hub.work(context, route, self.ring, self.clients)

    def reopen(self) -> None:
        """Do nothing: a client that has left does not come back to its socket."""

    def renew_file(self) -> None:
        """Do nothing: there is no file."""

    def snapshot(self, fd_writer: FdWriter) -> dict[str, Any]:
        """Return the state for `open_sinks` of another supervisor."""
        return {"fds": [fd_writer.add(self.ring.fd)]}

    def close(self) -> None:
        """Close the ring."""
        self.ring.close()
