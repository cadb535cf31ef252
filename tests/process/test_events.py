"""The queue of events to containerd, beside a ttrpc server that answers as the test says.

`tests/engines/test_events.py` has the real one.
"""

from __future__ import annotations

import os
import signal
import socket
from typing import TYPE_CHECKING

import pytest

from supervisor.frontends.containerd import events
from supervisor.frontends.containerd.events import EventQueue, PublishCommand, journaled
from supervisor.linux.event_loop import Loop
from supervisor.oci.invoke import RuntimeInvoker
from supervisor.wire import messages
from supervisor.wire.call_journal import CallJournal
from supervisor.wire.frames import Code
from supervisor.wire.protobuf import decode, unpack_any
from supervisor.wire.server import Server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import Any

    from supervisor.wire.ttrpc import ServerConnection
    from tests.harness.rig import Rig

pytestmark = pytest.mark.process


class FakeContainerd:
    """A server of Forward at `path`. Each request goes to `answer`, which may do nothing."""

    def __init__(self, rig: Rig, path: Path) -> None:
        self.rig = rig
        self.path = path
        self.envelopes: list[dict[str, Any]] = []
        self.answer: Callable[[ServerConnection, int], None] = accept
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()
        self.server = Server(
            rig.loop,
            listener,
            on_request=self._on_request,
            on_closed=lambda _connection, _why: None,
            log=rig.log.warning,
        )

    def _on_request(
        self, connection: ServerConnection, stream_id: int, service: str, method: str, *rest: Any
    ) -> None:
        assert (service, method) == ("containerd.services.events.ttrpc.v1.Events", "Forward")
        self.envelopes.append(decode(messages.ForwardRequest, rest[0])["envelope"])
        self.answer(connection, stream_id)

    def said(self) -> list[tuple[str, str]]:
        """Return topic and container id of what has come, repeated events included."""
        return [
            (
                envelope["topic"],
                unpack_any(envelope["event"], messages.EVENT_TOPICS[envelope["topic"]])[
                    "container_id"
                ],
            )
            for envelope in self.envelopes
        ]

    def close(self) -> None:
        self.server.close()
        self.path.unlink()


def accept(connection: ServerConnection, stream_id: int) -> None:
    connection.respond(stream_id, b"")


def refuse(code: Code, words: str) -> Callable[[ServerConnection, int], None]:
    return lambda connection, stream_id: connection.refuse(stream_id, code, words)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "c.sock.ttrpc"


@pytest.fixture
def containerd(rig: Rig, path: Path) -> Iterator[FakeContainerd]:
    made = FakeContainerd(rig, path)
    yield made
    made.server.close()


@pytest.fixture
def queue(rig: Rig, path: Path) -> Iterator[EventQueue]:
    made = EventQueue(rig.loop, rig.log, namespace="ns", ttrpc_address=f"unix://{path}")
    yield made
    made.close()
    assert len(rig.loop.timers) == 0


def test_events_come_in_order_with_topic_namespace_time_and_type(
    rig: Rig, containerd: FakeContainerd, queue: EventQueue
) -> None:
    queue.publish("/tasks/start", {"container_id": "a", "pid": 7})
    queue.publish("/tasks/exit", {"container_id": "a", "id": "a", "pid": 7, "exit_status": 3})
    rig.run_until(lambda: not len(queue))
    first, second = containerd.envelopes
    assert (first["namespace"], first["topic"]) == ("ns", "/tasks/start")
    assert first["event"]["type_url"] == "containerd.events.TaskStart"
    assert (first["timestamp"]["seconds"], first["timestamp"]["nanos"]) <= (
        second["timestamp"]["seconds"],
        second["timestamp"]["nanos"],
    )
    exit_event = unpack_any(second["event"], messages.TaskExit)
    assert (exit_event["pid"], exit_event["exit_status"]) == (7, 3)
    assert not rig.messages()


def test_an_event_is_sent_after_the_one_before_was_acknowledged(
    rig: Rig, containerd: FakeContainerd, queue: EventQueue
) -> None:
    held: list[Callable[[], None]] = []
    containerd.answer = lambda connection, stream_id: held.append(
        lambda: connection.respond(stream_id, b"")
    )
    for name in ("a", "b"):
        queue.publish("/tasks/paused", {"container_id": name})
    rig.run_until(lambda: bool(held))
    assert containerd.said() == [("/tasks/paused", "a")]
    held.pop()()
    rig.run_until(lambda: bool(held))
    assert containerd.said() == [("/tasks/paused", "a"), ("/tasks/paused", "b")]
    held.pop()()
    rig.run_until(lambda: not len(queue))


def test_an_event_on_a_lost_connection_is_sent_again(
    rig: Rig, containerd: FakeContainerd, queue: EventQueue
) -> None:
    def hang_up(connection: ServerConnection, _stream_id: int) -> None:
        containerd.answer = accept
        containerd.server.connections.remove(connection)
        connection.close()

    containerd.answer = hang_up
    queue.publish("/tasks/start", {"container_id": "a"})
    queue.publish("/tasks/exit", {"container_id": "a"})
    rig.run_until(lambda: not len(queue))
    start, end = ("/tasks/start", "a"), ("/tasks/exit", "a")
    assert containerd.said() == [start, start, end]
    assert rig.messages() == [
        "events: the peer has closed the connection; 2 waiting, trying again",
        "events: containerd takes them again, 1 waiting",
    ]


