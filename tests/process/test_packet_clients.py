"""Attach clients of a stream set: real sockets, real workers, what each of them hears and says."""

from __future__ import annotations

import os
import select
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from supervisor.io.client_stdio import Stdio
from supervisor.io.client_stdio import restore as restore_stdio
from supervisor.io.drain import DrainWatch, Verdict
from supervisor.io.pipes import Pipes
from supervisor.io.stdio import ATTACH
from supervisor.io.stream import Stream
from supervisor.linux import fds
from supervisor.oci.process_json import ProcessConfig
from supervisor.sinks.attach_sink import AttachSink
from supervisor.sinks.file_sink import open_log
from supervisor.sinks.spec import parse_sink
from supervisor.state.fd_store import FdStore, FdWriter
from tests.harness import waiting
from tests.harness.stream_site import Site
from workers.common.ring import MAX_CLIENTS
from workers.copy.packet_stdin import PacketInput

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from supervisor.io.attach.packet_clients import PacketClients
    from supervisor.sinks.sink import Sink
    from tests.harness.rig import Rig

pytestmark = pytest.mark.process


class Attached:
    """A site whose outputs go to `attach` or to a log, with a listening socket. Owned by tests."""

    def __init__(self, site: Site, directory: Path) -> None:
        self.site = site
        self.directory = directory
        self.line_sinks: dict[str, Sink] = {}
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(str(directory / "attach"))
        self.listener.listen(10)
        self.listener.setblocking(False)
        self.peers: list[socket.socket] = []
        self.clients: PacketClients = site.stream_set.serve_packets(self.line_sinks)
        self.clients.listen(fds.Fd(os.dup(self.listener.fileno())))

    def output(self, name: str = "stdout") -> tuple[int, Stream]:
        """Add an output whose sink is the clients."""
        return self._add(name, AttachSink(name))

    def logged(self, name: str = "stdout") -> tuple[int, Stream, Path]:
        """Add an output whose sink is a log file."""
        path = self.directory / f"{name}.log"
        sink = open_log([name], parse_sink(f"file,max-size=1g:{path}"), ())[name]
        return (*self._add(name, sink), path)

    def _add(self, name: str, sink: Sink) -> tuple[int, Stream]:
        self.line_sinks[name] = sink
        rfd, wfd = fds.pipe()
        null = fds.Fd(os.dup(self.site.rig.null.fileno()))
        stream = Stream(name, rfd, null, line_sink=sink, setting=name)
        self.site.stream_set.add(stream)
        return self.site.own(wfd.take()), stream

    def stdin(self, *, ends_with_client: bool) -> tuple[int, int, Stream]:
        """Add stdin; returns the container's end, the end of the idle pipe, and the stream."""
        idle_rfd, idle_wfd = fds.pipe()
        sink_rfd, sink_wfd = fds.pipe()
        stream = Stream(
            "stdin", idle_rfd, sink_wfd, packet_input=PacketInput(ends_with_client=ends_with_client)
        )
        self.site.stream_set.add(stream)
        return self.site.own(sink_rfd.take()), self.site.own(idle_wfd.take()), stream

    def connect(self) -> socket.socket:
        peer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        peer.connect(str(self.directory / "attach"))
        self.peers.append(peer)
        return peer

    def enter(self) -> socket.socket:
        """Connect, and serve until the supervisor has accepted."""
        before = self.clients._serial
        peer = self.connect()
        self.site.run_until(lambda: self.clients._serial > before)
        return peer

    def hear(self, peer: socket.socket, content: bytes) -> None:
        """Serve until the peer has heard exactly this."""
        heard = b""

        def is_over() -> bool:
            nonlocal heard
            if select.select([peer], [], [], 0)[0]:
                heard += peer.recv(9000)[1:]
            return len(heard) >= len(content)

        self._run_looking_until(is_over)
        assert heard == content

    def _run_looking_until(self, is_over: Callable[[], bool]) -> None:
        look = self.site.rig.loop.timer(lambda: look.start(0.005))
        look.start(0.005)
        self.site.run_until(is_over)
        look.cancel()

    def look_until(self, is_over: Callable[[], bool]) -> None:
        self._run_looking_until(is_over)

    def close(self) -> None:
        self.site.stream_set.stop()
        self.site.run_until(lambda: not self.site.stream_set.has_workers)
        self.clients.close()
        for each in (*self.peers, self.listener):
            each.close()
        for sink in self.line_sinks.values():
            sink.close()


@pytest.fixture
def attached(site: Site, tmp_path: Path) -> Iterator[Attached]:
    made = Attached(site, tmp_path)
    yield made
    made.close()


