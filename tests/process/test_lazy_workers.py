"""A worker is forked when there is something to read, and never before."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from supervisor.io.stream import Stream
from supervisor.io.worker_process import WorkerState
from supervisor.linux import fds, spawn
from tests.harness import waiting
from tests.harness.forked import has_no_children
from workers.copy.stdin import RawTerminal

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.harness.stream_site import Site

pytestmark = pytest.mark.process


@pytest.fixture
def forks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the pids of the workers that are forked from now on."""
    pids: list[int] = []
    fork_worker = spawn.fork_worker

    def count(work: Callable[[], None]) -> int:
        pids.append(fork_worker(work))
        return pids[-1]

    monkeypatch.setattr(spawn, "fork_worker", count)
    return pids


def test_a_silent_stream_has_no_worker_and_its_first_byte_brings_one(
    site: Site, forks: list[int]
) -> None:
    writer, reader, stream = site.output()
    other, _reader, silent = site.output("stderr")
    site.stream_set.start()
    site.stream_set.start()  # as when what was held back is released
    assert site.slot(stream).state is WorkerState.NONE
    assert not site.stream_set.has_workers
    os.write(writer, b"x")
    site.run_until(lambda: site.slot(stream).pid != 0)
    waiting.wait_readable(reader)
    assert os.read(reader, 9) == b"x"
    for _each in range(3):
        os.write(writer, b"y")
        waiting.wait_readable(reader)
        assert os.read(reader, 9) == b"y"
    site.disown(writer)
    site.run_until(lambda: stream.is_closed)
    assert len(forks) == 1
    site.disown(other)
    site.run_until(lambda: silent.is_closed)
    assert len(forks) == 1
    assert site.overs == 2
    assert (site.stream_set.copied_bytes(stream), site.stream_set.copied_bytes(silent)) == (4, 0)
    assert site.rig.messages() == []


def test_what_was_written_before_the_end_is_copied_although_both_come_together(
    site: Site, forks: list[int]
) -> None:
    writer, reader, stream = site.output()
    site.stream_set.start()
    os.write(writer, b"last words")
    site.disown(writer)
    site.run_until(lambda: stream.is_closed)
    assert os.read(reader, 99) == b"last words"
    assert len(forks) == 1


def test_an_end_without_a_byte_is_none_while_something_is_left(site: Site) -> None:
    writer, _reader, stream = site.output()
    source = stream.source.fileno()
    assert not fds.is_at_end(source)
    os.write(writer, b"x")
    assert not fds.is_at_end(source)
    site.disown(writer)
    assert not fds.is_at_end(source)
    os.read(source, 1)
    assert fds.is_at_end(source)


def test_a_console_that_says_nothing_ends_without_a_worker(site: Site, forks: list[int]) -> None:
    slave, stream = site.console(fds.Fd(os.open(os.devnull, os.O_WRONLY)))
    site.stream_set.start()
    site.disown(slave)  # the last one: the container is dead, and its held side closed
    site.run_until(lambda: stream.is_closed)
    assert forks == []


def test_a_stdin_is_copied_from_its_first_byte_on_and_its_end_needs_no_worker(
    site: Site, forks: list[int]
) -> None:
    client, container, stream = site.stdin()
    site.stream_set.start()
    site.disown(client)
    site.run_until(lambda: stream.is_closed)
    assert waiting.read_to_end(container) == b""
    assert forks == []


def test_a_stdin_that_is_a_file_is_copied_at_once(site: Site, tmp_path: Path) -> None:
    (tmp_path / "stdin").write_bytes(b"some")
    sink_rfd, sink_wfd = fds.pipe()
    container = site.own(sink_rfd.take())
    source = fds.Fd(os.open(tmp_path / "stdin", os.O_RDONLY))
    site.stream_set.add(Stream("stdin", source, sink_wfd))
    site.stream_set.start()
    site.run_until(lambda: site.stream_set.streams[0].is_closed)
    assert waiting.read_to_end(container) == b"some"


def test_a_raw_terminal_has_a_worker_from_the_start(site: Site) -> None:
    """It gives the terminal back if the supervisor is killed."""
    _client, _container, stream = site.stdin()
    site.stream_set.raw_terminal = RawTerminal(site.rig.null.fileno(), [])
    site.stream_set.start()
    assert site.slot(stream).pid


def test_a_hurry_and_a_reload_leave_a_silent_stream_without_a_worker(
    site: Site, forks: list[int]
) -> None:
    _writer, _reader, stream = site.output()
    site.stream_set.start()
    site.stream_set.end_pauses()
    site.slot(stream).renew()
    assert site.slot(stream).state is WorkerState.NONE
    site.stream_set.hang_up(stream)
    assert stream.is_closed
    assert forks == []


def test_a_stream_that_has_begun_has_a_worker_after_an_adoption(
    site: Site, forks: list[int]
) -> None:
    """Something may be in its buffers, which no event of its source would tell."""
    writer, _reader, stream = site.output()
    site.stream_set.start()
    os.write(writer, b"x")
    site.run_until(lambda: site.slot(stream).pid != 0)
    waiting.wait_true(lambda: site.slot(stream).copied_bytes == 1)
    orphan = site.slot(stream).worker
    assert orphan is not None
    orphan.dismiss(lambda _worker: None)
    site.slot(stream).worker = None
    site.slot(stream).renew()
    assert site.slot(stream).pid not in (0, forks[0])


def test_a_silent_stream_is_given_up_and_stopped_like_any_other(
    site: Site, forks: list[int]
) -> None:
    _writer, _reader, first = site.output()
    _other, _reader, second = site.output("stderr")
    site.stream_set.start()
    site.stream_set.give_up(first)
    site.run_until(lambda: first.is_closed)
    assert len(forks) == 1
    site.stream_set.stop()
    assert not second.is_closed
    site.run_until(lambda: not site.stream_set.has_workers)
    assert has_no_children()


def test_without_a_descriptor_for_the_first_worker_it_comes_later(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, reader, stream = site.output()
    site.stream_set.start()

    def refused(_work: Callable[[], None]) -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    with monkeypatch.context() as patch:
        patch.setattr(spawn, "fork_worker", refused)
        os.write(writer, b"x")
        site.run_until(lambda: site.slot(stream).history.failed_forks == 1)
        assert site.slot(stream).state is WorkerState.RETRY_SCHEDULED
    site.run_until(lambda: site.slot(stream).pid != 0)
    waiting.wait_readable(reader)
    assert os.read(reader, 9) == b"x"


def test_a_client_that_attaches_to_a_silent_stream_hears_its_first_byte(
    site: Site, forks: list[int], tmp_path: Path
) -> None:
    writer, _reader, stream = site.output()
    stream.setting = "stdout"
    site.stream_set.start()
    os.mkfifo(tmp_path / "attach", 0o600)
    client = site.own(os.open(tmp_path / "attach", os.O_RDONLY | os.O_NONBLOCK))
    site.stream_set.attach("stdout", str(tmp_path / "attach"))
    assert os.fstat(client).st_mode & 0o777 == 0o400, "accepted"
    assert forks == []
    os.write(writer, b"x")
    site.run_until(lambda: bool(forks))
    waiting.wait_readable(client)
    assert os.read(client, 9) == b"x"
