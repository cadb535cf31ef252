"""What a stream says of its two sides: what is pending, what is unread."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from supervisor.linux import fds
from tests.harness import waiting

if TYPE_CHECKING:
    from pathlib import Path

    from tests.harness.stream_site import Site


pytestmark = pytest.mark.process


def test_a_stream_has_a_staging_pipe_unless_both_its_ends_are_pipes(
    site: Site, tmp_path: Path
) -> None:
    sink_rfd, sink_wfd = fds.pipe()
    site.own(sink_rfd.take())
    _slave, console = site.console(sink_wfd)
    file = fds.Fd(os.open(tmp_path / "sink", os.O_WRONLY | os.O_CREAT))
    _writer, _none, to_file = site.output(sink=file)
    _writer, _reader, plain = site.output()
    for stream in (console, to_file):
        assert stream.staging is not None
        assert stream.route.fds == (
            stream.source.fileno(),
            stream.sink.fileno(),
            *(end.fileno() for end in stream.staging),
        )
    assert plain.staging is None
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


def test_a_client_that_is_there_reads_the_end_and_a_later_one_reads_the_rest(
    site: Site, tmp_path: Path
) -> None:
    ends = []
    for name in ("there", "away"):
        reader, sink = site.fifo_sink(tmp_path / name)
        writer, _none, stream = site.output(sink=sink)
        ends.append((reader, writer, stream))
    site.start()
    for _reader, writer, _stream in ends:
        os.write(writer, b"abc")
        site.disown(writer)
    site.run_until(lambda: all(stream.is_closed for _reader, _writer, stream in ends))
    site.disown(ends[1][0])
    site.stream_set.close_read_fifos()
    assert os.read(ends[0][0], 9) == b"abc"
    assert os.read(ends[0][0], 9) == b""
    again = site.own(os.open(tmp_path / "away", os.O_RDONLY | os.O_NONBLOCK))
    assert os.read(again, 9) == b"abc"
    site.stream_set.close_read_fifos()
    assert os.read(again, 9) == b""


def test_what_a_client_with_an_open_fifo_has_not_read_is_safe_and_otherwise_counts(
    site: Site, tmp_path: Path
) -> None:
    reader, sink = site.fifo_sink(tmp_path / "fifo")
    writer, _none, stream = site.output(sink=sink)
    site.start()
    os.write(writer, b"abc")
    site.disown(writer)
    site.run_until(lambda: stream.is_closed)
    assert stream.unread_bytes() == 0  # the client has it
    site.disown(reader)
    assert stream.unread_bytes() == 3
    again = site.own(os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK))
    assert stream.unread_bytes() == 0
    assert os.read(again, 9) == b"abc"
    stream.is_passthrough = True
    assert stream.unread_bytes() == 0
