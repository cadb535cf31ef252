"""The log file as conmon writes it: local times, limits, links, fifos, an end that is on disk."""

from __future__ import annotations

import os
import re
import stat
import threading
import time
from typing import TYPE_CHECKING

import pytest

from supervisor.sinks.file_sink import open_log
from supervisor.sinks.sink import Drops, drops_of
from supervisor.sinks.spec import parse_sink
from tests.harness import dying, waiting
from tests.harness.forked import finishing
from tests.harness.rewriting import LogSite
from workers.sinks.cri_format import CriFormat, PlainFormat, timestamp

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from supervisor.sinks.sink import Sink

pytestmark = pytest.mark.process


@pytest.fixture
def zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    yield monkeypatch
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("name", "stamp_s", "text"),
    [
        ("UTC0", 0, b"1970-01-01T00:00:00.000000005+00:00"),
        ("CET-1CEST,M3.5.0,M10.5.0/3", 1_700_000_000, b"2023-11-14T23:13:20.000000005+01:00"),
        ("CET-1CEST,M3.5.0,M10.5.0/3", 1_690_000_000, b"2023-07-22T06:26:40.000000005+02:00"),
        ("NST3:30", 1_700_000_000, b"2023-11-14T18:43:20.000000005-03:30"),
        ("NPT-5:45", 1_700_000_000, b"2023-11-15T03:58:20.000000005+05:45"),
    ],
)
def test_a_time_is_local_with_the_offset_of_that_time(
    zone: pytest.MonkeyPatch, name: str, stamp_s: int, text: bytes
) -> None:
    zone.setenv("TZ", name)
    time.tzset()
    assert timestamp(stamp_s * 1_000_000_000 + 5, is_local=True) == text


def _sink(path: Path, options: str = "") -> Sink:
    return open_log(["stdout"], parse_sink(f"k8s-file{options}:{path}"), ())["stdout"]


def test_a_small_limit_has_small_pieces(tmp_path: Path) -> None:
    for options, piece_bytes in (("", 16 << 10), (",max-size=10000", 8 << 10)):
        sink = _sink(tmp_path / "log", options)
        log = sink._log_directory.log  # type: ignore[attr-defined]
        assert log.formats == (CriFormat("stdout", piece_bytes, is_local=True),)
        sink.close()


def test_the_file_may_be_anywhere_and_behind_a_link(tmp_path: Path) -> None:
    """The engine has chosen it; what a person types is walked and trusted, see `trust`."""
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    (tmp_path / "link").symlink_to(open_to_all / "log")
    sink = _sink(tmp_path / "link")
    log = sink._log_directory.log  # type: ignore[attr-defined]
    assert log.name == "log"
    assert os.path.samestat(os.stat(log.dir_fd), open_to_all.stat())
    sink.reopen()
    sink.close()


