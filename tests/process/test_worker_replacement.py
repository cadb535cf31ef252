"""The workers of a killed supervisor, and those that have failed: when another one follows."""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING

import pytest

from supervisor.children import restart_policy
from supervisor.children.restart_policy import FailureHistory
from supervisor.io import worker_process
from supervisor.io.stream import Stream
from supervisor.linux import fds, spawn
from supervisor.state.fd_store import FdWriter
from tests.harness import waiting
from tests.harness.stream_site import Site
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
    with contextlib.closing(Site(rig)) as made:
        yield made


def _fails(context: WorkerContext, route: Route) -> None:
    context.enter(route.fds)
    context.send_last(report.Report(context.stream, 0, errno.ENOSPC, "sink"))


def _refused(_work: Callable[[], None]) -> int:
    raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))


def _orphan(site: Site, stream: Stream) -> fds.Fd:
    """Let the stream's worker be that of a supervisor that was killed; returns its pidfd."""
    worker = site.slot(stream).worker
    assert worker is not None
    pidfd = fds.Fd(os.pidfd_open(worker.pid))
    worker._close_report_pipe()
    site.rig.reaper.expect(worker.pid, lambda _termination: None)  # as its new parent does
    site.slot(stream).worker = None
    return pidfd


def test_a_report_counts_once_while_no_fork_succeeds(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "work", _fails)
    _writer, _reader, stream = site.output()
    site.start()
    slot = site.slot(stream)
    first = slot.pid
    with monkeypatch.context() as patch:
        patch.setattr(spawn, "fork_worker", _refused)
        site.run_until(lambda: slot.history.failed_forks == 2)
        assert (slot.pid, slot.history.errors_in_a_row, slot.history.deaths) == (0, 1, 0)
    site.run_until(lambda: slot.pid not in (0, first))


def test_a_fork_that_was_refused_leaves_no_pause_for_a_dead_container(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "work", _fails)
    _writer, _reader, stream = site.output()
    site.slot(stream).history = FailureHistory(
        errors_in_a_row=20
    )  # the next pause is the longest one
    site.start()
    with monkeypatch.context() as patch:
        patch.setattr(spawn, "fork_worker", _refused)
        site.run_until(lambda: bool(site.slot(stream).history.failed_forks))
        site.stream_set.end_pauses()
    site.run_until(lambda: not site.slot(stream).history.failed_forks)
    worker = site.slot(stream).worker
    assert worker is not None
    assert worker.task.remaining_s() <= restart_policy.LONGEST_PAUSE_IN_DRAIN_S


def test_the_worker_of_a_killed_supervisor_is_gone_before_another_one_copies(site: Site) -> None:
    writer, reader, stream = site.output()
    site.start()
    orphan = site.slot(stream).pid
    site.stream_set.renew([_orphan(site, stream)])
    assert not site.stream_set.is_settled
    os.write(writer, b"said")
    waiting.wait_readable(reader)
    assert not waiting.is_alive(orphan)
    site.run_until(lambda: site.stream_set.is_settled)
    assert site.slot(stream).pid not in (0, orphan)


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
    site.start()
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
    site.stream_set.restore({**site.stream_set.snapshot(FdWriter()), "is_to_reopen": True})
    site.stream_set.renew([orphan])
    assert waited_for
    assert 0 not in waited_for
    site.run_until(lambda: site.stream_set.is_settled)


def test_a_worker_that_has_come_to_its_end_is_gone_before_its_stream_is_over(site: Site) -> None:
    """It has the client's fifo open for reading, as only clients should have then."""
    writer, reader, stream = site.output()
    site.start()
    worker = site.slot(stream).pid
    os.write(writer, b"said")
    site.disown(writer)
    site.run_until(lambda: stream.is_closed)
    assert not waiting.is_alive(worker)
    assert os.read(reader, 100) == b"said"
