"""Rounds of malformed input for `supervisor.wire`; each round is its seed."""

from __future__ import annotations

import socket
import struct
from random import Random
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError

from supervisor.linux.event_loop import Loop
from supervisor.wire import frames, messages
from supervisor.wire.frames import Code, FrameParser
from supervisor.wire.protobuf import MessageType, WireError, decode
from supervisor.wire.ttrpc import ServerConnection
from tests.harness.containerd_contract import google_classes
from tests.harness.wire_mutants import TABLES, almost_message

if TYPE_CHECKING:
    from typing import Any

_GOOGLE = google_classes()
_NAMES = sorted(TABLES)
_MOST_BYTES = frames.MAX_DATA_BYTES + (1 << 17)


def decode_round(seed: int) -> None:
    """Decode bytes that may be a message: a dict or a WireError, and the same as google's library.

    Where both accept the bytes, the values are the same. What google's library accepts, we accept.
    """
    random = Random(seed)
    table = TABLES[random.choice(_NAMES)]
    data = almost_message(table, random)
    try:
        values = decode(table, data)
    except WireError as error:
        if "field number 0" in str(error):
            return  # the Python library lets it pass; the encoding has no such field
        values = None
    try:
        theirs = _GOOGLE[table.name].FromString(data)
    except DecodeError:
        return
    assert values is not None, f"google reads {table.name} {data!r}"
    assert _from_google(theirs, table) == values, f"{table.name} {data!r}"


def _from_google(message: Any, table: MessageType) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, field in table.by_name.items():
        value = getattr(message, name)
        kind = field.kind
        if not isinstance(kind, MessageType):
            if field.repeated:
                value = list(value)
            elif kind == "map<string, string>":
                value = dict(value)
        elif field.repeated:
            value = [_from_google(each, kind) for each in value]
        else:
            value = _from_google(value, kind) if message.HasField(name) else None
        values[name] = value
    return values


class ServerRounds:
    """A server connection at a time, fed with frames that are almost right."""

    def __init__(self) -> None:
        self.loop = Loop()

    def close(self) -> None:
        """Close the loop."""
        self.loop.close()

    def run(self, seed: int) -> None:
        """Send frames; if their headers are right, a good request at the end is answered."""
        random = Random(seed)
        sock, client = socket.socketpair()
        client.settimeout(30)
        open_ids: list[int] = []
        lost: list[str] = []

        def on_request(
            connection: ServerConnection, stream_id: int, service: str, method: str, *rest: Any
        ) -> None:
            assert isinstance(rest[0], bytes)
            if (service, method) == ("last", "Request") or random.random() < 0.5:
                connection.respond(stream_id, b"answer")
            elif random.random() < 0.5:
                connection.refuse(stream_id, Code.NOT_FOUND, "x: not found")
            else:
                open_ids.append(stream_id)

        server = ServerConnection(
            self.loop,
            sock,
            on_request=on_request,
            on_closed=lambda _connection, why: lost.append(why),
        )
        is_broken = random.random() < 0.3
        stream_id = 1
        try:
            for _ in range(random.randint(0, 12)):
                data = self._almost_frame(stream_id, random, is_broken=is_broken)
                stream_id += 2
                self._feed(server, client, data, random)
                if not server.is_open:
                    break
                held = server.snapshot()
                assert len(held["unparsed"]) // 2 <= _MOST_BYTES
                assert len(held["calls"]) <= stream_id
            if not is_broken:
                assert not lost, lost
                last = frames.encode_request(stream_id, "last", "Request", b"")
                self._feed(server, client, last, random)
                assert stream_id in self._answers(client)
        finally:
            server.close()
            client.close()
        assert not self.loop.watches

    def _almost_frame(self, stream_id: int, random: Random, *, is_broken: bool) -> bytes:
        data = almost_message(messages.Request, random)
        if is_broken and random.random() < 0.4:
            return random.randbytes(random.choice((1, 9, 10, 11, 400)))
        if random.random() < 0.03:  # too long
            length = (4 << 20) + random.randint(1, 4000)
            return struct.pack(">IIBB", length, stream_id, 1, 0) + bytes(length)
        kind = random.choice((1, 1, 1, 1, 1, 2, 3, 0, 255))
        if random.random() < 0.1:
            stream_id -= 1  # even: no client's
        return frames.encode_frame(stream_id, kind, data, random.randrange(256))

    def _feed(
        self, server: ServerConnection, client: socket.socket, data: bytes, random: Random
    ) -> None:
        at = 0
        size = random.choice((1, 7, 10, 4096, 100_000)) if len(data) < 10_000 else 100_000
        while at < len(data):
            if not server.is_open:
                return
            at += client.send(data[at : at + size])
            while self._is_unread(server):
                self.loop.run_until(_OneRound())

    @staticmethod
    def _is_unread(server: ServerConnection) -> bool:
        try:
            return server.is_open and bool(server.sock.recv(1, socket.MSG_PEEK))
        except BlockingIOError:
            return False

    @staticmethod
    def _answers(client: socket.socket) -> set[int]:
        parser = FrameParser()
        found: set[int] = set()
        client.setblocking(False)
        try:
            while data := client.recv(1 << 16):
                for frame in parser.feed(data):
                    frames.decode_response(frame.data)
                    found.add(frame.stream_id)
        except BlockingIOError:
            pass
        return found


class _OneRound:
    """Ends `run_until` after one round."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self) -> bool:
        self.asked += 1
        return self.asked > 1
