"""One request of a client that is still to be answered."""

from __future__ import annotations

from supervisor.wire.frames import Code
from supervisor.wire.messages import TASK_METHODS
from supervisor.wire.protobuf import encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

    from supervisor.wire.ttrpc import ServerConnection


class Call:
    """Is answered once, by `answer` or `refuse`. Borrows the connection, which may be lost."""

    def __init__(self, connection: ServerConnection, stream_id: int, method: str) -> None:
        """Note what is asked."""
        self.connection = connection
        self._stream_id = stream_id
        self._method = method

    @property
    def key(self) -> tuple[int, int]:
        """The numbers of the connection and of its stream: no two open calls have the same."""
        return self.connection.number, self._stream_id

    def snapshot(self) -> list[Any]:
        """Return what `restore` needs, in values that JSON has; the connection by its number."""
        return [*self.key, self._method]

    def answer(self, values: Mapping[str, Any] | None = None) -> None:
        """Send the method's response."""
        response = TASK_METHODS[self._method][1]
        self.connection.respond(self._stream_id, encode(response, values or {}))

    def finish(self, error: str) -> None:
        """Answer without values, or with an error that has no code of its own."""
        if error:
            self.refuse(Code.UNKNOWN, f"{error}: unknown")
        else:
            self.answer()

    def refuse(self, code: int, message: str) -> None:
        """Send an error; `message` ends as containerd's errdefs do."""
        self.connection.refuse(self._stream_id, Code(code), message)


def restore(
    packed: Iterable[Sequence[Any]], connections: Mapping[int, ServerConnection]
) -> list[Call]:
    """Return the calls of an earlier program that are not answered, from their snapshots.

    `connections`: by their numbers; one that was lost is not there.
    """
    return [
        Call(connections[number], stream_id, method)
        for number, stream_id, method in packed
        if number in connections and stream_id in connections[number].calls
    ]
