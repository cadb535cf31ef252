"""The splice copy: every pair of file kinds, every size near a pipe's, every way to fail."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pty
import signal
import socket
import tty
from functools import partial
from typing import TYPE_CHECKING

import pytest

from supervisor.linux import fds
from supervisor.linux.exit_status import Exited, Killed
from tests.harness import waiting
from tests.harness.forked import file_limit, finishing, forked
from tests.harness.pauses import Pauses
from workers.copy import splice, staging
from workers.copy.batching import LEAST_RUN
from workers.copy.output import work as output_work
from workers.copy.route import CopyError, Route
from workers.process import isolate, report
from workers.process.context import WorkerContext
from workers.process.counters import StreamCounters

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.harness.forked import Child

pytestmark = pytest.mark.process

PIPE_BYTES = fds.PIPE_BYTES
SIZES = [0, 1, 65535, 65536, 65537, 1 << 20]


def _content(size: int) -> bytes:
    return (bytes(range(251)) * (size // 251 + 1))[:size]


class Bench:
    """Descriptors, counters and a context for one worker; owns them all until `close`."""

    def __init__(self) -> None:
        self.counters = StreamCounters()
        self.report_rfd, self.report_wfd = fds.pipe(4096)
        self.null = fds.Fd(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
        self._owned = [self.report_rfd, self.report_wfd, self.null]

    def own(self, fd: int) -> int:
        self._owned.append(fds.Fd(fd))
        return fd

    def close_fd(self, fd: int) -> None:
        next(owner for owner in self._owned if owner.fileno() == fd).close()

    def pipe(self, capacity: int = 4096) -> tuple[int, int]:
        rfd, wfd = fds.pipe(capacity)
        fcntl.fcntl(wfd.fileno(), fcntl.F_SETPIPE_SZ, capacity)  # `fds.pipe` never shrinks a pipe
        return self.own(rfd.take()), self.own(wfd.take())

    def pty(self) -> tuple[int, int]:
        master, slave = pty.openpty()
        tty.setraw(slave)
        return self.own(master), self.own(slave)

    def file(self, path: Path, flags: int) -> int:
        return self.own(os.open(path, flags | os.O_CREAT | os.O_CLOEXEC, 0o600))

    def context(self, stream: str = "stdout") -> WorkerContext:
        return WorkerContext(
            stream=stream,
            title=f"forkshim: bench [{stream}]",
            counters=self.counters,
            slot=0,
            report_wfd=self.report_wfd.fileno(),
            null_fd=self.null.fileno(),
        )

    def worker(self, route: Route, stream: str = "stdout") -> Callable[[], None]:
        return lambda: output_work(self.context(stream), route)

    def reported(self, child: Child) -> report.Report | None:
        """Wait for the worker's exit, and return its report."""
        self.report_wfd.close()
        record = waiting.read_to_end(self.report_rfd.fileno())
        assert child.wait() == Exited(0)
        return report.decode(record)

    def close(self) -> None:
        for owner in self._owned:
            owner.close()
        self.counters.close()


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.close()


def _has_size(path: Path, size: int) -> bool:
    return path.stat().st_size == size


def _write_in_background(fd: int, content: bytes) -> Callable[[], None]:
    def work() -> None:
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(fd, rest) :]

    return work


@pytest.mark.parametrize("size", SIZES)
def test_pipe_to_pipe_every_byte_arrives_in_order_and_is_counted(bench: Bench, size: int) -> None:
    source_rfd, source_wfd = bench.pipe()
    sink_rfd, sink_wfd = bench.pipe()  # far smaller than the content: clogged most of the time
    with (
        finishing(_write_in_background(source_wfd, _content(size))),
        forked(bench.worker(Route(source_rfd, sink_wfd))) as worker,
    ):
        bench.close_fd(source_wfd)
        bench.close_fd(sink_wfd)
        assert waiting.read_to_end(sink_rfd) == _content(size)
        assert bench.reported(worker) == report.Report("stdout", size)
    assert bench.counters.copied_bytes(0) == size