def test_an_event_without_an_answer_is_sent_again(
    rig: Rig, containerd: FakeContainerd, queue: EventQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "CALL_LIMIT_S", 0.05)

    def wait(_connection: ServerConnection, _stream_id: int) -> None:
        monkeypatch.undo()
        containerd.answer = accept

    containerd.answer = wait
    queue.publish("/tasks/start", {"container_id": "a"})
    rig.run_until(lambda: not len(queue))
    assert containerd.said() == [("/tasks/start", "a")] * 2
    assert rig.messages("warn") == ["events: no answer; 1 waiting, trying again"]


def test_a_refused_event_is_sent_again(
    rig: Rig, containerd: FakeContainerd, queue: EventQueue
) -> None:
    def refuse_once(connection: ServerConnection, stream_id: int) -> None:
        containerd.answer = accept
        connection.refuse(stream_id, Code.UNAVAILABLE, "starting")

    containerd.answer = refuse_once
    queue.publish("/tasks/start", {"container_id": "a"})
    rig.run_until(lambda: not len(queue))
    assert containerd.said() == [("/tasks/start", "a")] * 2
    assert rig.messages("warn") == [
        "events: containerd answers starting (code 14); 1 waiting, trying again"
    ]


def test_an_event_that_containerd_calls_invalid_does_not_stop_the_others(
    rig: Rig, containerd: FakeContainerd, queue: EventQueue
) -> None:
    def refuse_first(connection: ServerConnection, stream_id: int) -> None:
        containerd.answer = accept
        connection.refuse(stream_id, Code.INVALID_ARGUMENT, "bad topic")

    containerd.answer = refuse_first
    for name in ("a", "b"):
        queue.publish("/tasks/start", {"container_id": name})
    rig.run_until(lambda: not len(queue))
    assert [name for _topic, name in containerd.said()] == ["a", "b"]
    assert rig.messages() == ["event /tasks/start: containerd refuses it, dropped: bad topic"]


def test_events_wait_for_a_containerd_that_comes_later(
    rig: Rig, queue: EventQueue, path: Path
) -> None:
    queue.publish("/tasks/start", {"container_id": "a"})
    queue.publish("/tasks/exit", {"container_id": "a"})
    [words] = rig.messages()
    assert words == f"events: connect to {path}: no such file or directory; 1 waiting, trying again"
    containerd = FakeContainerd(rig, path)
    rig.run_until(lambda: not len(queue))
    assert containerd.said() == [("/tasks/start", "a"), ("/tasks/exit", "a")]
    containerd.close()


def test_a_full_queue_loses_what_matters_least_and_says_so(
    rig: Rig, queue: EventQueue, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "MOST_EVENTS", 6)
    topics = ["create", "start", "exec-added", "oom", "exit", "delete"]
    for topic in [*topics, "exit", "exit", "exit", "exit", "exit", "exit", "exit"]:
        queue.publish(f"/tasks/{topic}", {"container_id": "a"})
        assert len(queue) <= 6
    assert [topic for topic, *_ in queue.snapshot()] == ["/tasks/exit"] * 6
    containerd = FakeContainerd(rig, path)
    rig.run_until(lambda: not len(queue))
    containerd.close()
    assert rig.messages("warn")[1:] == [
        "events: 6 are waiting; dropped /tasks/create of a",
        "events: 7 were dropped, the queue was full",
    ]


@pytest.mark.parametrize(
    ("topics", "lost"),
    [
        (["start", "exit", "oom", "create"], "oom"),
        (["start", "exit", "create", "oom"], "create"),
        (["start", "exit", "exec-started", "exec-added"], "exec-started"),
        (["exit", "delete", "start", "delete"], "start"),
        (["exit", "delete", "exit", "delete"], "delete"),
    ],
)
def test_the_oldest_of_the_least_kind_is_lost(
    queue: EventQueue, topics: list[str], lost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "MOST_EVENTS", 4)
    for topic in [*topics, "exit"]:
        queue.publish(f"/tasks/{topic}", {"container_id": "a"})
    topics.remove(lost)
    assert [topic for topic, *_ in queue.snapshot()] == [
        f"/tasks/{topic}" for topic in [*topics, "exit"]
    ]


def test_a_flush_is_over_with_the_last_event_or_with_its_time(
    rig: Rig, queue: EventQueue, path: Path
) -> None:
    left: list[int] = []
    queue.flush(left.append)
    assert left == [0]
    queue.publish("/tasks/exit", {"container_id": "a"})
    queue.publish("/tasks/delete", {"container_id": "a"})
    queue.flush(left.append, limit_s=0.05)
    rig.run_until(lambda: len(left) == 2)
    assert left == [0, 2]
    containerd = FakeContainerd(rig, path)
    queue.flush(left.append)
    rig.run_until(lambda: len(left) == 3)
    assert left == [0, 2, 0]
    containerd.close()


