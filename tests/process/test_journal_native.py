"""Records to the journal: complete, in order, and at most one repeated by a kill."""

from __future__ import annotations

import errno
import os
import random
import select
import signal
import socket
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

import pytest

from supervisor.linux.exit_status import Exited, Killed
from supervisor.sinks import journal_sink
from supervisor.sinks.spec import parse_sink
from tests.harness import dying, fake_journal, networks, waiting
from tests.harness.fake_journal import FakeJournal
from tests.harness.forked import forked
from tests.harness.rewriting import Feed, Writer
from workers.journal import native_output
from workers.journal import socket as journal_socket
from workers.journal.fields import Origin, RecordMaker
from workers.journal.native import Journal
from workers.journal.native_writer import JournalWriter
from workers.lines import copy as line_loop
from workers.lines.buffer import LineBuffer
from workers.lines.reader import LineReader
from workers.process.counters import StreamCounters
from workers.process.report import Report

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.harness.fake_journal import Datagram

pytestmark = pytest.mark.process


_WEB = Origin("0123456789abcdef", name="web")


class JournalSite:
    """A stream whose records go to the socket `path`."""

    def __init__(
        self,
        path: Path,
        *,
        limit_bytes: int = 1 << 20,
        origin: Origin = _WEB,
        **options: Any,
    ) -> None:
        self.counters = StreamCounters()
        self.feed = Feed("stdout", self.counters, 0)
        self.journal = Journal(
            origin,
            "stdout",
            6,
            limit_bytes=limit_bytes,
            path=os.fspath(path),
            **options,
        )

    def worker(self) -> Callable[[], None]:
        supervisor_pid = os.getpid()
        return lambda: native_output.work(
            self.feed.context(), self.feed.route, self.journal, supervisor_pid
        )

    def run(self) -> Report | None:
        return self.feed.run(self.worker())

    def __enter__(self) -> JournalSite:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.feed.close()
        self.journal.close()
        self.counters.close()


@pytest.fixture
def taker(tmp_path: Path) -> Iterator[FakeJournal]:
    with FakeJournal(tmp_path / "socket") as made:
        yield made


def _messages(datagrams: list[Datagram]) -> list[bytes]:
    assert [datagram.ordinal for datagram in datagrams] == list(range(1, len(datagrams) + 1))
    return [datagram.message for datagram in datagrams]


def _without_repeats(datagrams: list[Datagram], most: int) -> list[Datagram]:
    """Leave out records that repeat the record before, with the same number."""
    kept: list[Datagram] = []
    for datagram in datagrams:
        if kept and datagram.ordinal == kept[-1].ordinal:
            assert datagram.fields == kept[-1].fields
            most -= 1
        else:
            kept.append(datagram)
    assert most >= 0
    return kept


def test_each_line_is_a_record(taker: FakeJournal) -> None:
    lines = [b"one", b"", b" two  ", b"\0 \xff\r", b"<3>bad", b"<9>text", b"x" * 5000]
    with JournalSite(taker.path) as site:
        site.feed.end_with(b"\n".join(lines) + b"\n")
        assert site.run() == Report("stdout", site.counters.copied_bytes(0))
    datagrams = list(taker.datagrams())
    assert _messages(datagrams) == [*lines[:4], b"bad", *lines[5:]]
    assert [datagram.fields["PRIORITY"] for datagram in datagrams] == list(
        map(bytes, [b"6", b"6", b"6", b"6", b"3", b"6", b"6"])
    )
    assert {datagram.fields["SYSLOG_IDENTIFIER"] for datagram in datagrams} == {b"web"}
    assert not any("CONTAINER_PARTIAL_MESSAGE" in datagram.fields for datagram in datagrams)


def test_a_long_line_is_several_records_of_its_priority(taker: FakeJournal) -> None:
    with JournalSite(taker.path, limit_bytes=10) as site:
        site.feed.end_with(b"<4>long long <1>long line\n<3>" + b"x" * 12 + b"\nend")
        site.run()
    datagrams = list(taker.datagrams())
    assert _messages(datagrams) == [
        b"long lo", b"ng <1>long", b" line", b"xxxxxxx", b"xxxxx", b"end",
    ]  # fmt: skip
    assert [datagram.fields["PRIORITY"] for datagram in datagrams] == [
        b"4", b"4", b"4", b"3", b"3", b"6",
    ]  # fmt: skip
    assert [datagram.fields.get("CONTAINER_PARTIAL_MESSAGE") for datagram in datagrams] == [
        b"true", b"true", None, b"true", None, b"true",
    ]  # fmt: skip