def test_a_slow_reader_of_a_socket_is_seen_to_read(bench: Bench) -> None:
    """A drain gives up after 5 s without progress: seen with journald under load."""
    source_rfd, source_wfd = bench.pipe(1 << 20)
    reader, sink = socket.socketpair()
    reader_fd = bench.own(reader.detach())
    sink_fd = bench.own(sink.detach())
    staging_pipe = bench.pipe(1 << 20)
    os.write(source_wfd, _content(1 << 20))
    with forked(bench.worker(Route(source_rfd, sink_fd, staging_pipe))) as worker:
        read = 0
        while read < 256 << 10:
            read += len(os.read(reader_fd, 1 << 16))
        waiting.wait_true(lambda: bench.counters.copied_bytes(0) >= 256 << 10)
        worker.kill()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_WRONLY | os.O_APPEND])
def test_pipe_to_file_also_where_splice_is_refused(
    bench: Bench, tmp_path: Path, size: int, flags: int
) -> None:
    path = tmp_path / "sink"
    path.write_bytes(b"before")
    source_rfd, source_wfd = bench.pipe()
    sink = bench.file(path, flags)
    os.lseek(sink, 0, os.SEEK_END)
    with (
        finishing(_write_in_background(source_wfd, _content(size))),
        forked(bench.worker(Route(source_rfd, sink, bench.pipe(1 << 20)))) as worker,
    ):
        bench.close_fd(source_wfd)
        assert bench.reported(worker) == report.Report("stdout", size)
    assert path.read_bytes() == b"before" + _content(size)
    assert bench.counters.copied_bytes(0) == size


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_WRONLY | os.O_APPEND])
def test_file_to_file_takes_the_detour_through_the_staging_pipe(
    bench: Bench, tmp_path: Path, size: int, flags: int
) -> None:
    source_path, sink_path = tmp_path / "source", tmp_path / "sink"
    source_path.write_bytes(_content(size))
    source = bench.file(source_path, os.O_RDONLY)
    route = Route(source, bench.file(sink_path, flags), bench.pipe(1 << 20))
    with forked(bench.worker(route)) as worker:
        assert bench.reported(worker) == report.Report("stdout", size)
    assert sink_path.read_bytes() == _content(size)
    assert bench.counters.copied_bytes(0) == size


@pytest.mark.parametrize("is_log", [True, False])
def test_a_file_truncated_by_another_process_is_continued_at_its_end(
    bench: Bench, tmp_path: Path, *, is_log: bool
) -> None:
    """Like logrotate's `copytruncate`. A write at the old position would leave NUL bytes before."""
    path = tmp_path / "sink"
    source_rfd, source_wfd = bench.pipe()
    sink = bench.file(path, os.O_WRONLY)
    route = Route(source_rfd, sink, bench.pipe(1 << 20), sink_is_log=is_log)
    with forked(bench.worker(route)) as worker:
        for size in (70_000, 10, 3):
            os.write(source_wfd, b"x" * min(size, 60_000))
            os.write(source_wfd, b"x" * max(0, size - 60_000))
            waiting.wait_true(partial(_has_size, path, size))
            os.truncate(path, 0)
        os.write(source_wfd, b"what comes after\n")
        bench.close_fd(source_wfd)
        assert bench.reported(worker) == report.Report("stdout", 70_013 + 17)
    assert path.read_bytes() == b"what comes after\n"


def test_a_log_is_continued_at_its_end_after_another_process_has_appended(
    bench: Bench, tmp_path: Path
) -> None:
    path = tmp_path / "sink"
    source_rfd, source_wfd = bench.pipe()
    sink = bench.file(path, os.O_WRONLY)
    route = Route(source_rfd, sink, bench.pipe(1 << 20), sink_is_log=True)
    with forked(bench.worker(route)) as worker:
        os.write(source_wfd, b"one\n")
        waiting.wait_true(lambda: path.stat().st_size == 4)
        with open(path, "ab") as stranger:
            stranger.write(b"strange\n")
        os.write(source_wfd, b"two\n")
        bench.close_fd(source_wfd)
        assert bench.reported(worker) == report.Report("stdout", 8)
    assert path.read_bytes() == b"one\nstrange\ntwo\n"


