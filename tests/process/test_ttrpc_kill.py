"""A server killed with SIGKILL at any of its calls into C: no client hangs, no answer is torn."""

from __future__ import annotations

import os
import signal
import socket
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from supervisor.linux.event_loop import Loop
from supervisor.wire import frames, ttrpc
from supervisor.wire.call_journal import CallJournal
from supervisor.wire.frames import Code, FrameParser
from supervisor.wire.ttrpc import ServerConnection

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.process

METHODS = {1: "Echo", 3: "Wait", 5: "Echo", 7: "Later", 9: "Echo"}
LAST = 99


def _serve_until_killed(
    sock: socket.socket, noted: CallJournal, kill_at: int, piece_bytes: int
) -> None:
    """The process that dies: at its `kill_at`th call into C, or when all is served."""
    ttrpc.READ_BYTES = piece_bytes
    loop = Loop()
    served: list[int] = []
    later: list[int] = []

    def on_request(
        connection: ServerConnection, stream_id: int, _service: str, method: str, *_rest: Any
    ) -> None:
        served.append(stream_id)
        if method == "Echo":
            connection.respond(stream_id, b"x" * stream_id)
        if method == "Later":
            later.append(stream_id)
        elif later:
            connection.respond(later.pop(), b"later")

    connection = ServerConnection(
        loop, sock, on_request=on_request, on_closed=lambda *_: os._exit(3), journal=noted
    )
    assert connection.is_open
    calls = 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal calls
        if event in ("c_call", "c_return"):
            calls += 1
            if calls == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(count)
    loop.run_until(lambda: len(served) == len(METHODS))
    sys.setprofile(None)
    os._exit(0)


def _take_over(sock: socket.socket, noted: CallJournal, client: socket.socket) -> None:
    """The successor: serves what comes, then refuses what nobody will answer."""
    loop = Loop()
    served: list[int] = []

    def on_request(
        connection: ServerConnection, stream_id: int, _service: str, method: str, *_rest: Any
    ) -> None:
        served.append(stream_id)
        if method in ("Echo", "Last"):
            connection.respond(stream_id, b"x" * stream_id)

    lost: list[str] = []
    connection = ServerConnection(
        loop,
        sock,
        on_request=on_request,
        on_closed=lambda _connection, why: lost.append(why),
        restored=noted.read(),
        journal=noted,
    )
    connection.look_back()
    connection.take_over()
    client.sendall(frames.encode_request(LAST, "s.S", "Last", b""))
    loop.run_until(lambda: LAST in served or bool(lost))
    assert not lost, lost
    for stream_id in [*connection.calls]:
        connection.refuse(stream_id, Code.UNAVAILABLE, "the shim was killed")
    connection.close()
    loop.close()


@contextmanager
def _ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    server, client = socket.socketpair()
    client.settimeout(30)
    try:
        yield server, client
    finally:
        server.close()
        client.close()


def _is_killed(kill_at: int, piece_bytes: int) -> bool:
    """One life and its successor; returns whether the first was killed before it was done."""
    with _ends() as (server, client):
        client.sendall(
            b"".join(
                frames.encode_request(stream_id, "s.S", method, b"p" * stream_id)
                for stream_id, method in METHODS.items()
            )
        )
        noted = CallJournal.create()
        pid = os.fork()
        if pid == 0:
            try:
                _serve_until_killed(server, noted, kill_at, piece_bytes)
            finally:
                os._exit(4)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert status in (0, -signal.SIGKILL)
        _take_over(server.dup(), noted, client)
        server.close()
        answers: dict[int, set[tuple[int, bytes]]] = {}
        parser = FrameParser()
        while data := client.recv(1 << 16):
            for frame in parser.feed(data):
                code, _words, payload = frames.decode_response(frame.data)
                answers.setdefault(frame.stream_id, set()).add((code, payload))
        assert not parser.unparsed
    assert answers.keys() == {*METHODS, LAST}, f"killed at {kill_at}"
    for stream_id, method in {**METHODS, LAST: "Last"}.items():
        true_answer = (0, b"later" if method == "Later" else b"x" * stream_id)
        assert answers[stream_id] <= {true_answer, (Code.UNAVAILABLE, b"")}
        if method == "Last":
            assert answers[stream_id] == {true_answer}
    return status != 0


@pytest.mark.parametrize("piece_bytes", [1 << 16, 37])
def test_every_request_is_answered_whenever_the_server_is_killed(piece_bytes: int) -> None:
    kill_at = 1
    while _is_killed(kill_at, piece_bytes):
        kill_at += 3 if piece_bytes == 1 << 16 else 11
    assert kill_at > 100


def test_a_record_that_was_cut_leaves_the_one_before() -> None:
    noted = CallJournal.create()
    assert noted.read() is None
    for number in range(5):
        noted.write({"number": number, "more": "x" * 100 * number})
        assert noted.read() == {"number": number, "more": "x" * 100 * number}
    content = os.pread(noted.fileno(), 1 << 20, 0)
    for at in range(0, len(content), 7):
        os.pwrite(noted.fileno(), bytes([content[at] ^ 0xFF]), at)
        state = CallJournal(os.dup(noted.fileno()))
        found = state.read()
        state.close()
        assert found is not None
        assert found["number"] in (3, 4)
        os.pwrite(noted.fileno(), content[at : at + 1], at)
    noted.close()


def test_a_journal_does_not_grow_with_its_records() -> None:
    noted = CallJournal.create()
    for number in range(2000):
        noted.write({"text": "x" * (number * 37 % 1000)})
    assert os.fstat(noted.fileno()).st_size < 5000
    again = CallJournal(os.dup(noted.fileno()))
    again.write({"text": "after"})
    assert noted.read() == again.read() == {"text": "after"}
    again.close()
    noted.close()
