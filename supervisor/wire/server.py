"""A listening ttrpc socket and its connections."""

from __future__ import annotations

import errno
import os
import socket
import struct

from supervisor.wire.call_journal import CallJournal
from supervisor.wire.ttrpc import ServerConnection

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from supervisor.wire.connection import Loop
    from supervisor.wire.ttrpc import OnRequest

_ACCEPT_AGAIN_S = 1.0
_UCRED = struct.Struct("3i")
_NO_MEANS = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))


class Server:
    """Accepts connections of this process's own user and group. Owns the listener.

    Attributes:
        connections: Those that are open, oldest first.
    """

    def __init__(
        self,
        loop: Loop,
        listener: socket.socket,
        *,
        on_request: OnRequest,
        on_closed: Callable[[ServerConnection, str], None],
        log: Callable[[str], None],
        has_journals: bool = False,
        on_accepted: Callable[[int, tuple[int, ...]], None] = lambda _number, _fds: None,
    ) -> None:
        """Take ownership of a listening unix socket and accept from now on.

        `has_journals`: every connection has a `CallJournal`, so that it survives a kill -9.

        `on_accepted` is told of each new connection, by its number, before anything is read from
        it: first of its socket, then of that and its journal. With neither it was refused.

        `on_closed` is told of each connection that was lost, after it has left `connections`.
        """
        self.connections: list[ServerConnection] = []
        self._loop = loop
        self._listener = listener
        self._listener.setblocking(False)
        self._on_request = on_request
        self._tell_closed = on_closed
        self._log = log
        self._has_journals = has_journals
        self._tell_accepted = on_accepted
        self._next_number = 0
        self._again = loop.timer(self._watch)
        self._is_watched = False
        self._watch()

    def snapshot(self) -> list[dict[str, Any]]:
        """Return the snapshots of `connections`, in their order, without sockets and journals."""
        return [{"number": each.number, **each.snapshot()} for each in self.connections]

    def restore(
        self,
        socks: Sequence[socket.socket],
        snapshots: Sequence[Mapping[str, Any]],
        journals: Sequence[CallJournal] = (),
    ) -> None:
        """Take over the sockets, and the journals if any, of the snapshots, in the same order."""
        for index, (sock, state) in enumerate(zip(socks, snapshots, strict=True)):
            journal = journals[index] if journals else None
            self._add(sock, state, journal, number=state["number"])

    def take_over(
        self,
        numbers: Sequence[int],
        socks: Sequence[socket.socket],
        journals: Sequence[CallJournal],
    ) -> None:
        """Go on with the connections of a dead process, and own them; before the loop runs.

        What it had read is in the `calls` of each connection. `serve_again` has to follow.
        """
        for number, sock, journal in zip(numbers, socks, journals, strict=True):
            self._add(sock, journal.read(), journal, number=number).look_back()

    def serve_again(self) -> None:
        """Hand the requests that the dead process was reading to `on_request`, maybe again."""
        for connection in [*self.connections]:
            connection.take_over()

    def stop_listening(self) -> None:
        """Close the listener; the connections stay. A second call does nothing."""
        self._again.cancel()
        if self._is_watched:
            self._is_watched = False
            self._loop.forget(self._listener.fileno())
        self._listener.close()

    def close(self) -> None:
        """Close the listener and every connection. A second call does nothing."""
        self.stop_listening()
        for connection in self.connections:
            connection.close()
        self.connections.clear()

    def _watch(self) -> None:
        self._is_watched = True
        self._loop.watch(self._listener.fileno(), self._accept)

    def _accept(self) -> None:
        try:
            sock, _address = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return  # the client has gone meanwhile
        except OSError as error:
            if error.errno not in _NO_MEANS:
                raise
            # The listener stays readable: to go on watching it would be a busy loop.
            self._log(f"accept: {error.strerror}; trying again in {_ACCEPT_AGAIN_S:.0f} s")
            self._is_watched = False
            self._loop.forget(self._listener.fileno())
            self._again.start(_ACCEPT_AGAIN_S)
            return
        pid, uid, gid = _UCRED.unpack(
            sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        )
        if (uid, gid) != (os.geteuid(), os.getegid()):
            self._log(f"refused a connection of process {pid}: user {uid}, group {gid}")
            sock.close()
            return
        number = self._next_number
        self._tell_accepted(number, (sock.fileno(),))
        try:
            journal = CallJournal.create() if self._has_journals else None
        except OSError as error:
            self._log(f"refused a connection of process {pid}: its journal: {error.strerror}")
            self._tell_accepted(number, ())
            sock.close()
            return
        if journal is not None:
            self._tell_accepted(number, (sock.fileno(), journal.fileno()))
        self._add(sock, None, journal, number=number)

    def _add(
        self,
        sock: socket.socket,
        state: Mapping[str, Any] | None,
        journal: CallJournal | None = None,
        *,
        number: int,
    ) -> ServerConnection:
        self._next_number = max(self._next_number, number + 1)
        connection = ServerConnection(
            self._loop,
            sock,
            on_request=self._on_request,
            on_closed=self._on_closed,
            restored=state,
            journal=journal,
            number=number,
        )
        self.connections.append(connection)
        return connection

    def _on_closed(self, connection: ServerConnection, why: str) -> None:
        self.connections.remove(connection)
        self._tell_closed(connection, why)
