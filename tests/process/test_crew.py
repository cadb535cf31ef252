"""The crew: killed workers are replaced, errors are mended, and nothing is lost meanwhile."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pty
import resource
import signal
import time
import tty
from typing import TYPE_CHECKING, Any

import pytest

from supervisor import fds, mending, spawn
from supervisor.crew import Crew
from supervisor.deposit import Deposit, Parcel
from supervisor.drain import DrainWatch, Verdict
from supervisor.errors import ShimError
from supervisor.mending import Mend
from supervisor.outlets import Drops
from supervisor.stream import Stream
from tests.harness import waiting
from tests.harness.forked import has_no_children
from workers import engines, output, report, stdin

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.harness.yard import Yard
    from workers.desk import Desk

pytestmark = pytest.mark.process


class Site:
    """A crew in a yard, with pipes for streams. Owns them all until `close`."""

    def __init__(self, yard: Yard, held: tuple[int, ...] = ()) -> None:
        self.yard = yard
        self.overs = 0
        self.troubles = 0
        self.crew = Crew(
            yard.loop,
            yard.reaper,
            yard.log,
            title="forkshim: site",
            null_fd=yard.null.fileno(),
            on_stream_over=self._note_over,
            on_trouble=self._note_trouble,
            held=held,
        )
        self._owned: list[fds.Fd] = []

    def _note_over(self) -> None:
        self.overs += 1

    def _note_trouble(self) -> None:
        self.troubles += 1

    def own(self, fd: int) -> int:
        self._owned.append(fds.Fd(fd))
        return fd

    def disown(self, fd: int) -> None:
        next(owner for owner in self._owned if owner.fileno() == fd).close()

    def output(self, name: str = "stdout", sink: fds.Fd | None = None) -> tuple[int, int, Stream]:
        """Add an output stream; returns the container's end, the client's end, and the stream."""
        source_rfd, source_wfd = fds.pipe()
        reader = -1
        if sink is None:
            sink_rfd, sink = fds.pipe()
            reader = self.own(sink_rfd.take())
        stream = Stream(name, source_rfd, sink, sink_name="the sink")
        self.crew.add(stream)
        return self.own(source_wfd.take()), reader, stream

    def console(self, sink: fds.Fd) -> tuple[int, Stream]:
        """Add a console; returns the container's end and the stream."""
        master, slave = pty.openpty()
        tty.setraw(slave)
        stream = Stream("console", fds.Fd(master), sink, sink_name="the sink")
        self.crew.add(stream)
        return self.own(slave), stream

    def stdin(self) -> tuple[int, int, Stream]:
        """Add stdin; returns the client's end, the container's end, and the stream."""
        source_rfd, source_wfd = fds.pipe()
        sink_rfd, sink_wfd = fds.pipe()
        stream = Stream("stdin", source_rfd, sink_wfd)
        self.crew.add(stream)
        return self.own(source_wfd.take()), self.own(sink_rfd.take()), stream

    def run_until(self, is_over: Callable[[], bool]) -> None:
        self.yard.run_until(is_over)

    def kill_worker_of(self, stream: Stream) -> None:
        """Kill the worker and serve until another one has its place."""
        killed = stream.pid
        if not stream.is_reaped:  # it may have come to its end just now
            os.kill(killed, signal.SIGKILL)
        self.run_until(lambda: stream.is_over or stream.pid not in (0, killed))

    def close(self) -> None:
        self.crew.stop()
        self.run_until(lambda: not self.crew.has_workers)
        self.crew.close()
        for owner in self._owned:
            owner.close()
        assert has_no_children()


@pytest.fixture
def site(yard: Yard) -> Iterator[Site]:
    made = Site(yard)
    yield made
    made.close()


def test_each_stream_is_copied_and_is_over_at_its_end(site: Site) -> None:
    ends = [site.output("stdout"), site.output("stderr")]
    site.crew.start()
    for number, (writer, _reader, _stream) in enumerate(ends):
        os.write(writer, b"%d" % number)
        site.disown(writer)
    site.run_until(lambda: all(stream.is_over for _w, _r, stream in ends))
    site.run_until(lambda: not site.crew.has_workers)
    for number, (_writer, reader, stream) in enumerate(ends):
        assert os.read(reader, 99) == b"%d" % number
        assert site.crew.copied_bytes(stream) == 1
        assert not waiting.has_hung_up(reader)  # the client's side stays open to the end
        assert not stream.has_pending()
    assert site.overs == 2
    assert site.yard.messages() == []


