"""ttrpc connections over real sockets, in the supervisor's loop."""

from __future__ import annotations

import errno
import json
import os
import resource
import socket
import struct
import subprocess
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from supervisor.linux.event_loop import Loop
from supervisor.wire import frames
from supervisor.wire.call_journal import CallJournal
from supervisor.wire.connection import MAX_UNSENT_BYTES
from supervisor.wire.frames import Code, FrameParser
from supervisor.wire.server import Server
from supervisor.wire.ttrpc import ClientConnection, ServerConnection

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.process

MOST = 4 << 20


class Ends:
    """A server connection, the client's bare socket, and what the server has been told."""

    def __init__(self) -> None:
        self.loop = Loop()
        sock, self.client = socket.socketpair()
        self.client.settimeout(30)
        self.requests: list[tuple[int, str, str, bytes, int]] = []
        self.closed: list[str] = []
        self.server = self.serve(sock)
        self.parser = FrameParser()
        self.answers: list[tuple[int, int, str, bytes]] = []

    def serve(
        self, sock: socket.socket, restored: dict[str, object] | None = None
    ) -> ServerConnection:
        return ServerConnection(
            self.loop,
            sock,
            on_request=lambda _connection, *request: self.requests.append(request),
            on_closed=lambda _connection, why: self.closed.append(why),
            restored=restored,
        )

    def until(self, is_over: Callable[[], bool]) -> None:
        self.loop.run_until(is_over)

    def ask(self, stream_id: int, *, method: str = "M", payload: bytes = b"") -> None:
        self.client.sendall(frames.encode_request(stream_id, "s.S", method, payload))

    def read_answer(self) -> tuple[int, int, str, bytes]:
        """Return stream id, code, message and payload of the next answer."""
        while not self.answers:
            data = self.client.recv(1 << 16)
            assert data, "end of file"
            for frame in self.parser.feed(data):
                assert frame.kind == frames.RESPONSE
                self.answers.append((frame.stream_id, *frames.decode_response(frame.data)))
        return self.answers.pop(0)

    def close(self) -> None:
        self.server.close()
        self.client.close()
        self.loop.close()