def test_who_connects_before_the_first_byte_hears_it(attached: Attached) -> None:
    """Podman connects, then starts the container: both events may wait in the same round."""
    writer, _stream = attached.output()
    errors, _stream = attached.output("stderr")
    attached.site.stream_set.start()
    peer = attached.connect()
    os.write(writer, b"first words")
    packets: list[bytes] = []

    def has_come() -> bool:
        if select.select([peer], [], [], 0)[0]:
            packets.append(peer.recv(9000))
        return bool(packets)

    attached.look_until(has_come)
    assert packets == [b"\2first words"]
    assert [client.is_consumer for client in attached.clients._clients] == [True]
    os.write(errors, b"oops")
    packets.clear()
    attached.look_until(has_come)
    assert packets == [b"\3oops"]


def test_who_connects_before_there_are_streams_has_them_when_they_come(
    attached: Attached,
) -> None:
    """The console of an exec comes from the runtime, which runs after the client has connected."""
    peer = attached.enter()
    container, _idle, _stdin = attached.stdin(ends_with_client=True)
    writer, _stream, path = attached.logged()
    attached.site.stream_set.start()
    peer.send(b"typed")
    attached.look_until(lambda: fds.pending_bytes(container) == 5)
    os.write(writer, b"said\n")
    attached.hear(peer, b"said\n")
    assert path.read_bytes() == b"said\n"


def test_who_connects_later_is_a_listener_and_hears_the_rest(attached: Attached) -> None:
    writer, stream = attached.output()
    attached.site.stream_set.start()
    os.write(writer, b"unheard")
    attached.look_until(lambda: attached.site.stream_set.copied_bytes(stream) == 7)
    peer = attached.enter()
    assert [client.is_consumer for client in attached.clients._clients] == [False]
    os.write(writer, b"heard")
    attached.hear(peer, b"heard")


def test_a_client_hears_what_goes_into_the_log(attached: Attached) -> None:
    writer, stream, path = attached.logged()
    attached.site.stream_set.start()
    os.write(writer, b"before\n")
    attached.look_until(lambda: path.exists() and path.read_bytes() == b"before\n")
    first = attached.enter()
    os.write(writer, b"for one\n")
    attached.hear(first, b"for one\n")
    second = attached.enter()
    os.write(writer, b"for two\n")
    attached.hear(first, b"for two\n")
    attached.hear(second, b"for two\n")
    assert path.read_bytes() == b"before\nfor one\nfor two\n"
    for number in range(3):
        for each in attached.site.stream_set.streams:
            attached.site.kill_worker_of(each)
        os.write(writer, b"after kill %d\n" % number)
        attached.hear(first, b"after kill %d\n" % number)
        attached.hear(second, b"after kill %d\n" % number)
    attached.site.disown(writer)
    attached.look_until(lambda: all(each.is_closed for each in attached.site.stream_set.streams))
    assert stream.is_closed


def test_without_clients_the_branch_is_off_and_comes_back(attached: Attached) -> None:
    writer, _stream, path = attached.logged()
    attached.site.stream_set.start()
    for number in range(3):
        peer = attached.enter()
        os.write(writer, b"heard %d\n" % number)
        attached.hear(peer, b"heard %d\n" % number)
        peer.close()
        trunk, branch = attached.site.stream_set.streams
        attached.look_until(lambda trunk=trunk: not trunk.branches[0].is_on)  # type: ignore[misc]
        attached.look_until(lambda branch=branch: attached.site.slot(branch).pid == 0)  # type: ignore[misc]
        os.write(writer, b"unheard\n")
        attached.look_until(lambda: path.read_bytes().endswith(b"unheard\n"))
        assert len(attached.site.stream_set.streams) == 2
        assert attached.clients._clients == []


def test_a_client_that_stops_reading_delays_the_log_for_two_seconds_at_most(
    attached: Attached,
) -> None:
    """The fault that freezes a container under conmon."""
    writer, _stream, path = attached.logged()
    attached.site.stream_set.start()
    os.write(writer, b"first\n")
    attached.look_until(path.exists)
    stopped = attached.enter()
    os.set_blocking(writer, False)
    line, sent = b"x" * 99 + b"\n", 6

    def write() -> bool:
        nonlocal sent
        while fds.is_writable(writer) and sent < 20 << 20:
            sent += os.write(writer, line * 600)
        return path.stat().st_size >= 20 << 20

    attached.look_until(write)
    assert path.stat().st_size == sent
    stopped.close()
    attached.look_until(lambda: attached.clients._clients == [])
    assert "bytes, client too slow" in attached.site.rig.messages()[-1]