def test_an_existing_file_is_overwritten_from_where_the_descriptor_stands(
    bench: Bench, tmp_path: Path
) -> None:
    """Only a position behind the end is corrected: a `path:` is not truncated, as in 2016."""
    path = tmp_path / "sink"
    path.write_bytes(b"0123456789")
    source_rfd, source_wfd = bench.pipe()
    sink = bench.file(path, os.O_WRONLY)
    with forked(bench.worker(Route(source_rfd, sink, bench.pipe(1 << 20)))) as worker:
        os.write(source_wfd, b"ab")
        bench.close_fd(source_wfd)
        assert bench.reported(worker) == report.Report("stdout", 2)
    assert path.read_bytes() == b"ab23456789"


def test_what_a_killed_worker_left_in_the_staging_pipe_is_moved_first_by_its_successor(
    bench: Bench, tmp_path: Path
) -> None:
    content = _content(300_000)
    source_path, sink_path = tmp_path / "source", tmp_path / "sink"
    source_path.write_bytes(content)
    staging_fds = bench.pipe(1 << 20)
    sink = bench.file(sink_path, os.O_WRONLY)
    route = Route(bench.file(source_path, os.O_RDONLY), sink, staging_fds)

    def killed_between_its_two_splices() -> None:
        os.splice(route.source_fd, staging_fds[1], 100_000)
        os.splice(staging_fds[0], route.sink_fd, 30_000)
        os.kill(os.getpid(), signal.SIGKILL)

    with forked(killed_between_its_two_splices) as first:
        assert first.wait() == Killed(signal.SIGKILL)
    assert fds.pending_bytes(staging_fds[0]) > 0
    assert bench.counters.in_flight_bytes(0) == 0  # killed before it could count them
    with forked(bench.worker(route)) as second:
        assert bench.reported(second) == report.Report("stdout", 270_000)
    assert bench.counters.in_flight_bytes(0) == 0
    assert sink_path.read_bytes() == content