@pytest.mark.parametrize("keep", [0, 2])
def test_the_file_is_renewed_at_once_and_an_empty_one_stays(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "log"
    sink = _sink(path, f",keep={keep}")
    path.write_bytes(b"old\n")
    before = path.stat().st_ino
    sink.renew_file()
    assert path.read_bytes() == b""
    assert path.stat().st_ino != before
    assert (tmp_path / "log.1").exists() == bool(keep)
    sink.renew_file()
    assert not (tmp_path / "log.2").exists()
    path.rename(tmp_path / "moved")  # as the kubelet does before it asks
    sink.renew_file()
    assert path.read_bytes() == b""
    path.unlink()
    os.mkfifo(path)
    sink.renew_file()
    assert stat.S_ISFIFO(path.stat().st_mode)
    sink.close()


_LINES = [b"one\n", b"two two\n", b"3\n", b"four four four\n", b"5\n"]


@pytest.mark.parametrize(
    ("limit", "before", "kept"), [(14, b"", 3), (15, b"", 3), (12, b"", 2), (14, b"xx\n", 1)]
)
def test_what_comes_after_the_total_limit_is_dropped_and_counted(
    tmp_path: Path, limit: int, before: bytes, kept: int
) -> None:
    """Also a line that would fit: nothing follows a gap."""
    with LogSite(tmp_path, {"stdout": PlainFormat(40)}, total_max_bytes=limit) as site:
        site.path.write_bytes(before)
        feed = site.feeds["stdout"]
        with finishing(site.worker("stdout")):
            for line in _LINES:
                os.write(feed.source_wfd.fileno(), line)
            feed.source_wfd.close()
        assert site.path.read_bytes() == before + b"".join(_LINES[:kept])
        dropped = _LINES[kept:]
        assert drops_of(site.log.buffers[0]) == Drops(len(b"".join(dropped)), len(dropped))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_kill_at_any_instruction_changes_nothing_of_the_total_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dying.small_reads(monkeypatch, 12)

    def fed(directory: Path) -> LogSite:
        site = LogSite(directory, {"stdout": PlainFormat(40)}, total_max_bytes=17)
        site.path.write_bytes(b"xx\n")
        site.feeds["stdout"].end_with(b"".join(_LINES))
        return site

    with fed(tmp_path / "count") as site:
        last = dying.instructions(site.worker("stdout"))
    for step in range(1, last + 1):
        with fed(tmp_path / str(step)) as site:
            dying.die_at(step, site.worker("stdout"))
            site.run("stdout")
            assert site.path.read_bytes() == b"xx\n" + b"".join(_LINES[:3]), step
            assert drops_of(site.log.buffers[0]) == Drops(17, 2), step


def test_a_fifo_gets_the_same_records(tmp_path: Path) -> None:
    """Nomad has Podman write its k8s-file into a fifo."""
    os.mkfifo(tmp_path / "log")
    options = {"max_bytes": 100, "is_any_file": True}
    with LogSite(tmp_path, {"stdout": CriFormat("stdout")}, **options) as site:  # type: ignore[arg-type]
        reader = os.open(site.path, os.O_RDONLY | os.O_NONBLOCK)
        lines = b"".join(b"line %d\n" % number for number in range(9))
        site.feeds["stdout"].end_with(lines)
        assert site.run("stdout") is not None
        records = os.read(reader, 1 << 16).splitlines(keepends=True)
        os.close(reader)
        texts = [re.sub(rb"^\S+Z stdout F ", b"", record) for record in records]
        assert b"".join(texts) == lines


def test_a_fifo_without_room_makes_the_worker_wait(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "log")
    with LogSite(tmp_path, {"stdout": PlainFormat(1 << 16)}, is_any_file=True) as site:
        reader = os.open(site.path, os.O_RDONLY | os.O_NONBLOCK)
        content = bytes(90) * 3000
        got = bytearray()
        feed = site.feeds["stdout"]
        feed.end_with(content)
        os.set_blocking(reader, True)

        def read() -> None:
            while len(got) < len(content):
                got.extend(os.read(reader, 4096))

        thread = threading.Thread(target=read)
        with finishing(site.worker("stdout")):
            thread.start()
            thread.join(waiting.LIMIT_S)
        os.close(reader)
        assert bytes(got) == content


def test_the_end_is_synced_once_if_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = tmp_path / "synced"

    def note(fd: int) -> None:
        with told.open("a") as file:
            file.write(os.readlink(f"/proc/self/fd/{fd}") + "\n")

    monkeypatch.setattr(os, "fsync", note)  # in the forked worker
    for is_synced in (False, True):
        with LogSite(
            tmp_path / str(is_synced), {"stdout": PlainFormat(40)}, is_synced=is_synced
        ) as site:
            site.feeds["stdout"].end_with(b"a\nb\n")
            site.run("stdout")
            expected = f"{site.path}\n" if is_synced else ""
            assert (told.read_text() if told.exists() else "") == expected
