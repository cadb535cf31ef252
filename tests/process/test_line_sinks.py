"""Outlets and files by name: what the crew does with sinks that are opened anew."""

from __future__ import annotations

import errno
import fcntl
import os
from typing import TYPE_CHECKING, Any

import pytest

from supervisor.children import restart_policy
from supervisor.children.restart_policy import ErrorAction
from supervisor.io import reopen as reopen_module
from supervisor.io.stream import Stream, StreamPhase
from supervisor.linux import fds
from supervisor.linux.errors import ShimError
from supervisor.sinks.sink import Drops
from supervisor.state.fd_store import FdWriter
from tests.harness import waiting
from tests.harness.stream_site import Site, stop_worker
from workers.process import report

if TYPE_CHECKING:
    from pathlib import Path

    from workers.copy.route import Route
    from workers.process.context import WorkerContext

pytestmark = pytest.mark.process


class Recorder:
    """An outlet that keeps what came of which source, and fails when it is told to."""

    held_bytes = 5
    is_file = True
    is_deleted = False
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

    def work(self, context: WorkerContext, route: Route) -> None:
        if self.is_broken:
            context.enter(())
            context.send(report.Report(context.stream, 0, errno.EPIPE, "sink"))
            return
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        context.enter((route.source_fd, file))
        while chunk := os.read(route.source_fd, 99):
            os.write(file, chunk)
            context.add_copied(len(chunk))
        os.write(file, b"|")
        context.send(report.Report(context.stream, context.copied_bytes))

    def reopen(self) -> None:
        self.renewed += 1
        self.is_broken = self.renewed < 3
        raise ConnectionRefusedError

    def renew_file(self) -> None:
        pass

    def snapshot(self, _fd_writer: FdWriter) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        pass


def _recorded(site: Site, recorder: Recorder) -> tuple[int, Stream]:
    source_rfd, source_wfd = fds.pipe()
    sink = fds.Fd(os.dup(site.rig.null.fileno()))
    stream = Stream("stdout", source_rfd, sink, sink_name="records", line_sink=recorder)
    site.stream_set.add(stream)
    return site.own(source_wfd.take()), stream


def test_a_worker_that_leaves_its_sink_alone_is_not_taken_for_a_stuck_one(
    site: Site, tmp_path: Path
) -> None:
    recorder = Recorder(tmp_path)
    writer, stream = _recorded(site, recorder)
    recorder.policy = "drop-new"
    site.start()
    os.write(writer, b"x")
    waiting.wait_true(lambda: site.stream_set.copied_bytes(stream) == 1)
    stop_worker(site.slot(stream))
    os.write(writer, b"y")
    assert site.slot(stream).could_move()
    slot = site.slot(stream)
    slot.trouble, slot._copied_bytes_at_fork = "No space left on device", 1
    assert not site.slot(stream).could_move()


def test_a_stream_of_records_that_is_hung_up_has_its_end_written(
    site: Site, tmp_path: Path
) -> None:
    recorder = Recorder(tmp_path)
    writer, stream = _recorded(site, recorder)
    assert stream.capacity_bytes == fds.PIPE_BYTES + 5
    site.start()
    os.write(writer, b"said")
    waiting.wait_true(lambda: site.stream_set.copied_bytes(stream) == 4)
    site.stream_set.hang_up(stream)
    assert stream.phase is StreamPhase.HANGING_UP
    site.run_until(lambda: stream.is_closed)
    with pytest.raises(BrokenPipeError):
        os.write(writer, b"too late")
    assert recorder.path.read_text() == "said|"
    assert site.slot(stream).history.deaths == 0
    assert site.rig.messages() == []