def test_bytes_are_in_flight_before_they_leave_the_source(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a drain that looks between the splice and its count sees an idle worker."""
    rfd, wfd = bench.pipe()
    os.write(wfd, b"words")
    staging_fds = bench.pipe()
    route = Route(rfd, bench.file(tmp_path / "sink", os.O_WRONLY), staging_fds)
    seen: list[int] = []
    splice_call = os.splice

    def watched(source_fd: int, sink_fd: int, most_bytes: int, *, flags: int) -> int:
        moved = splice_call(source_fd, sink_fd, most_bytes, flags=flags)
        seen.append(bench.counters.in_flight_bytes(0))
        return moved

    monkeypatch.setattr(os, "splice", watched)
    assert staging.fill(route, staging_fds, bench.context()) == 5
    assert seen == [1]
    assert bench.counters.in_flight_bytes(0) == 5
    with pytest.raises(BlockingIOError):
        staging.fill(route, staging_fds, bench.context())
    assert bench.counters.in_flight_bytes(0) == 0


def test_a_worker_killed_in_a_clogged_pipe_loses_and_repeats_nothing(bench: Bench) -> None:
    content = _content(1 << 20)
    source_rfd, source_wfd = bench.pipe()
    sink_rfd, sink_wfd = bench.pipe()
    route = Route(source_rfd, sink_wfd)
    got = b""
    with finishing(_write_in_background(source_wfd, content)):
        bench.close_fd(source_wfd)
        for _each in range(20):
            with forked(bench.worker(route)) as worker:
                waiting.wait_readable(sink_rfd)
                got += os.read(sink_rfd, 10_000)
                worker.kill()
        with forked(bench.worker(route)) as worker:
            bench.close_fd(sink_wfd)
            got += waiting.read_to_end(sink_rfd)
            assert bench.reported(worker) is not None
    assert got == content


class Paced(Bench):
    """A worker between two pipes, whose pauses the test can watch."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, is_direct: bool) -> None:
        super().__init__()
        self.pauses = Pauses(monkeypatch)
        self.source_rfd, self.source_wfd = self.pipe(PIPE_BYTES)
        self.sink_rfd, sink_wfd = self.pipe(PIPE_BYTES)
        staging_fds = None if is_direct else self.pipe(PIPE_BYTES)
        self.route = Route(self.source_rfd, sink_wfd, staging_fds)

    def work(self) -> None:
        context = self.context()
        output_work(context, self.route)

    def write(self, count: int) -> None:
        for _each in range(count):
            assert os.write(self.source_wfd, b"x" * 79 + b"\n") == 80

    def begin_a_burst(self) -> None:
        """Write, and read the output, until the worker pauses."""
        for _each in range(LEAST_RUN):
            assert self.pauses.none_has_begun
            self.write(1)
            waiting.wait_readable(self.sink_rfd)
            assert len(os.read(self.sink_rfd, 1000)) == 80
        self.pauses.wait()

    def close_source(self) -> None:
        self.close_fd(self.source_wfd)

    def close(self) -> None:
        self.pauses.close()
        super().close()


@pytest.fixture(params=[True, False], ids=["direct", "staging"])
def paced(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Paced]:
    made = Paced(monkeypatch, is_direct=request.param)
    yield made
    made.close()


def test_what_is_written_in_a_pause_is_moved_at_once_when_it_is_over(paced: Paced) -> None:
    with forked(paced.work):
        paced.begin_a_burst()
        for _each in range(3):
            paced.write(1000)
            assert fds.pending_bytes(paced.source_rfd) == 80_000
            paced.pauses.end()
            paced.pauses.wait()  # a pause follows each move, so this was a single move
            assert len(os.read(paced.sink_rfd, 1 << 20)) == 80_000


def test_all_that_came_has_reached_the_sink_before_a_pause(paced: Paced) -> None:
    """To the supervisor, bytes that come in a pause are pending in the source, not in flight."""
    with forked(paced.work):
        paced.begin_a_burst()
        paced.write(1)
        assert paced.counters.copied_bytes(0) == LEAST_RUN * 80
        assert paced.counters.in_flight_bytes(0) == 0
        assert waiting.is_readable(paced.source_rfd)


def test_an_end_of_file_in_a_pause_is_the_end_after_it(paced: Paced) -> None:
    with forked(paced.work) as worker:
        paced.begin_a_burst()
        paced.write(5)
        paced.close_source()
        for _each in range(2):  # another pause may follow the last bytes
            paced.pauses.end()
        assert paced.reported(worker) == report.Report("stdout", (LEAST_RUN + 5) * 80)
        assert len(os.read(paced.sink_rfd, 1000)) == 5 * 80


def test_a_worker_killed_in_a_pause_loses_and_repeats_nothing(paced: Paced) -> None:
    for _each in range(3):
        with forked(paced.work) as worker:
            paced.begin_a_burst()
            paced.write(7)
            paced.pauses.end()
            paced.pauses.wait()
            paced.write(5)
            assert worker.kill() == Killed(signal.SIGKILL)
        assert fds.pending_bytes(paced.sink_rfd) == 7 * 80
        with forked(paced.work) as successor:
            waiting.wait_true(lambda: fds.pending_bytes(paced.sink_rfd) >= 12 * 80)
            assert len(os.read(paced.sink_rfd, 2000)) == 12 * 80
            assert paced.pauses.none_has_begun
            successor.kill()


def test_no_pause_delays_a_terminal(bench: Bench, tmp_path: Path) -> None:
    master, slave = bench.pty()
    source_rfd, sink_wfd = bench.pipe()

    def is_seen(source_fd: int, sink_fd: int, capacity_bytes: int, *, is_console: bool) -> bool:
        route = Route(
            source_fd, sink_fd, source_is_console=is_console, capacity_bytes=capacity_bytes
        )
        return route.batching().seen_below_bytes > 0

    assert is_seen(source_rfd, sink_wfd, PIPE_BYTES, is_console=False)
    assert is_seen(source_rfd, bench.file(tmp_path / "f", os.O_WRONLY), 1, is_console=False)
    assert not is_seen(source_rfd, sink_wfd, 0, is_console=False)
    assert not is_seen(source_rfd, slave, PIPE_BYTES, is_console=False)
    assert not is_seen(master, sink_wfd, PIPE_BYTES, is_console=True)


def test_what_a_console_has_is_moved_at_once(bench: Bench) -> None:
    """A console gives one page at a time; a move per page would cost twice as much."""
    master, slave = bench.pty()
    sink_rfd, sink_wfd = bench.pipe(1 << 20)
    route = Route(master, sink_wfd, bench.pipe(1 << 20), source_is_console=True)
    said = _content(10_000)
    os.set_blocking(slave, False)
    left = memoryview(said)
    with contextlib.suppress(BlockingIOError):
        while left:
            left = left[os.write(slave, left) :]
    queued = len(said) - len(left)
    assert queued > 4096
    waiting.wait_readable(master)
    assert route.staging is not None
    moved = staging.fill(route, route.staging, bench.context("console"))
    assert moved == queued
    staging.empty(route, route.staging, bench.context("console"))
    assert os.read(sink_rfd, len(said)) == said[:queued]
    os.set_blocking(master, False)
    with pytest.raises(BlockingIOError):
        staging.fill(route, route.staging, bench.context("console"))


@pytest.mark.parametrize("size", [0, 1, 65537])
def test_a_console_to_a_pipe_ends_with_eio(bench: Bench, size: int) -> None:
    master, slave = bench.pty()
    sink_rfd, sink_wfd = bench.pipe()
    staging_fds = bench.pipe(1 << 20)
    route = Route(master, sink_wfd, staging_fds, source_is_console=True)
    with finishing(_write_in_background(slave, _content(size))) as writer:
        bench.close_fd(slave)
        with forked(bench.worker(route, "console")) as worker:
            bench.close_fd(sink_wfd)
            assert waiting.read_to_end(sink_rfd) == _content(size)
            assert bench.reported(worker) == report.Report("console", size)
        assert writer.wait() == Exited(0)


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_WRONLY | os.O_APPEND])
def test_a_console_to_a_file_ends_with_eio(bench: Bench, tmp_path: Path, flags: int) -> None:
    master, slave = bench.pty()
    sink = bench.file(tmp_path / "sink", flags)
    route = Route(master, sink, bench.pipe(1 << 20), source_is_console=True)
    with finishing(_write_in_background(slave, b"words")) as writer:
        bench.close_fd(slave)
        with forked(bench.worker(route, "console")) as worker:
            assert bench.reported(worker) == report.Report("console", 5)
        assert writer.wait() == Exited(0)
    assert (tmp_path / "sink").read_bytes() == b"words"


