"""What the drain sees of the streams, and whom it waits for."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

from supervisor.io.drain import DrainWatch, Verdict
from supervisor.sinks.sink import Drops
from tests.harness import waiting
from tests.harness.stream_site import Site, stop_worker
from workers.copy import output

if TYPE_CHECKING:
    from pathlib import Path


pytestmark = pytest.mark.process


def test_a_drain_is_over_when_every_stream_has_been_reported_and_read(
    site: Site, tmp_path: Path
) -> None:
    reader, sink = site.fifo_sink(tmp_path / "fifo")
    writer, _none, stream = site.output(sink=sink)
    site.start()
    os.write(writer, b"abc")
    watch = DrainWatch(site.stream_set)
    watch.begin()
    assert not watch.is_over
    assert watch.judge(is_stopping=False) == []
    site.disown(writer)
    site.run_until(lambda: stream.is_closed)
    site.disown(reader)
    assert watch.judge(is_stopping=False) == []  # nobody has it yet
    assert not watch.is_over
    hasty = DrainWatch(site.stream_set, is_read=False)
    assert hasty.judge(is_stopping=False) == []
    assert hasty.is_over
    assert hasty.judge(is_stopping=False) == []  # not asked again


def test_a_stray_and_a_client_that_does_not_read_are_given_up_with_the_reason(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    _stray, _reader, _held = site.output("stdout")
    writer, _clogged_reader, clogged = site.output("stderr")
    os.write(writer, b"x")  # no worker has been started: it stays pending
    watch = DrainWatch(site.stream_set)
    assert watch.judge(is_stopping=False) == []
    now[0] += 0.31
    held = site.stream_set.streams[0]
    assert watch.judge(is_stopping=False) == [(held, Verdict.STRAY)]
    site.stream_set.hang_up(held)
    assert watch.judge(is_stopping=False) == []
    now[0] += 5.0
    assert not watch.is_over
    assert watch.judge(is_stopping=False) == [(clogged, Verdict.STALLED)]
    assert not watch.is_over
    site.stream_set.give_up(clogged)
    site.run_until(lambda: clogged.is_closed)
    assert watch.is_over
    assert site.slot(clogged).drops == Drops(1, 0)


def test_a_stopped_worker_is_replaced_once_before_its_stream_is_given_up(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    writer, reader, stream = site.output()
    site.start()
    stop_worker(site.slot(stream))
    os.write(writer, b"one\ntwo\nhalf")
    watch = DrainWatch(site.stream_set)
    assert watch.judge(is_stopping=False) == []
    now[0] += 5.0
    assert watch.judge(is_stopping=False) == [(stream, Verdict.STUCK)]
    stopped = site.slot(stream).pid
    monkeypatch.setattr(output, "work", lambda _context, _route: signal.pause())
    site.slot(stream).kill()
    site.run_until(lambda: site.slot(stream).pid not in (0, stopped))
    assert watch.judge(is_stopping=False) == []
    now[0] += 4.9
    assert watch.judge(is_stopping=False) == []
    now[0] += 0.2
    assert watch.judge(is_stopping=False) == [(stream, Verdict.STALLED)]
    monkeypatch.undo()
    site.stream_set.give_up(stream)
    site.run_until(lambda: stream.is_closed)
    assert site.slot(stream).drops == Drops(12, 2)
    assert not waiting.is_readable(reader)
    assert site.rig.messages("warn")[-1] == "stdout the sink: dropped 12 bytes, 2 lines"


def test_our_own_callers_pipe_is_waited_for_until_a_stop(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    writer, _reader, stream = site.output()
    stream.is_passthrough = True
    os.write(writer, b"x")
    watch = DrainWatch(site.stream_set)
    now[0] += 1000.0
    assert watch.judge(is_stopping=False) == []
    now[0] += 1000.0
    assert watch.judge(is_stopping=False) == []
    assert watch.judge(is_stopping=True) == [(stream, Verdict.STALLED)]


def test_the_rule_is_asked_after_2_ms_and_then_ever_less_often(site: Site) -> None:
    watch = DrainWatch(site.stream_set)
    assert watch.is_over  # no stream at all
    assert [watch.next_look_s() for _each in range(7)] == [
        0.002, 0.004, 0.008, 0.016, 0.032, 0.05, 0.05,
    ]  # fmt: skip


def test_a_stream_that_comes_during_the_drain_is_waited_for(site: Site) -> None:
    """As the branch of a client that is accepted when the container has ended already."""
    site.output("stdout")
    watch = DrainWatch(site.stream_set)
    writer, _reader, _late = site.output("stderr")
    os.write(writer, b"x")
    assert not watch.is_last_word_out
    assert watch.judge(is_stopping=False) == []
    assert not watch.is_over
