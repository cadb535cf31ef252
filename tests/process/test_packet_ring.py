"""The ring of packets and its worker: bounds, clients that are slow, kills at any instruction."""

from __future__ import annotations

import os
import random
import select
import signal
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from supervisor.linux import fds
from supervisor.linux.exit_status import Exited
from tests.harness import dying, waiting
from tests.harness.forked import finishing, forked
from workers.common import ring as rings
from workers.common.ring import Ring
from workers.copy import packet_hub
from workers.copy.packet_hub import HubClient
from workers.copy.route import Route
from workers.process import report
from workers.process.context import WorkerContext
from workers.process.counters import StreamCounters
from workers.process.task import COPY, COUNT_REST

if TYPE_CHECKING:
    from collections.abc import Iterator

    from workers.process.task import Task

pytestmark = pytest.mark.process


class _Site:
    """A source pipe, a ring and its clients. Owns them all until `close`."""

    def __init__(self, *, ring_bytes: int = rings.RING_BYTES) -> None:
        self.source_rfd, self.source = fds.pipe()
        self.staging = fds.pipe()
        self.ring = Ring(2, ring_bytes=ring_bytes)
        self.counters = StreamCounters()
        self.clients: list[HubClient] = []
        self.peers: list[socket.socket] = []
        self._ours: list[socket.socket] = []
        self.report_rfd, self.report_wfd = fds.pipe()
        self.null = fds.Fd(os.open(os.devnull, os.O_RDWR))
        self.task: Task = COPY

    def connect(self, *, is_consumer: bool = True) -> socket.socket:
        ours, peer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        number = len(self.clients)
        self.clients.append(HubClient(number, 100 + number, ours.fileno(), is_consumer))
        self._ours.append(ours)
        self.peers.append(peer)
        return peer

    def work(self) -> None:
        context = WorkerContext(
            stream="stdout",
            title="forkshim: ring [stdout]",
            counters=self.counters,
            slot=0,
            report_wfd=self.report_wfd.fileno(),
            null_fd=self.null.fileno(),
            task=self.task,
        )
        route = Route(
            self.source_rfd.fileno(),
            self.null.fileno(),
            (self.staging[0].fileno(), self.staging[1].fileno()),
        )
        packet_hub.work(context, route, self.ring, self.clients)

    def write(self, content: bytes) -> None:
        assert os.write(self.source.fileno(), content) == len(content)

    def hang_up(self, peer: socket.socket) -> None:
        self._ours[self.peers.index(peer)].close()

    def reported(self) -> report.Report:
        decoded = report.decode(os.read(self.report_rfd.fileno(), report.MOST_BYTES))
        assert decoded is not None
        return decoded

    def close(self) -> None:
        for each in (*self._ours, *self.peers):
            each.close()
        self.ring.close()
        self.counters.close()
        for owner in (
            self.source_rfd,
            self.source,
            *self.staging,
            self.report_rfd,
            self.report_wfd,
            self.null,
        ):
            owner.close()


@contextmanager
def _site(ring_bytes: int = rings.RING_BYTES) -> Iterator[_Site]:
    site = _Site(ring_bytes=ring_bytes)
    try:
        yield site
    finally:
        site.close()


def _packets(peer: socket.socket) -> list[bytes]:
    """Return what has come so far."""
    packets: list[bytes] = []
    peer.setblocking(False)
    while True:
        try:
            packet = peer.recv(1 << 20)
        except BlockingIOError:
            return packets
        if not packet:
            return packets
        packets.append(packet)


def _payload(packets: list[bytes]) -> bytes:
    assert all(packet[:1] == b"\2" for packet in packets)
    return b"".join(packet[1:] for packet in packets)


def _without_one_repeat(packets: list[bytes]) -> list[bytes]:
    for here in range(1, len(packets)):
        if packets[here] == packets[here - 1]:
            return packets[:here] + packets[here + 1 :]
    return packets


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> int:
    """Make packets of at most 8 bytes; return a ring's size for five of them and a remainder."""
    monkeypatch.setattr(rings, "DATA_BYTES", 8)
    monkeypatch.setattr(rings, "PACKET_BYTES", 11)
    return 60