def test_a_crashed_worker_is_replaced_on_the_same_descriptors(site: Site) -> None:
    writer, reader, stream = site.output()
    site.crew.start()
    route = stream.route
    for number in range(3):
        os.write(writer, b"%d" % number)
        waiting.wait_readable(reader)
        assert os.read(reader, 99) == b"%d" % number
        waiting.wait_true(lambda number=number: site.crew.copied_bytes(stream) == number + 1)  # type: ignore[misc] # bound now
        site.kill_worker_of(stream)
        assert stream.route == route
    assert route.capacity_bytes == fcntl.fcntl(route.source_fd, fcntl.F_GETPIPE_SZ)
    assert stream.deaths == 3
    assert site.crew.copied_bytes(stream) == 3
    assert [message for message in site.yard.messages("warn") if "replaced" in message] == [
        "stdout: worker killed by SIGKILL, replaced; 1 so far",
        "stdout: worker killed by SIGKILL, replaced; 2 so far",
    ]
    site.disown(writer)
    site.run_until(lambda: stream.is_over)


def test_what_a_worker_was_killed_amidst_arrives_whole(site: Site) -> None:
    content = bytes(range(256)) * 4096
    writer, reader, stream = site.output()
    os.write(writer, content)
    site.disown(writer)
    site.crew.start()
    got = b""
    while len(got) < len(content):
        waiting.wait_readable(reader)
        got += os.read(reader, 200_000)
        if not stream.is_over:
            site.kill_worker_of(stream)
    assert got == content


def test_a_worker_that_dies_again_and_again_without_progress_is_given_pauses(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "work", lambda _desk, _route: os._exit(3))
    monkeypatch.setattr(mending, "_SHORTEST_PAUSE_S", 1e-6)
    _writer, _reader, stream = site.output()
    site.crew.start()
    site.run_until(lambda: stream.deaths == 20)
    assert stream.deaths_without_progress == 20
    assert site.yard.messages("warn") == [
        *(
            f"stdout: worker exit status 3, replaced; {deaths} so far"
            for deaths in (1, 2, 4, 8, 16)
        ),
        "stdout: degraded: its workers do not live: exit status 3; the container waits when its "
        "pipe is full, and it is tried again at least every 5 s",
    ]