def test_eio_of_a_terminal_that_is_no_console_is_an_error(bench: Bench, tmp_path: Path) -> None:
    master, slave = bench.pty()
    bench.close_fd(slave)
    route = Route(
        master, bench.file(tmp_path / "sink", os.O_WRONLY), bench.pipe(), source_is_console=False
    )
    with forked(bench.worker(route)) as worker:
        assert bench.reported(worker) == report.Report("stdout", 0, errno.EIO, "source")


def test_a_read_that_fails_after_splice_was_refused_is_the_sources(
    bench: Bench, tmp_path: Path
) -> None:
    source = bench.own(os.open(tmp_path, os.O_RDONLY | os.O_CLOEXEC))  # a directory
    sink_rfd, sink_wfd = bench.pipe()
    route = Route(source, sink_wfd, bench.pipe())
    with forked(bench.worker(route)) as worker:
        assert bench.reported(worker) == report.Report("stdout", 0, errno.EISDIR, "source")
    assert fds.pending_bytes(sink_rfd) == 0


def test_what_a_full_disk_refuses_is_put_back_also_without_splice(bench: Bench) -> None:
    source_rfd, source_wfd = bench.pipe()
    staging_fds = bench.pipe()
    sink = bench.own(os.open("/dev/full", os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC))
    os.write(source_wfd, b"words")
    with forked(bench.worker(Route(source_rfd, sink, staging_fds))) as worker:
        assert bench.reported(worker) == report.Report("stdout", 0, errno.ENOSPC, "sink")
    assert os.read(staging_fds[0], 100) == b"words"


def test_a_reader_that_has_left_is_reported_as_epipe_of_the_sink(bench: Bench) -> None:
    source_rfd, source_wfd = bench.pipe()
    sink_rfd, sink_wfd = bench.pipe()
    os.write(source_wfd, b"x")
    bench.close_fd(sink_rfd)
    with forked(bench.worker(Route(source_rfd, sink_wfd))) as worker:
        assert bench.reported(worker) == report.Report("stdout", 0, errno.EPIPE, "sink")
    assert fds.pending_bytes(source_rfd) == 1  # not lost