def test_packets_come_back_as_they_were_put_and_wrap_at_the_end(tiny: int) -> None:
    chance = random.Random(5)
    ring = Ring(3, ring_bytes=tiny)
    queue: list[bytes] = []
    position = ring.read().head
    for number in range(500):
        content = chance.randbytes(chance.randint(1, 8))
        if position >= ring.oldest_kept(ring.read().head):
            rfd, wfd = os.pipe()
            os.write(wfd, content)
            with ring.begin(len(content)) as room:
                assert os.readv(rfd, [room]) == len(content)
            ring.accept(0)
            queue.append(content)
            os.close(rfd)
            os.close(wfd)
        if len(queue) == 4 or number % 3 == 0:
            packet, position = ring.packet(position)
            assert bytes(packet) == b"\3" + queue.pop(0)
            packet.release()
    assert ring.read().head > 3 * tiny
    ring.close()


def test_output_comes_as_packets_that_conmons_clients_can_read() -> None:
    content = random.Random(1).randbytes(100_000)
    with _site() as site:
        first, second = site.connect(), site.connect(is_consumer=False)
        site.write(content)
        site.source.close()
        with finishing(site.work):
            pass
        for peer in (first, second):
            packets = _packets(peer)
            assert _payload(packets) == content
            assert {len(packet) for packet in packets[:-1]} == {8193}
        assert site.counters.copied_bytes(0) == len(content)
        assert site.counters.in_flight_bytes(0) == 0
        assert site.reported() == report.Report("stdout", len(content))


def test_output_without_a_client_is_discarded() -> None:
    with _site(ring_bytes=3 * rings.PACKET_BYTES) as site, forked(site.work) as worker:
        for _ in range(10):
            site.write(bytes(200_000))
        site.source.close()
        worker.wait()
        assert site.counters.copied_bytes(0) == 2_000_000


def test_the_container_waits_for_a_consumer_that_does_not_read() -> None:
    with _site(ring_bytes=3 * rings.PACKET_BYTES) as site:
        slow, quick = site.connect(), site.connect(is_consumer=False)
        os.set_blocking(site.source.fileno(), False)
        with forked(site.work):
            sent = _write_until_full(site.source.fileno())
            assert sent < 4 << 20
            got = {slow: b"", quick: b""}
            site.source.close()
            while len(got[slow]) < sent or len(got[quick]) < sent:
                for peer in got:
                    got[peer] += _payload(_packets(peer))
                select.select([slow, quick], [], [], 1)
            assert got[slow] == got[quick]


def _write_until_full(fd: int) -> int:
    """Write to a non-blocking pipe until no process has taken anything for a second."""
    sent, poller = 0, select.poll()
    poller.register(fd, select.POLLOUT)
    while poller.poll(1000):
        sent += os.write(fd, bytes(4096))
    return sent


def test_a_listener_that_takes_nothing_is_behind_and_harms_no_process() -> None:
    """Its queue is dropped and counted. It hears on once it reads."""
    with _site(ring_bytes=4 * rings.PACKET_BYTES) as site:
        stopped, reading = site.connect(is_consumer=False), site.connect()
        content = random.Random(3).randbytes(3 << 20)
        with forked(site.work) as worker:
            got = b""
            view = memoryview(content)
            os.set_blocking(site.source.fileno(), False)
            while len(got) < len(content):
                if view and select.select([], [site.source.fileno()], [], 0)[1]:
                    view = view[os.write(site.source.fileno(), view[:65536]) :]
                select.select([reading], [], [], 0.01)
                got += _payload(_packets(reading))
            assert got == content
            cursor = site.ring.cursor(0)
            assert cursor.is_behind == 1
            heard: list[bytes] = []
            site.write(b"later")
            while site.ring.cursor(0).is_behind or heard[-1] != b"\2later":
                select.select([stopped], [], [], 1)
                heard += _packets(stopped)
            places = [content.index(packet[1:]) for packet in heard[:-1]]
            assert places == sorted(places)
            assert places[0] == 0
            skipped = site.ring.cursor(0).skipped_bytes
            assert skipped + len(_payload(heard[:-1])) == len(content)
            site.source.close()
            worker.wait()


def test_a_client_that_leaves_keeps_no_process_waiting() -> None:
    with _site(ring_bytes=3 * rings.PACKET_BYTES) as site:
        leaver = site.connect()
        os.set_blocking(site.source.fileno(), False)
        with forked(site.work) as worker:
            _write_until_full(site.source.fileno())
            leaver.close()
            site.source.close()
            worker.wait()
        assert site.reported().errno == 0


