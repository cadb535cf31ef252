"""ttrpc connections: unary calls over a non-blocking socket, driven by an event loop.

`ServerConnection` hands each request to a callback and takes the answers in any order, at any time.
`ClientConnection` sends requests and calls back with the answers. Both own their socket. Neither
waits: what a socket does not take at once is buffered up to a limit, and a peer that reads nothing
loses its connection.

The loop is borrowed; it is anything with the methods of `Loop` below. The pure part is
`supervisor.wire.frames`.
"""

from __future__ import annotations

import select

from supervisor.wire import messages
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
)
from supervisor.wire.frames import Code as Code
from supervisor.wire.protobuf import WireError, decode

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Mapping
    from typing import Any, Protocol

    class Timer(Protocol):
        """A deadline; it does not run before its `start`."""

        def start(self, delay_s: float) -> None:
            """Call back once, `delay_s` from now."""

        def cancel(self) -> None:
            """Stop the timer, if it is running."""

    class Loop(Protocol):
        """What a connection needs of an event loop."""

        def watch(self, fd: int, callback: Callable[[], None]) -> None:
            """Call back whenever `fd` is readable."""

        def forget(self, fd: int) -> None:
            """Stop watching `fd`."""

        def timer(self, callback: Callable[[], None]) -> Timer:
            """Return a timer."""

    OnRequest = Callable[["ServerConnection", int, str, str, bytes, int], None]
    OnAnswer = Callable[[int, str, bytes], None]

MAX_UNSENT_BYTES = 4 << 20
"""A peer that leaves more than this unread loses its connection at the next message."""

MAX_OPEN_CALLS = 1 << 16
"""Of one connection. The waits are open as long as their processes live."""

_READ_BYTES = 1 << 16


class _Connection:
    """What both ends have: a socket, a parser and a buffer of unsent bytes.

    Attributes:
        sock: Owned.
        is_open: False after `close`, or when the peer has gone.
        unsent: What the socket has not taken yet.
    """

    def __init__(
        self, loop: Loop, sock: socket.socket, parser: FrameParser, unsent: bytes = b""
    ) -> None:
        self.sock = sock
        self.sock.setblocking(False)
        self.is_open = True
        self.unsent = bytearray(unsent)
        self._loop = loop
        self._parser = parser
        self._writable: select.epoll | None = None
        loop.watch(sock.fileno(), self._read)
        if unsent:
            self._watch_writable()

    def close(self) -> None:
        """Close the socket; a second call does nothing. Unsent bytes are lost."""
        if not self.is_open:
            return
        self.is_open = False
        self._forget_writable()
        self._loop.forget(self.sock.fileno())
        self.sock.close()
        self.unsent.clear()

    def _on_frame(self, frame: Frame) -> None:
        raise NotImplementedError

    def _lose(self, why: str) -> None:
        """End the connection from this side or after the peer's end."""
        raise NotImplementedError

    def _read(self) -> None:
        try:
            data = self.sock.recv(_READ_BYTES)
        except BlockingIOError:
            return  # a stale event of the loop
        except OSError as error:
            self._lose(f"read: {error.strerror}")
            return
        if not data:
            self._lose("the peer has closed the connection")
            return
        for frame in self._parser.feed(data):
            if self.is_open:
                self._on_frame(frame)

    def _send(self, data: bytes) -> None:
        if len(self.unsent) > MAX_UNSENT_BYTES:
            self._lose(f"the peer has left {len(self.unsent)} bytes unread")
            return
        self.unsent += data
        if self._writable is None:
            self._write()

    def _write(self) -> None:
        try:
            sent = self.sock.send(self.unsent)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._lose(f"write: {error.strerror}")
            return
        del self.unsent[:sent]
        if not self.unsent:
            self._forget_writable()
        elif self._writable is None:
            self._watch_writable()

    def _watch_writable(self) -> None:
        # The loop waits for readable descriptors only. An epoll descriptor is readable when one of
        # its own events is there (epoll(7)), so this turns writable into readable.
        self._writable = select.epoll()
        self._writable.register(self.sock.fileno(), select.EPOLLOUT)
        self._loop.watch(self._writable.fileno(), self._write)

    def _forget_writable(self) -> None:
        if self._writable is not None:
            self._loop.forget(self._writable.fileno())
            self._writable.close()
            self._writable = None


class ServerConnection(_Connection):
    """One accepted connection.

    `on_request` gets the connection, stream id, service, method, payload and time-out (ns, 0 is
    none, a hint). Each request is answered exactly once, by `respond` or `refuse`, at any time.
    Answers on a lost connection are dropped.

    Attributes:
        calls: Service and method of each call that is not answered yet, by stream id.
    """

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        *,
        on_request: OnRequest,
        on_closed: Callable[[ServerConnection, str], None],
        restored: Mapping[str, Any] | None = None,
    ) -> None:
        """Take ownership of the socket; `restored` is what `snapshot` has returned.

        `on_closed` gets the reason. It is called when the peer has closed the connection, has
        broken the protocol or reads nothing; not by `close`.
        """
        state = restored or {"unparsed": "", "skip_bytes": 0, "unsent": "", "calls": []}
        self.calls = {stream_id: (service, method) for stream_id, service, method in state["calls"]}
        self._on_request = on_request
        self._on_closed = on_closed
        parser = FrameParser(bytes.fromhex(state["unparsed"]), state["skip_bytes"])
        super().__init__(loop, sock, parser, bytes.fromhex(state["unsent"]))

    def snapshot(self) -> dict[str, Any]:
        """Return all but the socket, in values that JSON has."""
        return {
            "unparsed": self._parser.unparsed.hex(),
            "skip_bytes": self._parser.skip_bytes,
            "unsent": self.unsent.hex(),
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
        if stream_id in self.calls:
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
        """Close the socket, forget the calls; a second call does nothing."""
        super().close()
        self.calls.clear()


class ClientConnection(_Connection):
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
