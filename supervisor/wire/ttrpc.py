"""ttrpc connections: unary calls over a non-blocking socket, driven by an event loop.

`ServerConnection` hands each request to a callback and takes the answers in any order, at any time.
`ClientConnection` sends requests and calls back with the answers. Both own their socket. Neither
waits: what a socket does not take at once is buffered up to a limit, and a peer that reads nothing
loses its connection.

What both ends have in common is in `supervisor.wire.connection`, the pure part in
`supervisor.wire.frames`.
"""

from __future__ import annotations

import socket
from contextlib import suppress

from supervisor.wire import messages
from supervisor.wire.connection import READ_BYTES as READ_BYTES
from supervisor.wire.connection import Connection
from supervisor.wire.frames import (
    MAX_DATA_BYTES,
    REQUEST,
    RESPONSE,
    Frame,
    FrameParser,
    decode_response,
    encode_refusal,
    encode_request,
    encode_response,
    frame_bytes,
)
from supervisor.wire.frames import Code as Code
from supervisor.wire.protobuf import WireError, decode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from supervisor.wire.call_journal import CallJournal
    from supervisor.wire.connection import Loop

    OnRequest = Callable[["ServerConnection", int, str, str, bytes, int], None]
    OnAnswer = Callable[[int, str, bytes], None]

MAX_OPEN_CALLS = 1 << 16
"""Of one connection. The waits are open as long as their processes live."""

_PEEK = socket.MSG_PEEK | socket.MSG_DONTWAIT

_EMPTY = {
    "unparsed": "", "skip_bytes": 0, "unsent": "", "cut_bytes": 0, "calls": (), "received": "",
}  # fmt: skip


