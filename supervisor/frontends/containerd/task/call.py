"""One request of a client that is still to be answered."""

from __future__ import annotations

from supervisor.wire.frames import Code
from supervisor.wire.messages import TASK_METHODS
from supervisor.wire.protobuf import encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from supervisor.wire.ttrpc import ServerConnection


class Call:
    """Is answered once, by `answer` or `refuse`. Borrows the connection, which may be lost."""

    def __init__(self, connection: ServerConnection, stream_id: int, method: str) -> None:
        """Note what is asked."""
        self.connection = connection
        self._stream_id = stream_id
        self._method = method

    def snapshot(self, connections: Sequence[ServerConnection]) -> list[Any]:
        """Return what `restore` needs, in values that JSON has; the connection by its index."""
        return [connections.index(self.connection), self._stream_id, self._method]

    @staticmethod
    def restore(packed: Sequence[Any], connections: Sequence[ServerConnection]) -> Call:
        """Return a call of an earlier program of this process."""
        index, stream_id, method = packed
        return Call(connections[index], stream_id, method)

    def answer(self, values: Mapping[str, Any] | None = None) -> None:
        """Send the method's response."""
        response = TASK_METHODS[self._method][1]
        self.connection.respond(self._stream_id, encode(response, values or {}))

    def refuse(self, code: int, message: str) -> None:
        """Send an error; `message` ends as containerd's errdefs do."""
        self.connection.refuse(self._stream_id, Code(code), message)
