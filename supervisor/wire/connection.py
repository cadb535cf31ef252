"""A non-blocking socket that frames come from and go to: what both ends of ttrpc have in common.

The loop is borrowed; it is anything with the methods of `Loop` below.
"""

from __future__ import annotations

import select
from abc import ABC, abstractmethod

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from typing import Protocol

    from supervisor.wire.frames import Frame, FrameParser

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


MAX_UNSENT_BYTES = 4 << 20
"""A peer that leaves more than this unread loses its connection at the next message."""

READ_BYTES = 1 << 16
_WRITE_BYTES = 1 << 18


class Connection(ABC):
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

    @abstractmethod
    def _on_frame(self, frame: Frame) -> None:
        """Take one whole frame."""

    @abstractmethod
    def _lose(self, why: str) -> None:
        """End the connection from this side or after the peer's end."""

    def _read(self) -> None:
        try:
            data = self._receive()
        except BlockingIOError:
            return  # a stale event of the loop
        except OSError as error:
            self._lose(f"read: {error.strerror}")
            return
        if not data:
            self._lose("the peer has closed the connection")
            return
        self._serve_frames(data)

    def _receive(self) -> bytes:
        return self.sock.recv(READ_BYTES)

    def _serve_frames(self, data: bytes) -> None:
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
            sent = self.sock.send(bytes(self.unsent[: self._next_bytes()]))
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

    def _next_bytes(self) -> int:
        """Return how much of `unsent` one call of send(2) may take."""
        return _WRITE_BYTES

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