def test_a_full_device_is_reported_and_nothing_counted(bench: Bench) -> None:
    source_rfd, source_wfd = bench.pipe()
    os.write(source_wfd, b"x")
    sink = bench.own(os.open("/dev/full", os.O_WRONLY | os.O_CLOEXEC))
    with forked(bench.worker(Route(source_rfd, sink, bench.pipe()))) as worker:
        assert bench.reported(worker) == report.Report("stdout", 0, errno.ENOSPC, "sink")
    assert bench.counters.copied_bytes(0) == 0


def test_a_full_disk_behind_the_staging_pipe_leaves_the_rest_in_it(
    bench: Bench, tmp_path: Path
) -> None:
    (tmp_path / "source").write_bytes(_content(10_000))
    staging_fds = bench.pipe(1 << 20)
    sink = bench.file(tmp_path / "sink", os.O_WRONLY)
    route = Route(bench.file(tmp_path / "source", os.O_RDONLY), sink, staging_fds)

    def limited() -> None:
        with file_limit(4096):
            output_work(bench.context(), route)

    with forked(limited) as worker:
        assert bench.reported(worker) == report.Report("stdout", 4096, errno.EFBIG, "sink")
    assert fds.pending_bytes(staging_fds[0]) == 10_000 - 4096
    assert bench.counters.in_flight_bytes(0) == 10_000 - 4096


def test_a_file_that_may_not_grow_is_reported_and_does_not_kill_the_worker(
    bench: Bench, tmp_path: Path
) -> None:
    source_rfd, source_wfd = bench.pipe()
    os.write(source_wfd, b"x" * 4096)
    staging_fds = bench.pipe(1 << 20)
    route = Route(source_rfd, bench.file(tmp_path / "sink", os.O_WRONLY), staging_fds)

    def limited() -> None:
        with file_limit(100):
            output_work(bench.context(), route)

    with forked(limited) as worker:
        assert bench.reported(worker) == report.Report("stdout", 100, errno.EFBIG, "sink")
    assert fds.pending_bytes(staging_fds[0]) == 3996


def _make_non_blocking(*numbers: int) -> None:
    for fd in numbers:
        os.set_blocking(fd, False)


def test_non_blocking_ends_are_polled_and_keep_their_flags(bench: Bench) -> None:
    content = _content(1 << 20)
    source_rfd, source_wfd = bench.pipe()
    sink_rfd, sink_wfd = bench.pipe()
    _make_non_blocking(source_rfd, sink_wfd)
    with forked(bench.worker(Route(source_rfd, sink_wfd))) as worker:
        bench.close_fd(sink_wfd)
        os.write(source_wfd, b"first")
        assert waiting.read_until(sink_rfd, b"first") == b"first"
        with finishing(_write_in_background(source_wfd, content)):
            bench.close_fd(source_wfd)
            assert waiting.read_to_end(sink_rfd) == content
        assert bench.reported(worker) == report.Report("stdout", 5 + len(content))
    assert fcntl.fcntl(source_rfd, fcntl.F_GETFL) & os.O_NONBLOCK


def test_a_non_blocking_terminal_to_a_non_blocking_socket_by_the_staging_pipe(
    bench: Bench,
) -> None:
    content = _content(400_000)
    master, slave = bench.pty()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        _make_non_blocking(master, theirs.fileno())
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # full again and again
        route = Route(master, theirs.fileno(), bench.pipe(1 << 20), source_is_console=True)
        with (
            finishing(_write_in_background(slave, content)),
            forked(bench.worker(route, "console")) as worker,
        ):
            bench.close_fd(slave)
            theirs.close()
            assert waiting.read_to_end(ours.fileno()) == content
            assert bench.reported(worker) == report.Report("console", len(content))