def test_a_stream_of_records_is_hung_up_in_a_pause_and_its_worker_comes_at_once(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(tmp_path)
    recorder.is_broken, recorder.renewed = True, 1
    for name in ("_SHORTEST_PAUSE_S", "LONGEST_PAUSE_S"):
        monkeypatch.setattr(restart_policy, name, 3600.0)
    site.policy(3600.0)
    _writer, stream = _recorded(site, recorder)
    site.start()
    site.run_until(lambda: recorder.renewed == 2)
    recorder.is_broken = False
    site.stream_set.hang_up(stream)
    site.run_until(lambda: stream.is_closed)
    assert recorder.path.read_text() == "|"


def test_a_file_is_opened_anew_and_an_outlet_of_one_by_its_next_worker(
    site: Site, tmp_path: Path
) -> None:
    def reopen() -> fds.Fd:
        return fds.Fd(os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT, 0o600))

    source_rfd, source_wfd = fds.pipe()
    writer = site.own(source_wfd.take())
    plain = Stream("stderr", source_rfd, reopen(), reopen=reopen)
    site.stream_set.add(plain)
    recorder = Recorder(tmp_path)
    recorder.renewed = 3  # it is whole whenever it is renewed
    _writer, stream = _recorded(site, recorder)
    site.start()
    os.write(writer, b"old")
    waiting.wait_true(lambda: site.stream_set.copied_bytes(plain) == 3)
    for _each in range(2):
        (tmp_path / "log").rename(tmp_path / "log.1")
        pids = site.slot(plain).pid, site.slot(stream).pid
        site.stream_set.reopen()
        site.run_until(
            lambda pids=pids: (  # type: ignore[misc] # called now
                site.slot(plain).pid not in (0, pids[0])
                and site.slot(stream).pid not in (0, pids[1])
            )
        )
    os.write(writer, b"new")
    site.disown(writer)
    site.run_until(lambda: plain.is_closed)
    assert (tmp_path / "log").read_bytes() == b"new"
    assert recorder.renewed == 5
    site.stream_set.reopen()
    assert site.slot(plain).pid == 0
    assert site.slot(plain).history.deaths == site.slot(stream).history.deaths == 0
    assert site.rig.messages() == []


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
    site.stream_set.add(stream)
    site.start()
    for _each in range(200):
        site.stream_set.reopen()
    assert site.stream_set.snapshot(FdWriter())["is_to_reopen"]  # a successor does it
    site.run_until(lambda: not site.stream_set.snapshot(FdWriter())["is_to_reopen"])
    os.write(writer, b"said")
    site.disown(writer)
    site.run_until(lambda: stream.is_closed)
    assert opened[-1].read_bytes() == b"said"
    assert 3 <= len(opened) < 100
    assert site.rig.messages() == []


def test_a_file_that_cannot_be_opened_anew_is_written_on(site: Site, tmp_path: Path) -> None:
    def reopen() -> fds.Fd:
        raise ShimError("open log: no such file or directory")

    source_rfd, source_wfd = fds.pipe()
    writer = site.own(source_wfd.take())
    sink = fds.Fd(os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT, 0o600))
    stream = Stream("stdout", source_rfd, sink, reopen=reopen)
    site.stream_set.add(stream)
    site.start()
    site.stream_set.reopen()
    os.write(writer, b"said")
    site.disown(writer)
    site.run_until(lambda: stream.is_closed)
    assert (tmp_path / "log").read_bytes() == b"said"
    assert site.rig.messages("warn") == [
        "stdout: open log: no such file or directory; the worker keeps the old file"
    ]


def test_a_refused_file_is_tried_again_until_it_is_opened(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reopen_module, "RETRY_S", 0.02)
    refusals = [ShimError("open log: not a regular file")] * 3

    def reopen() -> fds.Fd:
        if refusals:
            raise refusals.pop()
        return fds.Fd(os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT, 0o600))

    source_rfd, source_wfd = fds.pipe()
    writer = site.own(source_wfd.take())
    sink = fds.Fd(os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT, 0o600))
    stream = Stream("stdout", source_rfd, sink, reopen=reopen)
    site.stream_set.add(stream)
    site.stream_set.start()
    os.unlink(tmp_path / "log")
    site.stream_set.reopen()
    refusal = "open log: not a regular file; the old file was deleted, so new lines are lost"
    assert site.stream_set.trouble(stream) == refusal
    assert site.stream_set.snapshot(FdWriter())["is_to_reopen"]  # a successor goes on trying
    site.run_until(lambda: not site.stream_set.trouble(stream))
    assert not site.stream_set.snapshot(FdWriter())["is_to_reopen"]
    os.write(writer, b"said")
    site.disown(writer)
    site.run_until(lambda: stream.is_closed)
    assert (tmp_path / "log").read_bytes() == b"said"
    assert site.rig.messages("warn") == [f"stdout: {refusal}"]
    assert f"stdout: reopened (was: {refusal})" in site.rig.messages("info")


def test_an_outlet_that_fails_is_renewed_until_it_works(site: Site, tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    recorder.is_broken = True
    writer, stream = _recorded(site, recorder)
    route = stream.route
    assert route.capacity_bytes == fcntl.fcntl(route.source_fd, fcntl.F_GETPIPE_SZ)
    site.start()
    site.run_until(lambda: recorder.renewed == 3)
    os.write(writer, b"said")
    site.disown(writer)
    site.run_until(lambda: stream.is_closed)
    assert recorder.path.read_text() == "said|"
    assert site.rig.messages("warn") == [
        f"stdout records: Broken pipe (EPIPE) after 0 bytes; {ErrorAction.RETRY.value}"
    ]


@pytest.mark.parametrize("is_full", [False, True])
def test_a_worker_of_records_could_move_something_if_its_outlet_has_room(
    site: Site, tmp_path: Path, is_full: bool
) -> None:
    recorder = Recorder(tmp_path)
    recorder.is_full = is_full
    writer, stream = _recorded(site, recorder)
    site.start()
    stop_worker(site.slot(stream))
    os.write(writer, b"x")
    assert site.slot(stream).could_move() == (not is_full)