def test_a_stream_whose_workers_do_not_live_says_so_until_one_does(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = output.work
    monkeypatch.setattr(output, "work", lambda _desk, _route: os._exit(3))
    monkeypatch.setattr(mending, "_SHORTEST_PAUSE_S", 1e-6)
    writer, reader, stream = site.output()
    site.crew.start()
    site.run_until(lambda: site.troubles > 0)
    assert stream.deaths == mending.DEGRADED_AFTER
    assert site.crew.trouble(stream) == "degraded: its workers do not live: exit status 3"
    monkeypatch.setattr(output, "work", work)
    os.write(writer, b"x")
    site.run_until(lambda: stream.deaths > mending.DEGRADED_AFTER and stream.pid > 0)
    waiting.wait_readable(reader)
    waiting.wait_true(lambda: site.crew.copied_bytes(stream) == 1)
    assert site.crew.trouble(stream) == ""
    assert site.yard.messages("info") == [
        "stdout: moves again, after: degraded: its workers do not live: exit status 3"
    ]


def test_progress_makes_the_earlier_deaths_forgotten(site: Site) -> None:
    writer, reader, stream = site.output()
    site.crew.start()
    for _each in range(2):
        site.kill_worker_of(stream)
    assert stream.deaths_without_progress == 2
    os.write(writer, b"x")
    waiting.wait_readable(reader)
    waiting.wait_true(lambda: site.crew.copied_bytes(stream) == 1)
    site.kill_worker_of(stream)
    assert (stream.deaths, stream.deaths_without_progress) == (3, 0)


@pytest.mark.parametrize("record", [b"junk\n", b"{", b"x" * 5000, b"{}\n"])
def test_a_report_that_is_junk_counts_as_a_crash(
    site: Site, monkeypatch: pytest.MonkeyPatch, record: bytes
) -> None:
    work = output.work

    def junk(desk: Desk, _route: engines.Route) -> None:
        monkeypatch.setattr(output, "work", work)
        rest = memoryview(record)
        while rest:
            rest = rest[os.write(desk.report_wfd, rest) :]
        os._exit(0)

    monkeypatch.setattr(output, "work", junk)
    writer, reader, stream = site.output()
    site.crew.start()
    monkeypatch.setattr(output, "work", work)
    os.write(writer, b"x")
    site.disown(writer)
    site.run_until(lambda: stream.is_over)
    assert os.read(reader, 9) == b"x"
    assert stream.deaths == 1
    assert any(message.startswith("stdout: worker: ") for message in site.yard.messages("warn"))


def test_a_sink_that_nobody_reads_hangs_up_on_the_container(site: Site) -> None:
    writer, reader, stream = site.output()
    site.crew.start()
    site.disown(reader)
    os.write(writer, b"x")
    site.run_until(lambda: stream.is_over)
    with pytest.raises(BrokenPipeError):
        os.write(writer, b"y")
    assert site.yard.messages("warn") == [
        f"stdout the sink: Broken pipe (EPIPE) after 0 bytes; {Mend.HANG_UP.value}"
    ]


def test_a_console_whose_sink_nobody_reads_is_read_on_and_thrown_away(site: Site) -> None:
    sink_rfd, sink = fds.pipe()
    slave, stream = site.console(sink)
    sink_rfd.close()
    site.crew.start()
    os.write(slave, b"x")
    site.run_until(lambda: site.yard.log_path.stat().st_size > 0)
    for _each in range(100):
        os.write(slave, b"y" * 1000)  # more than a terminal would hold
    site.disown(slave)
    site.run_until(lambda: stream.is_over)
    assert site.yard.messages("warn") == [
        f"console the sink: Broken pipe (EPIPE) after 0 bytes; {Mend.DISCARD.value}"
    ]


def test_a_full_disk_is_tried_again_and_said_once(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mending, "_SHORTEST_PAUSE_S", 1e-6)
    writer, _reader, stream = site.output(sink=fds.Fd(os.open("/dev/full", os.O_WRONLY)))
    site.crew.start()
    for errors in range(1, 6):
        os.write(writer, b"x")
        site.run_until(lambda errors=errors: stream.errors_in_a_row == errors)  # type: ignore[misc] # bound now
    assert not stream.is_over
    assert site.yard.messages("warn") == [
        f"stdout the sink: No space left on device (ENOSPC) after 0 bytes; {Mend.RETRY.value}"
    ]


def test_an_error_after_progress_is_said_again(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mending, "_SHORTEST_PAUSE_S", 1e-6)

    def moves_a_little(desk: Desk, _route: engines.Route) -> None:
        desk.moved(1)
        desk.send(report.Report(desk.stream, 1, errno.ENOSPC, "sink"))

    monkeypatch.setattr(output, "work", moves_a_little)
    _writer, _reader, stream = site.output()
    stream.sink_name = ""
    site.crew.start()
    site.run_until(lambda: len(site.yard.messages("warn")) == 2)
    assert [message.partition(";")[0] for message in site.yard.messages("warn")] == [
        "stdout: No space left on device (ENOSPC) after 1 bytes",
        "stdout: No space left on device (ENOSPC) after 2 bytes",
    ]


def test_a_container_that_closes_its_stdin_ends_it_without_a_word(site: Site) -> None:
    client, container, stream = site.stdin()
    site.crew.start()
    os.write(client, b"x")
    waiting.wait_readable(container)
    site.disown(container)
    site.run_until(lambda: stream.is_over)
    assert site.yard.messages() == []
    assert site.crew.outputs == []


def test_stdin_is_closed_at_its_end_and_the_container_sees_it(site: Site) -> None:
    client, container, stream = site.stdin()
    site.crew.start()
    os.write(client, b"x")
    site.disown(client)
    site.run_until(lambda: stream.is_over)
    assert waiting.read_to_end(container) == b"x"


def test_a_stdin_that_fails_is_said_and_closed(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(desk: Desk, _route: engines.Route, _raw: stdin.RawTerminal | None) -> None:
        desk.send(report.Report("stdin", 0, errno.EISDIR, "source"))

    monkeypatch.setattr(stdin, "work", fails)
    _client, container, stream = site.stdin()
    site.crew.start()
    site.run_until(lambda: stream.is_over)
    assert waiting.read_to_end(container) == b""
    assert site.yard.messages("warn") == [
        f"stdin: Is a directory (EISDIR) after 0 bytes; {Mend.HANG_UP.value}"
    ]


def test_a_fork_that_fails_is_tried_again(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    fork_worker = spawn.fork_worker
    failures: list[int] = []

    def fails_twice(work: Callable[[], None]) -> int:
        if len(failures) < 2:
            failures.append(errno.EAGAIN)
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return fork_worker(work)

    monkeypatch.setattr(spawn, "fork_worker", fails_twice)
    monkeypatch.setattr(mending, "FORK_AGAIN_S", 1e-6)
    writer, reader, stream = site.output()
    site.crew.start()
    os.write(writer, b"x")
    site.disown(writer)
    site.run_until(lambda: stream.is_over)
    assert os.read(reader, 9) == b"x"
    message = "stdout: fork: Resource temporarily unavailable; trying again"
    assert site.yard.messages("warn") == [f"{message}; {n} times so far" for n in (1, 2)]


def test_a_stream_that_was_given_up_is_not_given_another_worker(site: Site) -> None:
    _writer, _reader, stream = site.output()
    site.crew.start()
    site.crew.give_up(stream)
    site.run_until(lambda: not site.crew.has_workers)
    assert stream.is_over
    assert site.overs == 1
    assert has_no_children()


class Recorder:
    """An outlet that keeps what came of which source, and fails when it is told to."""

    held_bytes = 5
    is_file = True
    policy = "block"

    def __init__(self, directory: Path) -> None:
        self.path = directory / "records"
        self.path.touch()
        self.renewed = 0
        self.is_broken = False
        self.is_full = False

    def drops(self) -> Drops:
        return Drops(0, 0)

    def has_room(self, _sink_fd: int) -> bool:
        return not self.is_full

    def work(self, desk: Desk, route: engines.Route) -> None:
        if self.is_broken:
            desk.sit_down(())
            desk.send(report.Report(desk.stream, 0, errno.EPIPE, "sink"))
            return
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        desk.sit_down((route.source_fd, file))
        while chunk := os.read(route.source_fd, 99):
            os.write(file, chunk)
            desk.moved(len(chunk))
        os.write(file, b"|")
        desk.send(report.Report(desk.stream, desk.copied_bytes))

    def renew(self) -> None:
        self.renewed += 1
        self.is_broken = self.renewed < 3
        raise ConnectionRefusedError

    def pack(self, _parcel: Parcel) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        pass


def _recorded(site: Site, recorder: Recorder) -> tuple[int, Stream]:
    source_rfd, source_wfd = fds.pipe()
    sink = fds.Fd(os.dup(site.yard.null.fileno()))
    stream = Stream("stdout", source_rfd, sink, sink_name="records", outlet=recorder)
    site.crew.add(stream)
    return site.own(source_wfd.take()), stream


def test_a_worker_that_leaves_its_sink_alone_is_not_taken_for_a_stuck_one(
    site: Site, tmp_path: Path
) -> None:
    recorder = Recorder(tmp_path)
    writer, stream = _recorded(site, recorder)
    recorder.policy = "drop-new"
    site.crew.start()
    os.write(writer, b"x")
    waiting.wait_true(lambda: site.crew.copied_bytes(stream) == 1)
    _stop_worker(stream)
    os.write(writer, b"y")
    assert site.crew.could_move(stream)
    stream.trouble, stream.copied_bytes_at_fork = "No space left on device", 1
    assert not site.crew.could_move(stream)


def test_a_stream_of_records_that_is_hung_up_has_its_end_written(
    site: Site, tmp_path: Path
) -> None:
    recorder = Recorder(tmp_path)
    writer, stream = _recorded(site, recorder)
    assert stream.capacity_bytes == fds.PIPE_BYTES + 5
    site.crew.start()
    os.write(writer, b"said")
    waiting.wait_true(lambda: site.crew.copied_bytes(stream) == 4)
    site.crew.hang_up(stream)
    assert stream.is_hung_up
    site.run_until(lambda: stream.is_over)
    with pytest.raises(BrokenPipeError):
        os.write(writer, b"too late")
    assert recorder.path.read_text() == "said|"
    assert stream.deaths == 0
    assert site.yard.messages() == []


def test_a_stream_of_records_is_hung_up_in_a_pause_and_its_worker_comes_at_once(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(tmp_path)
    recorder.is_broken, recorder.renewed = True, 1
    for name in ("_SHORTEST_PAUSE_S", "LONGEST_PAUSE_S"):
        monkeypatch.setattr(mending, name, 3600.0)
    site.crew._longest_pause_s = 3600.0
    _writer, stream = _recorded(site, recorder)
    site.crew.start()
    site.run_until(lambda: recorder.renewed == 2)
    recorder.is_broken = False
    site.crew.hang_up(stream)
    site.run_until(lambda: stream.is_over)
    assert recorder.path.read_text() == "|"


def test_a_file_is_opened_anew_and_an_outlet_of_one_by_its_next_worker(
    site: Site, tmp_path: Path
) -> None:
    def reopen() -> fds.Fd:
        return fds.Fd(os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT, 0o600))

    source_rfd, source_wfd = fds.pipe()
    writer = site.own(source_wfd.take())
    plain = Stream("stderr", source_rfd, reopen(), reopen=reopen)
    site.crew.add(plain)
    recorder = Recorder(tmp_path)
    recorder.renewed = 3  # it is whole whenever it is renewed
    _writer, stream = _recorded(site, recorder)
    site.crew.start()
    os.write(writer, b"old")
    waiting.wait_true(lambda: site.crew.copied_bytes(plain) == 3)
    for _each in range(2):
        (tmp_path / "log").rename(tmp_path / "log.1")
        pids = plain.pid, stream.pid
        site.crew.reopen()
        site.run_until(lambda: plain.pid not in (0, pids[0]) and stream.pid not in (0, pids[1]))  # noqa: B023 -- called now
    os.write(writer, b"new")
    site.disown(writer)
    site.run_until(lambda: plain.is_over)
    assert (tmp_path / "log").read_bytes() == b"new"
    assert recorder.renewed == 5
    site.crew.reopen()
    assert plain.pid == 0
    assert plain.deaths == stream.deaths == 0
    assert site.yard.messages() == []


def test_files_that_are_opened_anew_all_the_time_are_written_all_the_same(
    site: Site, tmp_path: Path
) -> None:
    """A worker that is replaced at once again and again would never get to its work."""
    opened: list[Path] = []

    def reopen() -> fds.Fd:
        opened.append(tmp_path / str(len(opened)))
        return fds.Fd(os.open(opened[-1], os.O_WRONLY | os.O_CREAT, 0o600))

    source_rfd, source_wfd = fds.pipe()
    writer = site.own(source_wfd.take())
    stream = Stream("stdout", source_rfd, reopen(), reopen=reopen)
    site.crew.add(stream)
    site.crew.start()
    for _each in range(200):
        site.crew.reopen()
    assert not site.crew.is_settled  # a successor would not open it anew
    site.run_until(lambda: site.crew.is_settled)
    os.write(writer, b"said")
    site.disown(writer)
    site.run_until(lambda: stream.is_over)
    assert opened[-1].read_bytes() == b"said"
    assert 3 <= len(opened) < 100
    assert site.yard.messages() == []


def test_a_worker_that_has_failed_stays_until_another_one_holds_what_it_holds(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A supervisor that is killed in between can be followed: somebody has its deposit."""
    with contextlib.closing(Deposit()) as deposit:
        deposit.put({}, Parcel())
        site = Site(yard, held=deposit.fds)

        def fails(desk: Desk, _route: engines.Route) -> None:
            desk.send_and_keep(report.Report(desk.stream, 0, errno.ENOSPC, "sink"))

        monkeypatch.setattr(output, "work", fails)
        _writer, _reader, stream = site.output()
        site.crew.start()
        first, watch = stream.pid, stream.watch
        assert watch is not None
        waiting.wait_hangup(watch.fileno())  # it has reported, and nobody has heard it
        assert waiting.is_alive(first)
        site.run_until(lambda: stream.pid not in (0, first))
        assert waiting.is_alive(stream.pid)
        waiting.wait_process(first)
        assert stream.deaths == 0
        site.close()


def test_a_worker_that_has_come_to_its_end_is_gone_before_its_stream_is_over(yard: Yard) -> None:
    """It has the client's fifo open for reading, as only clients should have then."""
    with contextlib.closing(Deposit()) as deposit:
        deposit.put({}, Parcel())
        site = Site(yard, held=deposit.fds)
        writer, reader, stream = site.output()
        site.crew.start()
        worker = stream.pid
        os.write(writer, b"said")
        site.disown(writer)
        site.run_until(lambda: stream.is_over)
        assert not waiting.is_alive(worker)
        assert os.read(reader, 100) == b"said"
        site.close()


def test_a_file_that_cannot_be_opened_anew_is_written_on(site: Site, tmp_path: Path) -> None:
    def reopen() -> fds.Fd:
        raise ShimError("open log: no such file or directory")

    source_rfd, source_wfd = fds.pipe()
    writer = site.own(source_wfd.take())
    sink = fds.Fd(os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT, 0o600))
    stream = Stream("stdout", source_rfd, sink, reopen=reopen)
    site.crew.add(stream)
    site.crew.start()
    site.crew.reopen()
    os.write(writer, b"said")
    site.disown(writer)
    site.run_until(lambda: stream.is_over)
    assert (tmp_path / "log").read_bytes() == b"said"
    assert site.yard.messages("warn") == [
        "stdout: open log: no such file or directory; the old file is written on"
    ]


def test_an_outlet_that_fails_is_renewed_until_it_works(site: Site, tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    recorder.is_broken = True
    writer, stream = _recorded(site, recorder)
    route = stream.route
    assert route.capacity_bytes == fcntl.fcntl(route.source_fd, fcntl.F_GETPIPE_SZ)
    site.crew.start()
    site.run_until(lambda: recorder.renewed == 3)
    os.write(writer, b"said")
    site.disown(writer)
    site.run_until(lambda: stream.is_over)
    assert recorder.path.read_text() == "said|"
    assert site.yard.messages("warn") == [
        f"stdout records: Broken pipe (EPIPE) after 0 bytes; {Mend.RETRY.value}"
    ]


@pytest.mark.parametrize("is_full", [False, True])
def test_a_worker_of_records_could_move_something_if_its_outlet_has_room(
    site: Site, tmp_path: Path, is_full: bool
) -> None:
    recorder = Recorder(tmp_path)
    recorder.is_full = is_full
    writer, stream = _recorded(site, recorder)
    site.crew.start()
    os.kill(stream.pid, signal.SIGSTOP)
    os.write(writer, b"x")
    assert site.crew.could_move(stream) == (not is_full)


@pytest.mark.parametrize("how", ["give up", "stop"])
def test_a_worker_that_is_reaped_and_whose_pipe_is_unread_is_not_signalled_any_more(
    site: Site, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    _writer, _reader, stream = site.output()
    site.crew.start()
    pid = stream.pid
    os.kill(pid, signal.SIGKILL)
    waiting.wait_process(pid)
    site.yard.reaper.reap()  # the loop has not served its pipe yet: the pid may be anybody's now
    signalled: list[int] = []
    with monkeypatch.context() as patched:
        patched.setattr(os, "kill", lambda pid, _signum: signalled.append(pid))
        if how == "give up":
            site.crew.give_up(stream)
        else:
            site.crew.stop()
    assert signalled == []
    site.run_until(lambda: not site.crew.has_workers)


def test_a_stream_that_is_given_up_in_a_pause_is_not_given_another_worker(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_SHORTEST_PAUSE_S", "LONGEST_PAUSE_S"):
        monkeypatch.setattr(mending, name, 3600.0)  # no worker comes while we look
    site.crew._longest_pause_s = 3600.0
    writer, _reader, stream = site.output(sink=fds.Fd(os.open("/dev/full", os.O_WRONLY)))
    site.crew.start()
    os.write(writer, b"x")
    site.run_until(lambda: stream.errors_in_a_row == 1)
    held = stream.pid
    site.crew.give_up(stream)
    site.run_until(lambda: stream.is_over)
    assert not waiting.is_alive(held)
    assert list(site.yard.loop._deadlines_ns) == []


def _endless_pauses(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_SHORTEST_PAUSE_S", "LONGEST_PAUSE_S", "LONGEST_PAUSE_IN_DRAIN_S"):
        monkeypatch.setattr(mending, name, 3600.0)
    site.crew._longest_pause_s = 3600.0


def test_in_a_pause_there_is_a_worker_which_a_hurry_has_try_at_once(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without one, nobody could go on if the supervisor were killed just then."""
    _endless_pauses(site, monkeypatch)
    writer, _reader, stream = site.output(sink=fds.Fd(os.open("/dev/full", os.O_WRONLY)))
    site.crew.start()
    os.write(writer, b"x")
    site.run_until(lambda: stream.errors_in_a_row == 1)
    waiting.wait_title(stream.pid, "forkshim: site [stdout]")
    assert not site.crew.could_move(stream), "it is not taken for a stuck one"
    assert site.crew.trouble(stream) == "No space left on device"
    held = stream.pid
    site.crew.hurry()
    site.run_until(lambda: stream.errors_in_a_row == 2)
    waiting.wait_process(held)
    assert stream.pid
    assert stream.deaths == 0


def test_workers_that_die_at_work_are_followed_by_one_that_rests(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    _endless_pauses(site, monkeypatch)

    def works_badly(desk: Desk, route: engines.Route) -> None:
        desk.sit_down(route.fds)
        os._exit(3)

    monkeypatch.setattr(output, "work", works_badly)
    _writer, _reader, stream = site.output()
    site.crew.start()
    site.run_until(lambda: stream.deaths == 9)
    waiting.wait_title(stream.pid, "forkshim: site [stdout]")
    # One that does not even live at rest is not replaced by another one of the kind.
    os.kill(stream.pid, signal.SIGKILL)
    site.run_until(lambda: stream.deaths == 10)
    assert stream.pid == 0
    assert list(site.yard.loop._deadlines_ns) == ["fork stdout"]


def test_a_stream_has_a_scratch_pipe_unless_both_its_ends_are_pipes(
    site: Site, tmp_path: Path
) -> None:
    sink_rfd, sink_wfd = fds.pipe()
    site.own(sink_rfd.take())
    _slave, console = site.console(sink_wfd)
    file = fds.Fd(os.open(tmp_path / "sink", os.O_WRONLY | os.O_CREAT))
    _writer, _none, to_file = site.output(sink=file)
    _writer, _reader, plain = site.output()
    for stream in (console, to_file):
        assert stream.scratch is not None
        assert stream.route.fds == (
            stream.source.fileno(),
            stream.sink.fileno(),
            *(end.fileno() for end in stream.scratch),
        )
    assert plain.scratch is None
    assert plain.route.fds == (plain.source.fileno(), plain.sink.fileno())
    assert console.route.source_is_console
    assert not plain.route.source_is_console


def test_what_no_worker_has_taken_is_pending(site: Site) -> None:
    writer, _reader, stream = site.output()
    assert not stream.has_pending()
    os.write(writer, b"x")
    assert stream.has_pending()


def test_a_hung_up_console_has_its_end_pending(site: Site) -> None:
    slave, stream = site.console(fds.Fd(os.open(os.devnull, os.O_WRONLY)))
    os.write(slave, b"x")
    waiting.wait_true(stream.has_pending)  # the kernel hands it over in the background
    os.read(stream.source.fileno(), 9)
    assert not stream.has_pending()
    site.disown(slave)
    assert stream.has_pending()


# What the drain sees of the streams.


def _fifo_sink(site: Site, path: Path) -> tuple[int, fds.Fd]:
    """Return a client's reading end and the shim's sink, as the stdio opener makes it."""
    os.mkfifo(path)
    return site.own(os.open(path, os.O_RDONLY | os.O_NONBLOCK)), fds.Fd(os.open(path, os.O_RDWR))


def test_what_a_client_with_an_open_fifo_has_not_read_is_safe_and_otherwise_counts(
    site: Site, tmp_path: Path
) -> None:
    reader, sink = _fifo_sink(site, tmp_path / "fifo")
    writer, _none, stream = site.output(sink=sink)
    site.crew.start()
    os.write(writer, b"abc")
    site.disown(writer)
    site.run_until(lambda: stream.is_over)
    assert stream.unread_bytes() == 0  # the client has it
    site.disown(reader)
    assert stream.unread_bytes() == 3
    again = site.own(os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK))
    assert stream.unread_bytes() == 0
    assert os.read(again, 9) == b"abc"
    stream.is_passthrough = True
    assert stream.unread_bytes() == 0


def test_a_drain_is_over_when_every_stream_has_been_reported_and_read(
    site: Site, tmp_path: Path
) -> None:
    reader, sink = _fifo_sink(site, tmp_path / "fifo")
    writer, _none, stream = site.output(sink=sink)
    site.crew.start()
    os.write(writer, b"abc")
    watch = DrainWatch(site.crew)
    watch.begin()
    assert not watch.is_over
    assert watch.judge(is_read=True, is_stopping=False) == []
    site.disown(writer)
    site.run_until(lambda: stream.is_over)
    site.disown(reader)
    assert watch.judge(is_read=True, is_stopping=False) == []  # nobody has it yet
    assert not watch.is_over
    assert watch.judge(is_read=False, is_stopping=False) == []
    assert watch.is_over
    assert watch.judge(is_read=True, is_stopping=False) == []  # not asked again


def test_a_stray_and_a_client_that_does_not_read_are_given_up_with_the_reason(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    _stray, _reader, _held = site.output("stdout")
    writer, _clogged_reader, clogged = site.output("stderr")
    os.write(writer, b"x")  # no worker has been started: it stays pending
    watch = DrainWatch(site.crew)
    assert watch.judge(is_read=True, is_stopping=False) == []
    now[0] += 0.31
    held = site.crew.streams[0]
    assert watch.judge(is_read=True, is_stopping=False) == [(held, Verdict.STRAY)]
    site.crew.hang_up(held)
    assert watch.judge(is_read=True, is_stopping=False) == []
    now[0] += 5.0
    assert not watch.is_over
    assert watch.judge(is_read=True, is_stopping=False) == [(clogged, Verdict.STALLED)]
    assert not watch.is_over
    site.crew.give_up(clogged)
    site.run_until(lambda: clogged.is_over)
    assert watch.is_over
    assert clogged.drops == (1, 0)


def test_a_stopped_worker_is_replaced_once_before_its_stream_is_given_up(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    writer, reader, stream = site.output()
    site.crew.start()
    _stop_worker(stream)
    os.write(writer, b"one\ntwo\nhalf")
    watch = DrainWatch(site.crew)
    assert watch.judge(is_read=True, is_stopping=False) == []
    now[0] += 5.0
    assert watch.judge(is_read=True, is_stopping=False) == [(stream, Verdict.STUCK)]
    stopped = stream.pid
    monkeypatch.setattr(output, "work", lambda _desk, _route: signal.pause())
    site.crew.kill_worker(stream)
    site.run_until(lambda: stream.pid not in (0, stopped))
    assert watch.judge(is_read=True, is_stopping=False) == []
    now[0] += 4.9
    assert watch.judge(is_read=True, is_stopping=False) == []
    now[0] += 0.2
    assert watch.judge(is_read=True, is_stopping=False) == [(stream, Verdict.STALLED)]
    monkeypatch.undo()
    site.crew.give_up(stream)
    site.run_until(lambda: stream.is_over)
    assert stream.drops == (12, 2)
    assert not waiting.is_readable(reader)
    assert site.yard.messages("warn")[-1] == "stdout the sink: dropped 12 bytes, 2 lines"


def _stop_worker(stream: Stream) -> None:
    os.kill(stream.pid, signal.SIGSTOP)
    waiting.wait_true(lambda: waiting.state_of(stream.pid) == "T")


def test_our_own_callers_pipe_is_waited_for_until_a_stop(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    writer, _reader, stream = site.output()
    stream.is_passthrough = True
    os.write(writer, b"x")
    watch = DrainWatch(site.crew)
    now[0] += 1000.0
    assert watch.judge(is_read=True, is_stopping=False) == []
    now[0] += 1000.0
    assert watch.judge(is_read=True, is_stopping=False) == []
    assert watch.judge(is_read=True, is_stopping=True) == [(stream, Verdict.STALLED)]


def test_the_rule_is_asked_after_2_ms_and_then_ever_less_often(site: Site) -> None:
    watch = DrainWatch(site.crew)
    assert watch.is_over  # no stream at all
    assert [watch.next_look_s() for _each in range(7)] == [
        0.002, 0.004, 0.008, 0.016, 0.032, 0.05, 0.05,
    ]  # fmt: skip


def test_without_a_free_descriptor_a_killed_worker_is_replaced_later(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mending, "FORK_AGAIN_S", 0.01)
    writer, reader, stream = site.output()
    site.crew.start()
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    killed = stream.pid
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
    try:
        os.kill(killed, signal.SIGKILL)
        site.run_until(lambda: stream.failed_forks >= 3)
        assert stream.pid == 0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    os.write(writer, b"some")
    site.run_until(lambda: stream.pid != 0)
    waiting.wait_readable(reader)
    assert os.read(reader, 9) == b"some"
    said = [text for text in site.yard.messages("warn") if "fork" in text]
    assert said[0] == "stdout: fork: Too many open files; trying again; 1 times so far"
    assert len(said) <= 3, "1, 2, 4, ...: no log is filled with it"
