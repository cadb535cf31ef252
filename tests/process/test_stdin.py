"""The stdin worker: events that it notices without a byte, and the terminal that it restores."""

from __future__ import annotations

import errno
import os
import resource
import signal
import termios
import tty
from functools import partial
from typing import TYPE_CHECKING

import pytest

from supervisor.linux import fds, spawn
from supervisor.linux.exit_status import Exited
from tests.harness import waiting
from tests.harness.forked import forked
from tests.process.test_splice import Bench
from workers.copy import stdin
from workers.copy.route import Route
from workers.process import report

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.process


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.close()


def _work(bench: Bench, route: Route) -> Callable[[], None]:
    return partial(stdin.work, bench.context("stdin"), route)


def _content(size: int) -> bytes:
    return (bytes(range(251)) * (size // 251 + 1))[:size]


@pytest.mark.parametrize("size", [0, 1, 65536, 1 << 20])
def test_every_byte_arrives_although_the_container_reads_slowly(bench: Bench, size: int) -> None:
    source_rfd, source_wfd = bench.pipe(1 << 20)
    sink_rfd, sink_wfd = bench.pipe()
    os.write(source_wfd, _content(size))
    bench.close_fd(source_wfd)
    with forked(_work(bench, Route(source_rfd, sink_wfd))) as worker:
        bench.close_fd(sink_wfd)
        assert waiting.read_to_end(sink_rfd) == _content(size)
        assert bench.reported(worker) == report.Report("stdin", size)


@pytest.mark.parametrize("size", [0, 1, 65537, 1 << 20])
def test_a_file_can_be_stdin(bench: Bench, tmp_path: Path, size: int) -> None:
    (tmp_path / "source").write_bytes(_content(size))
    source = bench.file(tmp_path / "source", os.O_RDONLY)
    sink_rfd, sink_wfd = bench.pipe()
    with forked(_work(bench, Route(source, sink_wfd))) as worker:
        bench.close_fd(sink_wfd)
        assert waiting.read_to_end(sink_rfd) == _content(size)
        assert bench.reported(worker) == report.Report("stdin", size)


def test_a_container_that_closes_its_stdin_is_noticed_without_a_byte(bench: Bench) -> None:
    source_rfd, source_wfd = bench.pipe()
    sink_rfd, sink_wfd = bench.pipe()
    os.write(source_wfd, b"x")
    with forked(_work(bench, Route(source_rfd, sink_wfd))) as worker:
        waiting.wait_readable(sink_rfd)  # the worker is running, and has nothing more to move
        bench.close_fd(sink_rfd)
        assert bench.reported(worker) == report.Report("stdin", 1, errno.EPIPE, "sink")


def test_a_container_that_closes_a_full_stdin_is_noticed_too(bench: Bench) -> None:
    source_rfd, source_wfd = bench.pipe(1 << 20)
    sink_rfd, sink_wfd = bench.pipe()
    os.write(source_wfd, _content(100_000))
    with forked(_work(bench, Route(source_rfd, sink_wfd))) as worker:
        waiting.wait_readable(sink_rfd)
        bench.close_fd(sink_rfd)
        reported = bench.reported(worker)
    assert reported is not None
    assert reported.errno == errno.EPIPE  # seen by poll(2), or by a splice(2) that came first
    assert reported.copied_bytes + fds.pending_bytes(source_rfd) == 100_000


def test_a_hung_up_source_with_a_full_sink_costs_no_processor_time(bench: Bench) -> None:
    source_rfd, source_wfd = bench.pipe(1 << 20)
    sink_rfd, sink_wfd = bench.pipe()
    os.write(source_wfd, _content(200_000))
    bench.close_fd(source_wfd)
    beat_rfd, beat_wfd = bench.pipe()

    def burn() -> None:
        while resource.getrusage(resource.RUSAGE_SELF).ru_utime < 0.2:
            pass
        os.write(beat_wfd, b"!")

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with forked(_work(bench, Route(source_rfd, sink_wfd))) as worker:
        waiting.wait_readable(sink_rfd)
        with forked(burn) as busy:  # meanwhile another process uses 0.2 s of CPU
            waiting.wait_readable(beat_rfd)
            busy.wait()
        after_busy = resource.getrusage(resource.RUSAGE_CHILDREN)
        worker.kill()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after_busy.ru_utime - before.ru_utime >= 0.2
    spent = after.ru_utime + after.ru_stime - after_busy.ru_utime - after_busy.ru_stime
    assert spent < 0.1


def test_the_worker_continues_when_a_full_stdin_is_read(bench: Bench) -> None:
    source_rfd, source_wfd = bench.pipe(1 << 20)
    sink_rfd, sink_wfd = bench.pipe()
    with forked(_work(bench, Route(source_rfd, sink_wfd))) as worker:
        bench.close_fd(sink_wfd)
        for _round in range(3):  # full and empty again, each time with more to come
            os.write(source_wfd, _content(60_000))
            got = b""
            while len(got) < 60_000:
                waiting.wait_readable(sink_rfd)
                got += os.read(sink_rfd, 60_000)
            assert got == _content(60_000)
        bench.close_fd(source_wfd)
        assert waiting.read_to_end(sink_rfd) == b""
        assert bench.reported(worker) == report.Report("stdin", 180_000)


def test_a_successor_first_moves_what_its_predecessor_left_in_the_staging_pipe(
    bench: Bench, tmp_path: Path
) -> None:
    (tmp_path / "source").write_bytes(b"second")
    source = bench.file(tmp_path / "source", os.O_RDONLY)
    staging = bench.pipe()
    os.write(staging[1], b"first ")
    master, slave = bench.pty()
    with forked(_work(bench, Route(source, master, staging))) as worker:
        assert waiting.read_until(slave, b"first second") == b"first second"
        assert bench.reported(worker) == report.Report("stdin", 12)


def test_a_pair_that_cannot_be_spliced_is_read_and_written(bench: Bench, tmp_path: Path) -> None:
    source_rfd, source_wfd = bench.pipe()
    os.write(source_wfd, b"words")
    bench.close_fd(source_wfd)
    sink = bench.file(tmp_path / "sink", os.O_WRONLY | os.O_APPEND)
    staging = bench.pipe()
    with forked(_work(bench, Route(source_rfd, sink, staging))) as worker:
        assert bench.reported(worker) == report.Report("stdin", 5)
    assert (tmp_path / "sink").read_bytes() == b"words"


def test_a_source_that_fails_is_reported(bench: Bench, tmp_path: Path) -> None:
    source = bench.own(os.open(tmp_path / "sink", os.O_WRONLY | os.O_CREAT))  # not for reading
    _sink_rfd, sink_wfd = bench.pipe()
    with forked(_work(bench, Route(source, sink_wfd))) as worker:
        assert bench.reported(worker) == report.Report("stdin", 0, errno.EBADF)


def _echoes(fd: int) -> bool:
    return bool(termios.tcgetattr(fd)[3] & termios.ECHO)


def test_a_raw_terminal_is_restored_when_the_supervisor_dies(bench: Bench) -> None:
    _user_master, user_slave = bench.pty()
    attributes = termios.tcgetattr(user_slave)
    attributes[3] |= termios.ECHO | termios.ICANON
    termios.tcsetattr(user_slave, termios.TCSANOW, attributes)
    raw = stdin.RawTerminal(user_slave, termios.tcgetattr(user_slave))
    tty.setraw(user_slave, termios.TCSANOW)
    assert not _echoes(user_slave)
    container_rfd, container_wfd = bench.pipe()
    source_rfd, source_wfd = bench.pipe()
    route = Route(source_rfd, container_wfd)
    os.write(source_wfd, b"x")

    # Stands for the supervisor: it only holds the read end of the report pipe.
    said_rfd, said_wfd = bench.pipe()

    def supervise() -> None:
        pid = spawn.fork_worker(partial(stdin.work, bench.context("stdin"), route, raw))
        os.close(bench.report_wfd.fileno())
        os.write(said_wfd, b"%d\n" % pid)
        signal.pause()

    with forked(supervise) as supervisor:
        pid = int(waiting.read_until(said_rfd, b"\n"))
        waiting.wait_readable(container_rfd)  # the worker is running
        bench.report_rfd.close()
        pidfd = bench.own(os.pidfd_open(pid))
        supervisor.kill()
        waiting.wait_readable(pidfd)
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
    assert _echoes(user_slave)
    assert termios.tcgetattr(user_slave) == raw.saved


def test_end_of_file_leaves_a_raw_terminal_raw_for_the_output_that_follows(bench: Bench) -> None:
    _user_master, user_slave = bench.pty()
    saved = termios.tcgetattr(user_slave)
    saved[3] |= termios.ECHO
    raw = stdin.RawTerminal(user_slave, saved)
    source_rfd, source_wfd = bench.pipe()
    _sink_rfd, sink_wfd = bench.pipe()
    bench.close_fd(source_wfd)
    route = Route(source_rfd, sink_wfd)
    with forked(partial(stdin.work, bench.context("stdin"), route, raw)) as worker:
        assert bench.reported(worker) == report.Report("stdin", 0)
    assert not _echoes(user_slave)


def test_a_terminal_is_restored_from_the_background_too(bench: Bench) -> None:
    _user_master, user_slave = bench.pty()
    saved = termios.tcgetattr(user_slave)
    saved[3] |= termios.ECHO
    rfd, wfd = bench.pipe()

    def session_leader() -> None:
        os.setsid()
        tty_fd = os.open(os.ttyname(user_slave), os.O_RDWR)  # becomes the controlling terminal
        pid = os.fork()
        if pid == 0:
            os.setpgid(0, 0)  # a background process group
            stdin._restore(stdin.RawTerminal(tty_fd, saved))
            os.write(wfd, b"done")
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, os.WUNTRACED)[1]) == 0
        os.close(tty_fd)

    with forked(session_leader) as child:
        assert child.wait() == Exited(0)
    assert os.read(rfd, 9) == b"done"
    assert _echoes(user_slave)