def test_a_queue_goes_on_from_the_snapshot_of_another(
    rig: Rig, queue: EventQueue, path: Path
) -> None:
    queue.publish("/tasks/start", {"container_id": "a", "pid": 5})
    queue.publish("/tasks/exit", {"container_id": "a"})
    containerd = FakeContainerd(rig, path)
    other = EventQueue(
        rig.loop, rig.log, namespace="ns", ttrpc_address=str(path), restored=queue.snapshot()
    )
    queue.close()
    rig.run_until(lambda: not len(other))
    assert containerd.said() == [("/tasks/start", "a"), ("/tasks/exit", "a")]
    assert unpack_any(containerd.envelopes[0]["event"], messages.TaskStart)["pid"] == 5
    other.close()
    containerd.close()


@pytest.mark.parametrize("later", [[], ["c"]], ids=["forgotten last", "published last"])
def test_the_events_of_a_killed_process_are_in_its_journal(
    rig: Rig, containerd: FakeContainerd, path: Path, later: list[str]
) -> None:
    """Killed before the first answer: the successor sends all of them, in order."""
    noted = CallJournal.create()
    pid = os.fork()
    if pid == 0:
        try:
            queue = EventQueue(
                Loop(), rig.log, namespace="ns", ttrpc_address=str(path), journal=noted
            )
            for name in ("a", "b", "a"):
                queue.publish("/tasks/exit", {"container_id": name})
            queue.forget("b")
            for name in later:
                queue.publish("/tasks/exit", {"container_id": name})
            os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    queue = EventQueue(
        rig.loop,
        rig.log,
        namespace="ns",
        ttrpc_address=str(path),
        restored=journaled(noted),
        journal=noted,
    )
    rig.run_until(lambda: not len(queue))
    wanted = ["a", "a", *later]
    assert [name for _topic, name in containerd.said()][-len(wanted) :] == wanted
    assert journaled(noted) == []
    queue.close()


def test_an_empty_journal_has_no_events() -> None:
    noted = CallJournal.create()
    assert journaled(noted) == []
    noted.close()


def test_waiting_events_of_a_container_that_is_cleaned_up_are_dropped(
    rig: Rig, containerd: FakeContainerd, queue: EventQueue
) -> None:
    containerd.answer = lambda _connection, _stream_id: None
    for name in ("a", "a", "b", "a"):
        queue.publish("/tasks/exit", {"container_id": name})
    rig.run_until(lambda: bool(containerd.envelopes))
    queue.forget("a")
    assert [name for _topic, name, _envelope in queue.snapshot()] == ["a", "b"]  # one is under way


@pytest.fixture
def command(rig: Rig, tmp_path: Path) -> PublishCommand:
    """A `containerd` that notes its arguments and its stdin, and fails the first time."""
    program = tmp_path / "containerd"
    program.write_text(
        f'#!/bin/sh\ncd {tmp_path}\necho "$@" >>arguments\ncat >>events\n'
        "[ -e again ] || { : >again; exit 1; }\n"
    )
    program.chmod(0o755)
    invoker = RuntimeInvoker(
        rig.loop,
        rig.reaper,
        name="true",
        cwd="/",
        null_fd=rig.null.fileno(),
        environment=os.environ,
    )
    return PublishCommand(invoker, str(program), "/run/c.sock")


def test_without_a_ttrpc_socket_each_event_is_a_command(
    rig: Rig, command: PublishCommand, tmp_path: Path
) -> None:
    queue = EventQueue(rig.loop, rig.log, namespace="ns", ttrpc_address="", command=command)
    queue.publish("/tasks/paused", {"container_id": "a"})
    queue.publish("/tasks/resumed", {"container_id": "a"})
    rig.run_until(lambda: not len(queue))
    words = "--address /run/c.sock publish --topic /tasks/{} --namespace ns\n"
    assert (tmp_path / "arguments").read_text() == "".join(
        words.format(topic) for topic in ("paused", "paused", "resumed")
    )
    paused = b"\x0a\x1ccontainerd.events.TaskPaused\x12\x03\x0a\x01a"
    resumed = b"\x0a\x1dcontainerd.events.TaskResumed\x12\x03\x0a\x01a"
    assert (tmp_path / "events").read_bytes() == paused * 2 + resumed
    [words] = rig.messages("warn")
    assert words.endswith("containerd publish: exit status 1; 2 waiting, trying again")
    queue.close()


def test_a_containerd_without_forward_gets_commands(
    rig: Rig, containerd: FakeContainerd, path: Path, command: PublishCommand, tmp_path: Path
) -> None:
    containerd.answer = refuse(Code.UNIMPLEMENTED, "unknown service")
    (tmp_path / "again").touch()
    queue = EventQueue(rig.loop, rig.log, namespace="ns", ttrpc_address=str(path), command=command)
    queue.publish("/tasks/paused", {"container_id": "a"})
    queue.publish("/tasks/paused", {"container_id": "b"})
    rig.run_until(lambda: not len(queue))
    assert len(containerd.envelopes) == 1
    assert (tmp_path / "arguments").read_text().count("/tasks/paused") == 2
    queue.close()
