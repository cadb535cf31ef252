"""What a successor would need is held by somebody else than the supervisor, at every instant."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from typing import TYPE_CHECKING

import pytest

from supervisor.children import restart_policy
from supervisor.children.restart_policy import FailureHistory
from supervisor.io import worker_process
from supervisor.io.stream import Stream, StreamPhase
from supervisor.io.worker_process import WorkerState
from supervisor.linux import fds, spawn
from supervisor.state.fd_store import FdStore, FdWriter
from tests.harness import waiting
from tests.harness.crew_site import Site
from workers.copy import output
from workers.process import report

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from supervisor.io.slot_context import SlotContext
    from tests.harness.rig import Rig
    from workers.copy.route import Route
    from workers.process.context import WorkerContext
    from workers.process.task import Task

pytestmark = pytest.mark.process


@pytest.fixture
def site(rig: Rig) -> Iterator[Site]:
    """A crew that holds a deposit with something in it."""
    with contextlib.closing(FdStore()) as deposit:
        deposit.put({}, FdWriter())
        made = Site(rig, held=deposit.fds)
        yield made
        made.close()


def _fails(context: WorkerContext, route: Route) -> None:
    context.enter(route.fds)
    context.send_and_keep(report.Report(context.stream, 0, errno.ENOSPC, "sink"))


def _refused(_work: Callable[[], None]) -> int:
    raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))


def _keeper_of(site: Site) -> int:
    pid: int = site.stream_set.pack(FdWriter())["keeper"]
    return pid


def _wait_title(pid: int, ending: str) -> None:
    waiting.wait_true(lambda: waiting.title_of(pid).endswith(ending))


def _orphan(site: Site, stream: Stream) -> fds.Fd:
    """Let the stream's worker be that of a supervisor that was killed; returns its pidfd."""
    worker = site.slot(stream).worker
    assert worker is not None
    pidfd = fds.Fd(os.pidfd_open(worker.pid))
    worker._close_report_pipe()
    site.rig.reaper.expect(worker.pid, lambda _termination: None)  # as its new parent does
    site.slot(stream).worker = None
    return pidfd


def test_a_worker_that_has_failed_stays_until_another_one_is_there(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "work", _fails)
    _writer, _reader, stream = site.output()
    site.stream_set.start()
    first, watch = site.slot(stream).pid, site.slot(stream).worker
    assert watch is not None
    waiting.wait_hangup(watch.fileno())  # it has reported, and nobody has heard it
    assert waiting.is_alive(first)
    site.run_until(lambda: site.slot(stream).pid not in (0, first))
    assert waiting.is_alive(site.slot(stream).pid)
    waiting.wait_process(first)
    assert site.slot(stream).history.deaths == 0


def test_and_while_no_fork_succeeds(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its report counts once, whatever becomes of it."""
    monkeypatch.setattr(output, "work", _fails)
    _writer, _reader, stream = site.output()
    site.stream_set.start()
    first = site.slot(stream).pid
    with monkeypatch.context() as patch:
        patch.setattr(spawn, "fork_worker", _refused)
        site.run_until(lambda: site.slot(stream).history.failed_forks == 2)
        assert waiting.is_alive(first)
        os.kill(first, signal.SIGKILL)
        site.run_until(lambda: site.slot(stream).pid == 0)
        assert (site.slot(stream).history.errors_in_a_row, site.slot(stream).history.deaths) == (
            1,
            0,
        )
    site.run_until(lambda: site.slot(stream).pid not in (0, first))


def test_a_fork_that_was_refused_leaves_no_pause_for_a_dead_container(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "work", _fails)
    _writer, _reader, stream = site.output()
    site.slot(stream).history = FailureHistory(
        errors_in_a_row=20
    )  # the next pause is the longest one
    site.stream_set.start()
    with monkeypatch.context() as patch:
        patch.setattr(spawn, "fork_worker", _refused)
        site.run_until(lambda: bool(site.slot(stream).history.failed_forks))
        site.stream_set.hurry()
    site.run_until(lambda: not site.slot(stream).history.failed_forks)
    worker = site.slot(stream).worker
    assert worker is not None
    assert worker.task.remaining_s() <= restart_policy.LONGEST_PAUSE_IN_DRAIN_S


def test_the_workers_of_a_killed_supervisor_go_on_until_there_are_others(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, reader, stream = site.output()
    site.stream_set.start()
    orphan = site.slot(stream).pid
    with monkeypatch.context() as patch:
        patch.setattr(spawn, "fork_worker", _refused)
        site.stream_set.renew([_orphan(site, stream)])
        os.write(writer, b"said")
        waiting.wait_readable(reader)
        assert waiting.is_alive(orphan)
        assert not site.stream_set.is_settled
    site.run_until(lambda: site.stream_set.is_settled)
    assert site.slot(stream).pid not in (0, orphan)
    assert not waiting.is_alive(orphan)


def test_a_log_that_was_to_be_opened_anew_is_not_while_an_orphan_writes_it(
    site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Two workers of one stream would mix what they have."""

    def reopen() -> fds.Fd:
        return fds.Fd(os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT, 0o600))

    source_rfd, source_wfd = fds.pipe()
    site.own(source_wfd.take())
    stream = Stream("stdout", source_rfd, reopen(), reopen=reopen)
    site.stream_set.add(stream)
    site.stream_set.start()
    orphan = _orphan(site, stream)
    (tmp_path / "log").rename(tmp_path / "log.1")
    waited_for: list[int] = []
    fork = worker_process.fork

    def count(
        context: SlotContext,
        stream: Stream,
        number: int,
        task: Task,
        predecessors: Sequence[fds.Fd],
    ) -> tuple[int, fds.Fd]:
        waited_for.append(len(predecessors))
        return fork(context, stream, number, task, predecessors)

    monkeypatch.setattr(worker_process, "fork", count)
    site.stream_set.go_on_with(
        {**site.stream_set.pack(FdWriter()), "is_to_reopen": True, "keeper": 0}, is_parent=False
    )
    site.stream_set.renew([orphan])
    assert waited_for
    assert 0 not in waited_for
    site.run_until(lambda: site.stream_set.is_settled)