def test_a_socket_to_an_append_only_file_by_read_and_write(bench: Bench, tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.setblocking(False)
        sink = bench.file(tmp_path / "sink", os.O_WRONLY | os.O_APPEND)
        route = Route(theirs.fileno(), sink, bench.pipe())
        with forked(bench.worker(route)) as worker:
            theirs.close()
            ours.sendall(b"words")
            ours.close()
            assert bench.reported(worker) == report.Report("stdout", 5)
    assert (tmp_path / "sink").read_bytes() == b"words"


def test_a_pair_that_splices_with_an_unforeseen_error_names_no_side(bench: Bench) -> None:
    rfd, wfd = bench.pipe()
    with pytest.raises(CopyError) as caught:
        splice.copy(Route(wfd, rfd), bench.context())
    assert (caught.value.errno, caught.value.side) == (errno.EBADF, "")
    assert str(caught.value) == "Bad file descriptor"


def test_an_error_without_an_errno_counts_as_none() -> None:
    assert CopyError(OSError("x"), "sink").errno == 0


def test_a_route_names_every_descriptor_it_needs() -> None:
    assert Route(3, 4).fds == (3, 4)
    assert Route(3, 4, (5, 6)).fds == (3, 4, 5, 6)


def test_counters_are_shared_with_children_and_survive_them() -> None:
    counters = StreamCounters()
    counters.add_copied(0, 2**40)
    counters.set_in_flight(1, 2**41)
    for _each in range(2):
        with forked(lambda: counters.add_copied(1, 7)) as child:
            assert child.wait() == Exited(0)
    assert (counters.copied_bytes(0), counters.copied_bytes(1)) == (2**40, 14)
    assert (counters.in_flight_bytes(0), counters.in_flight_bytes(1)) == (0, 2**41)
    counters.close()


def test_a_worker_keeps_its_own_descriptors_only_and_its_title(bench: Bench) -> None:
    source_rfd, source_wfd = bench.pipe()
    sink_rfd, sink_wfd = bench.pipe()
    extra = bench.own(os.open(os.devnull, os.O_RDONLY))
    os.write(source_wfd, b"x")
    with forked(bench.worker(Route(source_rfd, sink_wfd))) as worker:
        waiting.wait_readable(sink_rfd)
        open_fds = {int(name) for name in os.listdir(f"/proc/{worker.pid}/fd")}
        kept = {source_rfd, sink_wfd, bench.report_wfd.fileno()}
        assert open_fds == {0, 1, 2, *kept}
        assert extra not in open_fds
        for fd in range(3):
            assert os.readlink(f"/proc/{worker.pid}/fd/{fd}") == "/dev/null"
        assert waiting.title_of(worker.pid) == "forkshim: bench [stdout]"


def test_a_descriptor_below_3_cannot_be_kept() -> None:
    def work() -> None:
        null = os.open(os.devnull, os.O_RDWR)
        with pytest.raises(ValueError, match="descriptor 1 cannot be kept"):
            isolate.enter_worker("forkshim: bench", (1, 99), null)

    with forked(work) as child:
        assert child.wait() == Exited(0)


def test_a_worker_ignores_the_signals_that_stop_a_service(bench: Bench) -> None:
    source_rfd, source_wfd = bench.pipe()
    sink_rfd, sink_wfd = bench.pipe()
    os.write(source_wfd, b"x")
    with forked(bench.worker(Route(source_rfd, sink_wfd))) as worker:
        waiting.wait_readable(sink_rfd)
        for signum in (
            *(signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1),
            *(signal.SIGUSR2, signal.SIGALRM, signal.SIGIO, signal.SIGPWR, signal.SIGPIPE),
            *(signal.SIGXFSZ, signal.SIGWINCH, signal.SIGCHLD),
            *range(signal.SIGRTMIN, signal.SIGRTMAX + 1),
        ):
            os.kill(worker.pid, signum)
        assert os.read(sink_rfd, 2) == b"x"  # room, or splice(2) would not look for the end
        bench.close_fd(source_wfd)
        assert bench.reported(worker) == report.Report("stdout", 1)


def test_a_report_to_a_dead_supervisor_is_no_error(bench: Bench) -> None:
    source_rfd, source_wfd = bench.pipe()
    _sink_rfd, sink_wfd = bench.pipe()
    bench.close_fd(source_wfd)
    bench.report_rfd.close()
    with forked(bench.worker(Route(source_rfd, sink_wfd))) as worker:
        assert worker.wait() == Exited(0)