def test_pieces_need_no_mark_and_a_prefix_may_stay_text(taker: FakeJournal) -> None:
    """What conmon calls --no-container-partial-message; and a Podman that knows two priorities."""
    with JournalSite(taker.path, limit_bytes=10, marks_partial=False, reads_priority=False) as site:
        site.feed.end_with(b"<4>long long line\n<3>x\n<1>")
        site.run()
    datagrams = list(taker.datagrams())
    assert _messages(datagrams) == [b"<4>long lo", b"ng line", b"<3>x", b"<1>"]
    assert {datagram.fields["PRIORITY"] for datagram in datagrams} == {b"6"}
    assert not any("CONTAINER_PARTIAL_MESSAGE" in datagram.fields for datagram in datagrams)


def test_name_tag_and_labels_of_a_setting_are_fields(
    taker: FakeJournal,
) -> None:
    setting = "journal,name=web,log-tag=my%20tag,label=TEAM=a%2Cb"
    origin = journal_sink.origin_of("0123456789abcdef", "epoch", parse_sink(setting), "")
    with JournalSite(taker.path, origin=origin) as site:
        site.feed.end_with(b"line\n")
        site.run()
    (datagram,) = taker.datagrams()
    expected = {
        "CONTAINER_NAME": b"web",
        "CONTAINER_TAG": b"my tag",
        "SYSLOG_IDENTIFIER": b"my tag",
        "CONTAINER_ID": b"0123456789ab",
        "TEAM": b"a,b",
    }
    assert {name: datagram.fields[name] for name in expected} == expected


def test_a_json_line_becomes_fields_and_a_prefix_wins(taker: FakeJournal) -> None:
    lines = [
        b'{"level":"warn","msg":"one","user":"me"}',
        b'<2>{"level":"info","msg":"two"}',
        b"{no",
    ]
    with JournalSite(taker.path, is_json=True) as site:
        site.feed.end_with(b"\n".join(lines) + b"\n")
        site.run()
    one, two, three = taker.datagrams()
    assert (one.message, one.fields["PRIORITY"], one.fields["USER"]) == (b"one", b"4", b"me")
    assert (two.message, two.fields["PRIORITY"]) == (b"two", b"2")
    assert (three.message, three.fields["PRIORITY"]) == (b"{no", b"6")


def test_indented_lines_are_joined_however_they_come(
    taker: FakeJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line_loop, "HOLD_MS", None)  # no silence is too long
    chosen = random.Random(7)
    wanted = [
        b"%d" % number + b"\n more" * chosen.randrange(3) + b"\n\tx" * chosen.randrange(20)
        for number in range(3000)
    ]
    with (
        JournalSite(taker.path, limit_bytes=200, is_joined=True) as site,
        forked(site.worker()) as worker,
    ):
        rest = memoryview(b"\n".join(wanted) + b"\n")
        while rest:
            size = chosen.randrange(1, 3000)
            rest = rest[os.write(site.feed.source_wfd.fileno(), rest[:size]) :]
        site.feed.source_wfd.close()
        assert worker.wait() == Exited(0)
    assert _messages(list(taker.datagrams())) == wanted


def test_the_last_line_waits_only_until_the_source_is_silent(taker: FakeJournal) -> None:
    with JournalSite(taker.path, is_joined=True) as site:
        with forked(site.worker()):
            os.write(site.feed.source_wfd.fileno(), b"one\n two\n")
            waiting.wait_true(lambda: site.counters.copied_bytes(0) == 9)
            assert site.counters.in_flight_bytes(0) == 0
        site.feed.end_with(b" three\n half")
        site.run()
    assert _messages(list(taker.datagrams()))[-2:] == [b" three", b" half"]