@contextmanager
def beside(work: Callable[[], None]) -> Iterator[None]:
    """Do the client's part in a thread: it waits for the server."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    yield
    thread.join(35)
    assert not thread.is_alive()


@pytest.fixture
def ends() -> Iterator[Ends]:
    made = Ends()
    yield made
    made.close()


def test_requests_are_answered_in_any_order(ends: Ends) -> None:
    ends.client.sendall(
        frames.encode_request(1, "s.S", "Wait", b"a", timeout_ns=7)
        + frames.encode_request(3, "s.S", "State", b"b")
    )
    ends.until(lambda: len(ends.requests) == 2)
    assert ends.requests == [(1, "s.S", "Wait", b"a", 7), (3, "s.S", "State", b"b", 0)]
    assert ends.server.calls == {1: ("s.S", "Wait"), 3: ("s.S", "State")}
    ends.server.refuse(3, Code.NOT_FOUND, "no such container: not found")
    ends.server.respond(1, b"done")
    assert ends.read_answer() == (3, 5, "no such container: not found", b"")
    assert ends.read_answer() == (1, 0, "", b"done")
    assert not ends.server.calls
    with pytest.raises(KeyError):
        ends.server.respond(1, b"twice")


def test_a_request_that_is_too_long_is_refused_and_the_connection_goes_on(ends: Ends) -> None:
    data = struct.pack(">IIBB", MOST + 1, 5, 1, 0) + bytes(MOST + 1)
    with beside(lambda: ends.client.sendall(data + frames.encode_request(7, "s.S", "M", b""))):
        ends.until(lambda: bool(ends.requests))
    assert ends.requests == [(7, "s.S", "M", b"", 0)]
    stream_id, code, message, _payload = ends.read_answer()
    assert (stream_id, code) == (5, Code.RESOURCE_EXHAUSTED)
    assert message == "a message of 4194305 bytes, more than 4194304"


def test_an_answer_that_is_too_long_is_refused(ends: Ends) -> None:
    ends.ask(1)
    ends.until(lambda: bool(ends.requests))
    ends.server.respond(1, bytes(MOST))
    assert ends.read_answer()[:2] == (1, Code.RESOURCE_EXHAUSTED)


@pytest.mark.parametrize(
    ("data", "code", "words"),
    [
        (frames.encode_frame(2, 1, b""), 3, "stream id 2: a client's is odd"),
        (frames.encode_frame(1, 1, b"\xff"), 3, "ttrpc.Request: byte 1: truncated varint"),
    ],
)
def test_a_bad_request_is_refused_and_the_connection_goes_on(
    ends: Ends, data: bytes, code: int, words: str
) -> None:
    ends.client.sendall(data)
    ends.ask(9)
    ends.until(lambda: bool(ends.requests))
    assert ends.read_answer()[1:3] == (code, words)
    assert not ends.closed


def test_frames_of_streams_and_responses_are_ignored(ends: Ends) -> None:
    ends.client.sendall(frames.encode_frame(1, 3, b"x") + frames.encode_frame(1, 2, b"x"))
    ends.ask(1)
    ends.until(lambda: bool(ends.requests))
    assert len(ends.requests) == 1


def test_a_stream_id_that_is_open_twice_ends_the_connection(ends: Ends) -> None:
    ends.ask(1)
    ends.ask(1)
    ends.ask(3)
    ends.until(lambda: bool(ends.closed))
    assert ends.closed == ["the peer has used stream id 1 twice"]
    assert len(ends.requests) == 1
    ends.server.respond(1, b"")  # dropped
    assert ends.client.recv(1) == b""


def test_a_client_that_goes_is_told_once(ends: Ends) -> None:
    ends.ask(1)
    ends.until(lambda: bool(ends.requests))
    ends.client.close()
    ends.until(lambda: bool(ends.closed))
    assert ends.closed == ["the peer has closed the connection"]
    assert not ends.server.is_open
    assert not ends.server.calls
    ends.server.respond(1, b"")
    ends.server.close()


def test_what_the_socket_does_not_take_waits_and_does_not_block(ends: Ends) -> None:
    sent = [bytes([stream_id]) * 300_000 for stream_id in range(1, 22, 2)]
    for stream_id in range(1, 22, 2):
        ends.ask(stream_id)
    ends.until(lambda: len(ends.requests) == len(sent))
    for payload in sent:
        ends.server.respond(payload[0], payload)
    assert ends.server.unsent
    got: list[tuple[int, int, str, bytes]] = []
    with beside(lambda: got.extend(ends.read_answer() for _each in sent)):
        ends.until(lambda: not ends.server.unsent)
    assert got == [(payload[0], 0, "", payload) for payload in sent]
    assert set(ends.loop.watches) == {ends.server.sock.fileno()}  # none for writing is left


def test_a_client_that_reads_nothing_loses_its_connection(ends: Ends) -> None:
    for stream_id in range(1, 10, 2):
        ends.ask(stream_id)
    ends.until(lambda: len(ends.requests) == 5)
    for stream_id in range(1, 10, 2):
        ends.server.respond(stream_id, bytes(MOST // 2))
        assert len(ends.server.unsent) <= MAX_UNSENT_BYTES + MOST
    [words] = ends.closed
    assert "bytes unread" in words
    assert not ends.server.is_open
    assert not ends.loop.watches


def test_a_connection_goes_on_from_its_snapshot(ends: Ends) -> None:
    """Open calls, half of a request and an answer that was not taken carry over."""
    ends.ask(1, method="Wait")
    ends.ask(3)
    half = frames.encode_request(5, "s.S", "Kill", b"k" * 100)
    ends.client.sendall(half[:50])
    ends.until(lambda: bool(ends.server.snapshot()["unparsed"]))
    ends.server.respond(3, bytes(1 << 20))
    state = json.loads(json.dumps(ends.server.snapshot()))
    assert state["calls"] == [[1, "s.S", "Wait"]]
    sock = socket.socket(fileno=os.dup(ends.server.sock.fileno()))
    ends.server.close()
    ends.server = ends.serve(sock, state)
    ends.client.sendall(half[50:])
    got: list[tuple[int, int, str, bytes]] = []
    with beside(lambda: got.append(ends.read_answer())):
        ends.until(lambda: len(ends.requests) == 3 and not ends.server.unsent)
    assert got == [(3, 0, "", bytes(1 << 20))]
    assert ends.requests[-1] == (5, "s.S", "Kill", b"k" * 100, 0)
    ends.server.respond(1, b"end")
    assert ends.read_answer() == (1, 0, "", b"end")


def test_a_client_gets_the_answers_of_its_calls() -> None:
    loop = Loop()
    sock, other = socket.socketpair()
    answers: list[tuple[str, int, str, bytes]] = []
    lost: list[str] = []

    def serve(server: ServerConnection, stream_id: int, *request: object) -> None:
        if request[1] == "Refuse":
            server.refuse(stream_id, Code.UNAVAILABLE, "no")
        elif request[1] == "Echo":
            server.respond(stream_id, b"echo")

    server = ServerConnection(loop, sock, on_request=serve, on_closed=lambda *_: None)
    client = ClientConnection(loop, other, lost.append)
    for method in ("Hang", "Echo", "Refuse"):
        client.call("s.S", method, b"", lambda *got, method=method: answers.append((method, *got)))
    loop.run_until(lambda: len(answers) == 2)
    assert answers == [("Echo", 0, "", b"echo"), ("Refuse", 14, "no", b"")]
    server.close()
    loop.run_until(lambda: bool(lost))
    assert lost == ["the peer has closed the connection"]
    client.close()
    loop.close()


class Listening:
    """A server at a path."""

    def __init__(self, path: Path, *, has_journals: bool = False) -> None:
        self.loop = Loop()
        self.path = str(path)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(self.path)
        listener.listen()
        self.closed: list[str] = []
        self.log: list[str] = []
        self.server = Server(
            self.loop,
            listener,
            on_request=self._answer,
            on_closed=lambda _connection, why: self.closed.append(why),
            log=self.log.append,
            has_journals=has_journals,
        )

    @staticmethod
    def _answer(connection: ServerConnection, stream_id: int, *request: object) -> None:
        if request[1] != "Hang":
            connection.respond(stream_id, b"ok")

    def connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(30)
        sock.connect(self.path)
        return sock


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[Listening]:
    made = Listening(tmp_path / "s")
    yield made
    made.server.close()
    made.server.close()
    made.loop.close()


def test_a_server_answers_each_of_its_connections(listening: Listening) -> None:
    clients = [listening.connect() for _each in range(3)]
    listening.loop.run_until(lambda: len(listening.server.connections) == 3)
    for client in clients:
        client.sendall(frames.encode_request(1, "s.S", "M", b""))
    clients[0].close()
    listening.loop.run_until(lambda: len(listening.closed) == 1)
    listening.server.stop_listening()
    for client in clients[1:]:
        assert client.recv(100).endswith(b"ok")
        client.close()
    listening.loop.run_until(lambda: not listening.server.connections)


_CONNECT = """
import socket, sys
client = socket.socket(socket.AF_UNIX)
client.connect(sys.argv[1])
sys.exit(len(client.recv(1)))
"""


def test_a_connection_of_another_group_is_refused(listening: Listening) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can take another group")
    # A process of its own: with a second thread, pytest's faulthandler, setegid(2) needs signal 33,
    # whose disposition other tests have reset.
    with subprocess.Popen(
        [sys.executable, "-ISc", _CONNECT, listening.path], group=4711, extra_groups=[]
    ) as client:
        listening.loop.run_until(lambda: bool(listening.log))
    assert client.returncode == 0
    assert listening.log == [f"refused a connection of process {client.pid}: user 0, group 4711"]
    assert not listening.server.connections


def test_a_server_without_descriptors_tries_again_and_does_not_spin(listening: Listening) -> None:
    client = listening.connect()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        listening.loop.run_until(lambda: bool(listening.log))
        assert not listening.loop.watches  # nothing calls back before the timer
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert listening.log == [f"accept: {os.strerror(errno.EMFILE)}; trying again in 1 s"]
    listening.loop.run_until(lambda: bool(listening.server.connections))
    client.close()


def test_connections_carry_over_to_another_server(listening: Listening, tmp_path: Path) -> None:
    client = listening.connect()
    client.sendall(frames.encode_request(1, "s.S", "M", b"")[:10])
    listening.loop.run_until(
        lambda: any(state["unparsed"] for state in listening.server.snapshot())
    )
    states = listening.server.snapshot()
    socks = [
        socket.socket(fileno=os.dup(connection.sock.fileno()))
        for connection in listening.server.connections
    ]
    other = Listening(tmp_path / "other")
    other.server.restore(socks, states)
    listening.server.close()
    client.sendall(frames.encode_request(1, "s.S", "M", b"")[10:])
    other.loop.run_until(lambda: not other.server.snapshot()[0]["unparsed"])
    client.settimeout(30)
    assert client.recv(100).endswith(b"ok")
    client.close()
    other.server.close()
    other.loop.close()


def test_a_server_takes_over_connections_by_their_journals(tmp_path: Path) -> None:
    dead = Listening(tmp_path / "dead", has_journals=True)
    client = dead.connect()
    client.sendall(frames.encode_request(1, "s.S", "Hang", b""))
    dead.loop.run_until(lambda: any(each.calls for each in dead.server.connections))
    [connection] = dead.server.connections
    assert connection.journal is not None
    journal = CallJournal(os.dup(connection.journal.fileno()))
    sock = connection.sock.dup()
    dead.server.close()
    dead.loop.close()
    other = Listening(tmp_path / "other")
    other.server.take_over([7], [sock], [journal])
    other.server.serve_again()
    [connection] = other.server.connections
    assert (connection.number, connection.calls) == (7, {1: ("s.S", "Hang")})
    connection.refuse(1, Code.UNAVAILABLE, "killed")
    assert frames.decode_response(FrameParser().feed(client.recv(100))[0].data)[0] == 14
    client.close()
    other.server.close()
    other.loop.close()