def test_the_end_waits_three_seconds_for_a_consumer_and_the_log_is_whole(
    attached: Attached,
) -> None:
    writer, stream, path = attached.logged()
    attached.site.stream_set.start()
    attached.enter()
    os.set_blocking(writer, False)
    sent = 0
    line = b"x" * 99 + b"\n"
    idle = 0
    while idle < 40:  # until every pipe and queue is full
        sent_before = sent
        while fds.is_writable(writer):
            sent += os.write(writer, line)
        idle = 0 if sent != sent_before else idle + 1
        attached.look_until(iter([False] * 5 + [True]).__next__)
    attached.site.disown(writer)
    watch = DrainWatch(attached.site.stream_set)
    verdicts = []

    def is_over() -> bool:
        for each, verdict in watch.judge(is_stopping=False):
            verdicts.append((each.name, verdict))
            attached.site.stream_set.give_up(each)
        return watch.is_over

    attached.look_until(is_over)
    assert verdicts == [("stdout.attach", Verdict.STALLED)]
    assert path.stat().st_size == sent
    assert stream.is_closed


def test_stdin_comes_from_all_clients_and_ends_with_the_first_that_ends(
    attached: Attached,
) -> None:
    container, _idle, stream = attached.stdin(ends_with_client=True)
    attached.site.stream_set.start()
    assert attached.site.slot(stream).pid == 0
    first, second = attached.enter(), attached.enter()
    first.send(b"one")
    attached.look_until(lambda: fds.pending_bytes(container) == 3)
    second.send(b"two" * 30_000)
    assert _read(container, 90_003) == b"one" + b"two" * 30_000
    attached.site.kill_worker_of(stream)
    second.send(b"last")
    second.shutdown(socket.SHUT_WR)
    attached.look_until(lambda: stream.is_closed)
    assert _read(container, 99) == b"last"
    assert os.read(container, 1) == b""


def test_a_client_that_leaves_closes_stdin_after_what_it_has_sent(attached: Attached) -> None:
    container, _idle, stream = attached.stdin(ends_with_client=True)
    attached.site.stream_set.start()
    peer = attached.enter()
    # Entered, it has no copy of the peer's end any more.
    pid = attached.site.slot(stream).pid
    waiting.wait_true(lambda: b"[stdin]" in Path(f"/proc/{pid}/cmdline").read_bytes())
    os.kill(pid, signal.SIGSTOP)
    peer.send(b"last words")
    peer.close()
    attached.look_until(lambda: not attached.clients._clients[0].hears)
    attached.site.kill_worker_of(stream)
    attached.look_until(lambda: stream.is_closed)
    assert _read(container, 99) == b"last words"


@pytest.mark.parametrize("ends_by_packet", [True, False])
def test_stdin_may_stay_open(attached: Attached, *, ends_by_packet: bool) -> None:
    container, idle, stream = attached.stdin(ends_with_client=False)
    attached.site.stream_set.start()
    first, second = attached.enter(), attached.enter()
    first.send(b"one")
    attached.look_until(lambda: fds.pending_bytes(container) == 3)
    if ends_by_packet:
        first.send(b"")
    else:
        first.close()
    second.send(b"two")
    attached.look_until(lambda: fds.pending_bytes(container) == 6)
    attached.site.kill_worker_of(stream)
    second.close()
    third = attached.enter()
    third.send(b"three")
    attached.look_until(lambda: fds.pending_bytes(container) == 11)
    assert _read(container, 11) == b"onetwothree"
    assert not stream.is_closed
    attached.site.disown(idle)  # the verb that closes stdin
    attached.look_until(lambda: stream.is_closed)
    assert os.read(container, 1) == b""


def test_a_packet_that_is_larger_than_the_pipe_is_not_cut(attached: Attached) -> None:
    """A user at the limit of pipe memory has pipes of one or two pages: pipe(7)."""
    container, _idle, stream = attached.stdin(ends_with_client=True)
    assert stream.staging is not None
    import fcntl

    fcntl.fcntl(stream.staging[1].fileno(), fcntl.F_SETPIPE_SZ, 4096)
    attached.site.stream_set.start()
    peer = attached.enter()
    content = os.urandom(32768)
    peer.send(content)
    peer.send(b"small")
    attached.look_until(lambda: fds.pending_bytes(container) == len(content) + 5)
    assert _read(container, len(content) + 5) == content + b"small"


def test_too_many_clients_are_refused_and_told(attached: Attached) -> None:
    attached.output()
    attached.site.stream_set.start()
    for _ in range(MAX_CLIENTS):
        attached.enter()
    refused = attached.connect()
    attached.look_until(lambda: bool(select.select([refused], [], [], 0)[0]))
    assert refused.recv(1) == b""
    assert "rejected, 32 clients are connected already" in attached.site.rig.messages()[-1]