class ServerConnection(Connection):
    """One accepted connection.

    `on_request` gets the connection, stream id, service, method, payload and time-out (ns, 0 is
    none, a hint). Each request is answered exactly once, by `respond` or `refuse`, at any time.
    Answers on a lost connection are dropped.

    With a journal the connection survives a kill -9 of this process, if another one holds socket
    and journal: bytes are noted before they are taken from the socket, and a call until its answer
    is sent. The successor's `calls` has each of them; a request that came last is handed to its
    `on_request`, perhaps for the second time. Some calls may be answered already: the client drops
    a second answer. An answer of more than 32 KiB that was cut by the kill breaks the connection.

    Attributes:
        calls: Service and method of each call that is not answered yet, by stream id.
        journal: Owned, or None.
        number: Its name among the connections of its server.
    """

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        *,
        on_request: OnRequest,
        on_closed: Callable[[ServerConnection, str], None],
        restored: Mapping[str, Any] | None = None,
        journal: CallJournal | None = None,
        number: int = 0,
    ) -> None:
        """Take ownership of the socket and the journal.

        `restored` is what `snapshot` has returned, or what the journal of the dead process says.

        `on_closed` gets the reason. It is called when the peer has closed the connection, has
        broken the protocol or reads nothing; not by `close`.
        """
        state = {**_EMPTY, **(restored or {})}
        self.calls = {stream_id: (service, method) for stream_id, service, method in state["calls"]}
        self._on_request = on_request
        self._on_closed = on_closed
        parser = FrameParser(bytes.fromhex(state["unparsed"]), state["skip_bytes"])
        self.journal = journal
        self.number = number
        self._cut_bytes = state["cut_bytes"]
        self._inherited = bytes.fromhex(state["received"])
        self._reading: dict[str, Any] = {}
        self._is_serving_again = False
        super().__init__(loop, sock, parser, bytes.fromhex(state["unsent"]))

    def look_back(self) -> None:
        """Note in `calls` what the dead process was reading, unless the socket still has it.

        Called once after the construction from a journal, before the loop runs.
        """
        try:
            if self.sock.recv(len(self._inherited), _PEEK) == self._inherited:
                self._inherited = b""
        except OSError:
            pass  # nothing is there
        if self._inherited:  # a note that comes earlier than `take_over` must not lose it
            self._reading = {**self._parser_state(), "received": self._inherited.hex()}
        parser = FrameParser(bytes(self._parser.unparsed), self._parser.skip_bytes)
        for frame in parser.feed(self._inherited):
            if frame.kind == REQUEST and not frame.too_long:
                with suppress(WireError):
                    request = decode(messages.Request, frame.data)
                    self.calls[frame.stream_id] = (request["service"], request["method"])

    def take_over(self) -> None:
        """Serve what the dead process was reading; after `look_back`, before the loop runs."""
        received, self._inherited = self._inherited, b""
        if received:
            self._is_serving_again = True
            self._serve_frames(received)
            self._is_serving_again = False

    def _receive(self) -> bytes:
        if self.journal is None:
            return super()._receive()
        data = self.sock.recv(READ_BYTES, _PEEK)
        self._reading = {**self._parser_state(), "received": data.hex()}
        self._note()
        return self.sock.recv(len(data)) if data else b""

    def _serve_frames(self, data: bytes) -> None:
        super()._serve_frames(data)
        self._reading = {}
        self._note()

    def _note(self) -> None:
        # While frames are served the record has the bytes that they came in: a kill loses none.
        if self.journal is not None and self.is_open:
            self.journal.write({**self.snapshot(), **self._reading})

    def _write(self) -> None:
        wanted = len(self.unsent) - self._next_bytes()
        before = len(self.unsent)
        super()._write()
        if self.is_open and len(self.unsent) < before:
            self._cut_bytes = len(self.unsent) - wanted
            self._note()

    def _next_bytes(self) -> int:
        # One frame a call: the kernel takes up to 32 KiB whole or not at all.
        return self._cut_bytes or frame_bytes(self.unsent)

    def _parser_state(self) -> dict[str, Any]:
        return {
            "unparsed": self._parser.unparsed.hex(),
            "skip_bytes": self._parser.skip_bytes,
        }

    def snapshot(self) -> dict[str, Any]:
        """Return all but the socket, in values that JSON has."""
        return {
            **self._parser_state(),
            "unsent": self.unsent.hex(),
            "cut_bytes": self._cut_bytes,
            "calls": [[stream_id, *names] for stream_id, names in self.calls.items()],
        }

    def respond(self, stream_id: int, payload: bytes) -> None:
        """Answer a request.

        Raises:
            KeyError: No request with this stream id is open.
        """
        if self.is_open:
            del self.calls[stream_id]
            try:
                frame = encode_response(stream_id, payload)
            except WireError as error:  # too long: containerd must not get it
                frame = encode_refusal(stream_id, Code.RESOURCE_EXHAUSTED, str(error))
            self._send(frame)

    def refuse(self, stream_id: int, code: Code, message: str) -> None:
        """Answer a request with an error.

        Raises:
            KeyError: No request with this stream id is open.
        """
        if self.is_open:
            del self.calls[stream_id]
            self._send(encode_refusal(stream_id, code, message))

    def _on_frame(self, frame: Frame) -> None:
        if frame.kind != REQUEST:
            return  # frames of streams, which no method of ours opens
        stream_id = frame.stream_id
        if stream_id in self.calls and not self._is_serving_again:
            # Either answer would be taken for the other's.
            self._lose(f"the peer has used stream id {stream_id} twice")
            return
        is_full = len(self.calls) >= MAX_OPEN_CALLS
        self.calls[stream_id] = ("", "")
        if stream_id % 2 != 1:
            words = f"stream id {stream_id}: a client's is odd"
            self.refuse(stream_id, Code.INVALID_ARGUMENT, words)
        elif frame.too_long:
            words = f"a message of {frame.too_long} bytes, more than {MAX_DATA_BYTES}"
            self.refuse(stream_id, Code.RESOURCE_EXHAUSTED, words)
        elif is_full:
            words = f"{MAX_OPEN_CALLS} calls are open on this connection"
            self.refuse(stream_id, Code.RESOURCE_EXHAUSTED, words)
        else:
            self._serve(stream_id, frame.data)

    def _serve(self, stream_id: int, data: bytes) -> None:
        try:
            request = decode(messages.Request, data)
        except WireError as error:
            self.refuse(stream_id, Code.INVALID_ARGUMENT, str(error))
            return
        service, method = request["service"], request["method"]
        self.calls[stream_id] = (service, method)
        timeout_ns = max(0, request["timeout_nano"])
        self._on_request(self, stream_id, service, method, request["payload"], timeout_ns)

    def _lose(self, why: str) -> None:
        self.close()
        self._on_closed(self, why)

    def close(self) -> None:
        """Close the socket and the journal, forget the calls; a second call does nothing."""
        super().close()
        self.calls.clear()
        if self.journal is not None:
            self.journal.close()


class ClientConnection(Connection):
    """A connection to a server, with any number of calls under way."""

    def __init__(self, loop: Loop, sock: socket.socket, on_closed: Callable[[str], None]) -> None:
        """Take ownership of a connected socket.

        `on_closed` gets the reason when the connection is lost; not by `close`. The callbacks of
        the calls under way are not called then.
        """
        super().__init__(loop, sock, FrameParser())
        self._on_closed = on_closed
        self._next_id = 1
        self._calls: dict[int, OnAnswer] = {}

    def call(
        self,
        service: str,
        method: str,
        payload: bytes,
        on_answer: OnAnswer,
        *,
        timeout_ns: int = 0,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Send a request; `on_answer` gets the code (0 is OK), the message and the payload.

        Raises:
            WireError: The request has more than 4 MiB.
        """
        stream_id = self._next_id
        frame = encode_request(
            stream_id, service, method, payload, timeout_ns=timeout_ns, metadata=metadata
        )
        self._next_id += 2
        self._calls[stream_id] = on_answer
        self._send(frame)

    def _on_frame(self, frame: Frame) -> None:
        on_answer = self._calls.pop(frame.stream_id, None) if frame.kind == RESPONSE else None
        if on_answer is None:
            return
        if frame.too_long:
            on_answer(Code.RESOURCE_EXHAUSTED, f"an answer of {frame.too_long} bytes", b"")
            return
        try:
            code, message, payload = decode_response(frame.data)
        except WireError as error:
            self._lose(str(error))
            return
        on_answer(code, message, payload)

    def _lose(self, why: str) -> None:
        self.close()
        self._on_closed(why)