def test_a_worker_that_has_come_to_its_end_is_gone_before_its_stream_is_over(site: Site) -> None:
    """It has the client's fifo open for reading, as only clients should have then."""
    writer, reader, stream = site.output()
    site.stream_set.start()
    worker = site.slot(stream).pid
    os.write(writer, b"said")
    site.disown(writer)
    site.run_until(lambda: stream.is_closed)
    assert not waiting.is_alive(worker)
    assert os.read(reader, 100) == b"said"
    assert not _keeper_of(site)  # nothing has been laid down


def test_the_last_worker_is_followed_by_a_keeper(site: Site) -> None:
    ends = [site.output("stdout"), site.output("stderr")]
    site.stream_set.start()
    site.stream_set.hold()
    assert not _keeper_of(site)
    for writer, _reader, stream in ends:
        assert not _keeper_of(site)
        site.disown(writer)
        site.run_until(lambda stream=stream: stream.is_closed)  # type: ignore[misc] # called now
    fd_holder = _keeper_of(site)
    _wait_title(fd_holder, " [keeper]")
    open_fds = {int(name) for name in os.listdir(f"/proc/{fd_holder}/fd")}
    assert open_fds == {0, 1, 2, *site.held}


def test_and_of_two_that_come_to_their_end_together_there_is_a_last_one(site: Site) -> None:
    ends = [site.output("stdout"), site.output("stderr")]
    site.stream_set.start()
    site.stream_set.hold()
    for writer, _reader, stream in ends:
        site.disown(writer)
        worker = site.slot(stream).worker
        assert worker is not None
        waiting.wait_hangup(worker.fileno())  # nobody has heard it
    site.run_until(lambda: all(stream.is_closed for _writer, _reader, stream in ends))
    assert waiting.is_alive(_keeper_of(site))


def test_there_is_a_keeper_although_the_last_worker_was_sent_away_before(site: Site) -> None:
    writer, _reader, stream = site.output()
    site.stream_set.start()
    site.disown(writer)
    site.run_until(lambda: site.slot(stream).state is WorkerState.LEAVING)
    site.stream_set.hold()
    site.run_until(lambda: stream.is_closed)
    assert waiting.is_alive(_keeper_of(site))


def test_a_dead_containers_last_worker_is_not(site: Site) -> None:
    writer, _reader, stream = site.output()
    site.stream_set.start()
    site.stream_set.hold()
    site.stream_set.let_go()
    site.disown(writer)
    site.run_until(lambda: stream.is_closed)
    assert not _keeper_of(site)


def test_without_a_stream_there_is_a_keeper_and_another_one_if_it_is_killed(site: Site) -> None:
    site.stream_set.start()
    site.stream_set.hold()
    first = _keeper_of(site)
    os.kill(first, signal.SIGKILL)
    site.run_until(lambda: _keeper_of(site) not in (0, first))
    assert waiting.is_alive(_keeper_of(site))


def test_the_last_worker_stays_until_a_keeper_can_be_forked(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, _reader, stream = site.output()
    site.stream_set.start()
    site.stream_set.hold()
    worker = site.slot(stream).pid
    with monkeypatch.context() as patch:
        patch.setattr(spawn, "fork_worker", _refused)
        site.disown(writer)
        site.run_until(lambda: site.slot(stream).state is WorkerState.REPORTED)
        assert waiting.is_alive(worker)
    site.run_until(lambda: stream.is_closed)
    assert waiting.is_alive(_keeper_of(site))
    message = "keeper: fork: Resource temporarily unavailable; trying again"
    assert site.rig.messages("warn") == [message]


def test_a_successor_has_a_keeper_before_the_last_one_goes(site: Site) -> None:
    """As an adopter of a container that has closed its outputs."""
    _writer, _reader, stream = site.output()
    site.stream_set.start()
    pidfd = _orphan(site, stream)
    stream.phase = StreamPhase.CLOSED
    site.stream_set.go_on_with(
        {**site.stream_set.pack(FdWriter()), "is_to_reopen": False, "keeper": 0}, is_parent=False
    )
    site.stream_set.renew([pidfd])
    assert waiting.is_alive(_keeper_of(site))
    site.run_until(lambda: site.stream_set.is_settled)