def test_the_rest_of_an_output_that_was_given_up_is_counted() -> None:
    with _site() as site:
        site.task = COUNT_REST
        site.write(b"a\nb\nc")
        site.source.close()
        with finishing(site.work):
            pass
        assert (site.reported().left_bytes) == 5


def test_a_number_that_is_used_again_begins_with_what_comes_next() -> None:
    with _site() as site:
        first = site.connect()
        site.write(b"for the first")
        with forked(site.work):
            waiting.wait_true(lambda: site.counters.copied_bytes(0) == 13)
        assert _payload(_packets(first)) == b"for the first"
        second = site.connect()
        site.clients = [site.clients[1]._replace(number=0)]
        site.write(b"for the second")
        site.source.close()
        with finishing(site.work):
            pass
        assert _payload(_packets(second)) == b"for the second"
        assert _packets(first) == []


def test_a_worker_that_is_asked_to_leave_repeats_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The request comes between the send of a packet and its commit, where a kill repeats it."""
    commit = Ring.commit_cursor

    def asked(ring: Ring, number: int, cursor: rings.Cursor) -> None:
        if cursor.seen_bytes:
            os.kill(os.getpid(), packet_hub.LEAVE_SIGNAL)
        commit(ring, number, cursor)

    with _site() as site:
        peer = site.connect()
        site.write(b"once")
        monkeypatch.setattr(Ring, "commit_cursor", asked)  # in the forked worker
        with finishing(site.work) as worker:
            assert worker.wait() == Exited(0)
        monkeypatch.undo()
        assert _payload(_packets(peer)) == b"once"
        assert not fds.is_readable(site.report_rfd.fileno())
        site.source.close()
        with finishing(site.work):
            pass
        assert _packets(peer) == []


def test_an_idle_worker_leaves_when_it_is_asked(tiny: int) -> None:
    with _site(tiny) as site:
        site.connect()
        with forked(site.work) as worker:
            waiting.wait_true(lambda: waiting.catches(worker.pid, packet_hub.LEAVE_SIGNAL))
            os.kill(worker.pid, packet_hub.LEAVE_SIGNAL)
            assert worker.wait() == Exited(0)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_kill_at_any_instruction_loses_nothing_and_repeats_one_packet_at_most(
    tiny: int,
) -> None:
    content = bytes(range(50))
    repeats = 0

    def fill(site: _Site) -> None:
        site.connect()
        site.connect(is_consumer=False)
        site.write(content)
        site.source.close()

    with _site(tiny) as site:
        fill(site)
        last = dying.instructions(site.work)
    for step in range(1, last + 1):
        with _site(tiny) as site:
            fill(site)
            dying.die_at(step, site.work)
            with finishing(site.work):
                pass
            for peer in site.peers:
                packets = _packets(peer)
                once = _without_one_repeat(packets)
                assert _payload(once) == content, step
                number = site.peers.index(peer)
                assert len(packets) - len(once) <= site.ring.repeats(number) <= 1, step
                repeats += len(packets) - len(once)
            assert site.counters.copied_bytes(0) == len(content), step
    # The kernel does not say whether a packet was sent: until it is committed it may be repeated.
    sends = 2 * 7
    assert 0 < repeats <= 8 * sends


def test_random_kills_in_a_stream_lose_nothing() -> None:
    content = random.Random(9).randbytes(6 << 20)
    with _site() as site:
        peer = site.connect()
        os.set_blocking(site.source.fileno(), False)
        view, got, kills = memoryview(content), [b""], 0
        got.clear()
        chance = random.Random(4)
        while sum(map(len, got)) - len(got) < len(content) or view:
            with forked(site.work) as worker:
                until = sum(map(len, got)) + chance.randint(1, 400_000)
                while sum(map(len, got)) < until:
                    if view and select.select([], [site.source.fileno()], [], 0)[1]:
                        view = view[os.write(site.source.fileno(), view[:65536]) :]
                    if not view and not select.select([peer], [], [], 0.05)[0]:
                        break
                    got += _packets(peer)
                os.kill(worker.pid, signal.SIGKILL)
            kills += 1
        site.source.close()
        with forked(site.work) as worker:  # repeats may have hidden that some are missing
            while waiting.state_of(worker.pid) != "Z":
                select.select([peer], [], [], 0.02)
                got += _packets(peer)
        packets = got + _packets(peer)
        for _ in range(kills):
            if _payload(packets) == content:
                break
            packets = _without_one_repeat(packets)
        assert _payload(packets) == content
        assert kills > 5