def test_listener_clients_and_rings_are_handed_over(
    attached: Attached, rig: Rig, tmp_path: Path
) -> None:
    writer, _stream = attached.output()
    _container, _idle, stdin = attached.stdin(ends_with_client=True)
    attached.site.stream_set.start()
    peer = attached.enter()
    os.write(writer, b"heard")
    attached.hear(peer, b"heard")
    for stream in (stdin, attached.site.stream_set.streams[0]):
        waiting.wait_true(lambda stream=stream: attached.site.slot(stream).pid != 0)  # type: ignore[misc]
    writer_of_store = FdWriter()
    packed = attached.clients.snapshot(writer_of_store)
    store = FdStore()
    store.put({"clients": packed}, writer_of_store)
    contents = store.look()
    successor = Site(rig)
    sinks: dict[str, Sink] = {"stdout": AttachSink("stdout")}
    restored = successor.stream_set.serve_packets(sinks)
    restored.restore(contents.document["clients"], contents)
    assert [vars_of(each) for each in restored._clients] == [
        vars_of(each) for each in attached.clients._clients
    ]
    sink = sinks["stdout"]
    assert isinstance(sink, AttachSink)
    assert [client.serial for client in sink.clients] == [1]
    assert restored._serial == 1
    assert fds.is_same_file(restored._listener.fileno(), attached.listener.fileno())
    contents.close()
    store.close()
    successor.stream_set.close()
    sink.close()


def test_a_successor_continues_with_branch_clients_and_log(
    attached: Attached, rig: Rig, tmp_path: Path
) -> None:
    """Everything comes out of the store of descriptors, as after the death of a supervisor."""
    path = tmp_path / "stdout.log"
    record = ProcessConfig(stdout=f"k8s-file:{path}", stdin=ATTACH)
    writer, _stream = attached._add("stdout", open_log(["stdout"], parse_sink(record.stdout), ())["stdout"])  # fmt: skip  # noqa: E501
    container, idle, _stdin = attached.stdin(ends_with_client=True)
    attached.site.stream_set.start()
    peer = attached.enter()
    os.write(writer, b"one\n")
    attached.hear(peer, b"one\n")
    attached.site.stream_set.stop()
    attached.site.run_until(lambda: not attached.site.stream_set.has_workers)
    os.write(writer, b"between\n")
    peer.send(b"typed")

    stdio = Stdio(line_sinks=attached.line_sinks)
    writer_of_store, store = FdWriter(), FdStore()
    document = {
        "stdio": stdio.snapshot(writer_of_store),
        "crew": attached.site.stream_set.snapshot(writer_of_store),
    }
    store.put(document, writer_of_store)
    attached.site.stream_set.close()

    contents = store.look()
    packed = contents.document
    successor = Site(rig, counters=contents.take(packed["crew"]["counters"]))
    restored = restore_stdio(packed["stdio"], contents, record, "web", "")
    pipes = Pipes(record, None, rig.null.fileno())
    streams = successor.stream_set
    pipes.restore({"console": -1}, packed["crew"]["streams"], contents, restored, streams, is_parent=False)  # fmt: skip  # noqa: E501
    streams.serve_packets(restored.line_sinks).restore(packed["crew"]["packet_clients"], contents)
    assert sorted(stream.name for stream in streams.streams) == ["stdin", "stdout", "stdout.attach"]
    assert all(stream.has_attach_sink for stream in streams.streams if "." in stream.name)
    streams.renew()
    attached.hear(peer, b"between\n")
    attached.look_until(lambda: fds.pending_bytes(container) == 5)
    second = attached.connect()
    assert streams.packet_clients is not None
    attached.look_until(lambda: len(streams.packet_clients._clients) == 2)  # type: ignore[union-attr]
    os.write(writer, b"two\n")
    attached.hear(peer, b"two\n")
    attached.hear(second, b"two\n")
    texts = [line.split(b" ", 3)[3] for line in path.read_bytes().splitlines()]
    assert texts == [b"one", b"between", b"two"]
    streams.stop()
    attached.look_until(lambda: not streams.has_workers)
    streams.close()
    restored.close()
    pipes.close()
    contents.close()
    store.close()
    assert idle > 0


def vars_of(client: object) -> list[object]:
    return [getattr(client, name) for name in ("number", "serial", "is_consumer", "hears")]


def _read(fd: int, count: int) -> bytes:
    content = b""
    while len(content) < count and select.select([fd], [], [], 5)[0]:
        piece = os.read(fd, count - len(content))
        if not piece:
            break
        content += piece
        if len(content) == count or not fds.pending_bytes(fd):
            if len(content) == count:
                break
            if fds.is_at_end(fd):
                break
    return content