def test_an_unsettled_record_is_scanned_once(
    taker: FakeJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise each line of a long trace would cost as much as all lines before it."""
    looked_at: list[int] = []
    copy = LineBuffer.copy

    def counted(buffer: LineBuffer, start: int, end: int) -> bytes:
        looked_at.append(end - start)
        return copy(buffer, start, end)

    monkeypatch.setattr(LineBuffer, "copy", counted)
    with JournalSite(taker.path, is_joined=True) as site:
        writer = JournalWriter(site.journal, os.getpid())
        reader = LineReader(site.feed.route, site.journal.buffer, site.feed.context())
        source = site.feed.source_wfd.fileno()
        taken = 0
        for line in [b"Traceback\n", *[b"  at\n"] * 200]:
            os.write(source, line)
            reader.fill(0, 0)
            taken = site.journal.buffer.read().taken
            assert writer.settled_end(taken) == writer.settled_end(taken) == 0
        assert sum(looked_at) == taken
        os.write(source, b"next\n")
        reader.fill(0, 0)
        assert writer.settled_end(taken + 5) == taken


def test_a_line_that_is_too_long_ends_what_is_joined(taker: FakeJournal) -> None:
    with JournalSite(taker.path, limit_bytes=20, is_joined=True) as site:
        content = b"one\n two\n" + b" " + b"x" * 50 + b"\n three\nfour\n" + b"y" * 25
        site.feed.end_with(content)
        site.run()
    said = list(taker.datagrams())
    assert [each.message for each in said if "CONTAINER_PARTIAL_MESSAGE" not in each.fields] == [
        b"one\n two", b"x" * 11 + b"\n three", b"four",
    ]  # fmt: skip
    assert b"".join(each.message for each in said).count(b"x") == 50


@pytest.mark.parametrize("size", [30_000, 200_000, 1_000_000])
def test_a_line_of_a_megabyte_arrives_whole(taker: FakeJournal, size: int) -> None:
    with JournalSite(taker.path) as site:
        content = b"before\n" + bytes(range(48, 58)) * (size // 10) + b"\nafter\n"
        with forked(site.worker()) as worker:
            for start in range(0, len(content), 777):
                os.write(site.feed.source_wfd.fileno(), content[start : start + 777])
            site.feed.source_wfd.close()
            assert worker.wait() == Exited(0)
    datagrams = list(taker.datagrams())
    assert _messages(datagrams) == content.split(b"\n")[:-1]
    assert datagrams[1].is_memfd == (size > 256 << 10)


def test_records_carry_the_supervisors_credentials(taker: FakeJournal) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may speak for another process")
    with JournalSite(taker.path) as site:
        site.feed.end_with(b"one\n" + b"x" * 1_000_000 + b"\n")
        site.run()
    assert [datagram.pid for datagram in taker.datagrams()] == [os.getpid(), os.getpid()]


@pytest.mark.parametrize("who", ["unprivileged", "init", "dead"])
def test_a_worker_without_the_privilege_uses_its_own_credentials(
    taker: FakeJournal, who: str
) -> None:
    with JournalSite(taker.path) as site:
        site.feed.end_with(b"one\ntwo\n")
        worker = site.worker()

        def work() -> None:
            if who == "unprivileged":
                os.setuid(65534)
                return worker()
            supervisor_pid = 1 if who == "init" else 2**22 - 1
            if who == "dead":  # it has just died, unreaped
                os.getppid = lambda: supervisor_pid
            return native_output.work(
                site.feed.context(), site.feed.route, site.journal, supervisor_pid
            )

        with forked(work) as child:
            assert child.wait() == Exited(0)
            pid = child.pid
    assert [datagram.pid for datagram in taker.datagrams()] == [pid, pid]


def test_a_worker_stays_until_its_records_have_been_read(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with fake_journal.bind(path) as slow, JournalSite(path) as site:
        site.feed.end_with(b"one\ntwo\n")
        with forked(site.worker()) as worker:
            site.feed.report_wfd.close()
            waiting.wait_true(lambda: site.counters.copied_bytes(0) == 8)
            with pytest.raises(TimeoutError):
                waiting.wait_process(worker.pid, 0.1)
            assert not waiting.has_hung_up(site.feed.report_rfd.fileno())
            for _each in range(2):
                fake_journal.receive(slow)
            assert worker.wait() == Exited(0)
            assert waiting.read_to_end(site.feed.report_rfd.fileno()) != b""


def test_the_wait_for_journald_to_read_is_limited(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with fake_journal.bind(path) as silent, journal_socket.connect(os.fspath(path)) as to:
        sender = journal_socket.Sender(to, os.getpid())
        assert sender.wait_until_read(0)
        sender.send(b"A=1\n")
        before_s = time.monotonic()
        assert not sender.wait_until_read(0.01)
        assert time.monotonic() - before_s >= 0.01
        silent.recv(100)
        assert sender.wait_until_read(0)


def test_a_full_socket_makes_the_worker_wait(tmp_path: Path) -> None:
    lines = [b"line %d" % number for number in range(1000)]
    path = tmp_path / "socket"
    with fake_journal.bind(path) as slow, JournalSite(path) as site:
        site.feed.end_with(b"\n".join(lines) + b"\n")
        with forked(site.worker()) as worker:
            waiting.wait_true(lambda: site.counters.in_flight_bytes(0) > 0)
            waiting.wait_true(lambda: waiting.state_of(worker.pid) == "S")
            for line in lines:
                assert fake_journal.parse(fake_journal.receive(slow)[0])["MESSAGE"] == line
            assert worker.wait() == Exited(0)


def test_a_dead_journald_is_an_error_of_the_sink_and_nothing_is_lost(
    tmp_path: Path,
) -> None:
    path = tmp_path / "socket"
    first = fake_journal.bind(path)
    with JournalSite(path) as site:
        source = site.feed.source_wfd.fileno()
        with first, forked(site.worker()):
            os.write(source, b"one\n")
            assert fake_journal.parse(first.recv(1000))["MESSAGE"] == b"one"
            waiting.wait_true(lambda: site.counters.copied_bytes(0) == 4)
        path.unlink()
        site.feed.end_with(b"two\n")
        gone = Report("stdout", 0, errno.ECONNREFUSED, "sink")
        assert site.run() == gone
        with pytest.raises(FileNotFoundError):
            site.journal.reconnect()
        with fake_journal.bind(path) as second:
            site.journal.reconnect()
            with forked(site.worker()) as worker:
                fields = fake_journal.parse(second.recv(1000))
                assert worker.wait() == Exited(0)
        assert (fields["MESSAGE"], fields["CONTAINER_LOG_ORDINAL"]) == (b"two", b"2")


def test_a_journald_that_is_not_there_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        journal_socket.connect(os.fspath(tmp_path / "socket"))


def test_a_source_that_fails_is_named(taker: FakeJournal, tmp_path: Path) -> None:
    with JournalSite(taker.path) as site:
        directory = os.open(tmp_path, os.O_RDONLY)
        os.dup2(directory, site.feed.source_rfd.fileno(), inheritable=False)
        os.close(directory)
        assert site.run() == Report("stdout", 0, errno.EISDIR, "source")


def test_an_unfinished_line_is_sent_when_the_source_is_hung_up(taker: FakeJournal) -> None:
    with JournalSite(taker.path) as site:
        with forked(site.worker()):
            os.write(site.feed.source_wfd.fileno(), b"one\ntw")
            waiting.wait_true(lambda: site.counters.copied_bytes(0) == 4)
        site.feed.hang_up()
        assert site.run() == Report("stdout", 2)
    assert _messages(list(taker.datagrams())) == [b"one", b"tw"]


SAID = b"one\n\n<4>" + b"long " * 9 + b"\n\0\xff\r\nlast"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_kill_at_any_instruction_repeats_at_most_one_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dying.small_reads(monkeypatch, 20)
    texts = [
        b"one", b"", b"long lon", b"g long long", b" long long ", b"long long l", b"ong ",
        b"\0\xff\r", b"last",
    ]  # fmt: skip

    def run(path: Path, step: int) -> int:
        with FakeJournal(path) as taker, JournalSite(path, limit_bytes=11) as site:
            site.feed.end_with(SAID)
            if step == 0:
                return dying.instructions(site.worker())
            dying.die_at(step, site.worker())
            assert site.run() is not None
            assert _messages(_without_repeats(list(taker.datagrams()), 1)) == texts
            assert site.counters.copied_bytes(0) == len(SAID)
        return 0

    for step in range(run(tmp_path / "socket", 0), 0, -3):
        run(tmp_path / "socket", step)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_kill_at_any_instruction_repeats_at_most_one_joined_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line_loop, "HOLD_MS", None)
    dying.small_reads(monkeypatch, 20)
    texts = [b"one\n a\n\tb", b"two", b"three\n c c c c", b" d", b"four"]

    def run(path: Path, step: int) -> int:
        with (
            FakeJournal(path) as taker,
            JournalSite(path, limit_bytes=15, is_joined=True) as site,
        ):
            site.feed.end_with(b"\n".join(texts) + b"\n")
            if step == 0:
                return dying.instructions(site.worker())
            dying.die_at(step, site.worker())
            assert site.run() is not None
            assert _messages(_without_repeats(list(taker.datagrams()), 1)) == texts
        return 0

    for step in range(run(tmp_path / "socket", 0), 0, -7):
        run(tmp_path / "socket", step)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_500_kills_repeat_at_most_500_records(tmp_path: Path) -> None:
    chance = random.Random(9)
    with (
        FakeJournal(tmp_path / "socket") as taker,
        JournalSite(taker.path) as site,
        ExitStack() as stack,
    ):
        writer = Writer(site.feed, _block, stack)
        worker = stack.enter_context(forked(site.worker()))
        for _each in range(500):
            writer.tell()
            select.select([], [], [], chance.uniform(0, 0.008))
            assert worker.kill() == Killed(signal.SIGKILL)
            worker = stack.enter_context(forked(site.worker()))
        writer.end()
        assert worker.wait() == Exited(0)
        datagrams = list(taker.datagrams())
        kept = _without_repeats(datagrams, 500)
        assert _messages(kept) == writer.content().split(b"\n")[:-1]


def _block(number: int) -> bytes:
    return b"".join(b"line %d of block %d\n" % (line, number) for line in range(400))


def test_what_a_small_buffer_refuses_goes_as_a_memfd(
    taker: FakeJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_socket, "ROOM_BYTES", 4096)
    monkeypatch.setattr(journal_socket, "LARGE_ROOM_BYTES", 8192)
    with JournalSite(taker.path) as site:
        site.feed.end_with(b"x" * 30_000 + b"\n")
        site.run()
    assert [datagram.is_memfd for datagram in taker.datagrams()] == [True]


def test_a_large_record_and_a_killed_worker_leave_the_send_buffer_as_small_as_it_was(
    taker: FakeJournal,
) -> None:
    with journal_socket.connect(os.fspath(taker.path)) as to:
        to.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 100 << 10)  # killed at that moment
        sender = journal_socket.Sender(to, os.getpid())
        assert _room(to) == journal_socket.ROOM_BYTES
        sender.send(b"CONTAINER_LOG_ORDINAL=1\nMESSAGE=" + b"x" * 200_000 + b"\n")
        assert _room(to) == journal_socket.ROOM_BYTES
    assert [datagram.is_memfd for datagram in taker.datagrams()] == [False]


def _room(to: socket.socket) -> int:
    return to.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) // 2  # the kernel doubles it


QUEUE = 512  # net.unix.max_dgram_qlen under systemd
STREAMS = 6


def _in_a_namespace(work: Callable[[], None]) -> None:
    """Run `work` with the size of journald's queue under systemd."""
    if os.geteuid() != 0:
        pytest.skip("only root may make a network namespace")

    def run() -> None:
        networks.make_private(QUEUE)
        work()

    with forked(run) as child:
        assert child.wait() == Exited(0)


def _fill(to: socket.socket) -> int:
    """Send records until there is no room; return their number."""
    sender = journal_socket.Sender(to, os.getpid(), is_blocking=False)
    maker = RecordMaker(Origin("0123456789abcdef", name="web"), "stdout", 6)
    sent = 0
    with suppress(BlockingIOError):
        while True:
            sender.send(maker.make(b"x" * 100, 6, sent + 1))
            sent += 1
    return sent


def test_streams_that_journald_does_not_read_leave_room_for_other_senders(
    tmp_path: Path,
) -> None:
    path = tmp_path / "socket"

    def work() -> None:
        with ExitStack() as stack:
            stack.enter_context(fake_journal.bind(path))
            for _ in range(STREAMS):
                to = stack.enter_context(journal_socket.connect(os.fspath(path)))
                assert 16 <= _fill(to) < QUEUE // STREAMS
            other = stack.enter_context(journal_socket.connect(os.fspath(path)))
            other.send(b"MESSAGE=me, too\n", socket.MSG_DONTWAIT)

    _in_a_namespace(work)


def test_a_sender_that_waits_is_woken_once_for_many_records(tmp_path: Path) -> None:
    path = tmp_path / "socket"

    def work() -> None:
        with (
            fake_journal.bind(path) as slow,
            journal_socket.connect(os.fspath(path)) as to,
        ):
            unread = sent = _fill(to)
            while not select.select([], [to], [], 0)[1]:
                fake_journal.receive(slow)
                unread -= 1
            assert 0 < unread <= sent // 2

    _in_a_namespace(work)
