"""Old log files: whole records, none lost, none shifted twice."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from tests.harness import dying
from tests.harness.forked import finishing
from tests.harness.rewriting import LogSite
from workers.process.report import Report
from workers.sinks import rotation
from workers.sinks.cri_format import PlainFormat

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.process


def _rotate(directory: Path, keep: int) -> None:
    directory_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        rotation.rotate(directory_fd, "log", keep)
    finally:
        os.close(directory_fd)


def _names(directory: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in directory.iterdir()}


def _make(directory: Path, names: str) -> None:
    directory.mkdir(exist_ok=True)
    for number in names:
        (directory / ("log" if number == "0" else f"log.{number}")).write_text(number)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("0", {"log.1": "0"}),
        ("01", {"log.1": "0", "log.2": "1"}),
        ("012", {"log.1": "0", "log.2": "1", "log.3": "2"}),
        ("0123", {"log.1": "0", "log.2": "1", "log.3": "2"}),
        ("013", {"log.1": "0", "log.2": "1", "log.3": "3"}),
        ("023", {"log.1": "0", "log.2": "2", "log.3": "3"}),
        ("01234", {"log.1": "0", "log.2": "1", "log.3": "2", "log.4": "4"}),
    ],
)
def test_what_is_below_the_first_gap_is_shifted_and_only_the_oldest_goes(
    tmp_path: Path, before: str, after: dict[str, str]
) -> None:
    _make(tmp_path, before)
    _rotate(tmp_path, 3)
    assert _names(tmp_path) == after


def test_a_rotation_that_was_cut_short_anywhere_is_continued(tmp_path: Path) -> None:
    counted = tmp_path / "counted"
    _make(counted, "01234")
    for step in range(1, dying.instructions(lambda: _rotate(counted, 4)) + 1):
        directory = tmp_path / str(step)
        _make(directory, "01234")
        dying.die_at(step, lambda directory=directory: _rotate(directory, 4))  # type: ignore[misc] # bound now
        if (directory / "log").exists():
            _rotate(directory, 4)
        assert _names(directory) == {"log.1": "0", "log.2": "1", "log.3": "2", "log.4": "3"}


def test_a_dangling_symbolic_link_takes_a_name(tmp_path: Path) -> None:
    _make(tmp_path, "0")
    (tmp_path / "log.1").symlink_to("nowhere")
    _rotate(tmp_path, 3)
    assert os.readlink(tmp_path / "log.2") == "nowhere"


def test_files_hold_as_many_whole_lines_as_fit(tmp_path: Path) -> None:
    with LogSite(tmp_path, {"stdout": PlainFormat(19)}, max_bytes=20, keep=99) as site:
        lines = [b"1234567890\n", b"12345678\n", b"1\n", b"\n", b"x" * 19 + b"\n", b"12\n", b"end"]
        site.feeds["stdout"].end_with(b"".join(lines))
        assert site.run("stdout") == Report("stdout", 49)
        assert [path.read_bytes() for path in site.files()] == [
            lines[0] + lines[1],
            lines[2] + lines[3],
            lines[4],
            lines[5] + lines[6],
        ]


def test_a_line_longer_than_a_file_is_cut(tmp_path: Path) -> None:
    with LogSite(tmp_path, {"stdout": PlainFormat(19)}, max_bytes=20, keep=99) as site:
        site.feeds["stdout"].end_with(b"x" * 45 + b"\n")
        site.run("stdout")
        assert [len(path.read_bytes()) for path in site.files()] == [19, 19, 8]


def test_only_the_newest_files_are_kept(tmp_path: Path) -> None:
    with LogSite(tmp_path, {"stdout": PlainFormat(19)}, max_bytes=20, keep=2) as site:
        site.feeds["stdout"].end_with(b"".join(b"line %d\n" % number for number in range(9)))
        site.run("stdout")
        assert site.content() == b"line 4\nline 5\nline 6\nline 7\nline 8\n"


def test_a_log_that_is_full_already_is_rotated_first(tmp_path: Path) -> None:
    with LogSite(tmp_path, {"stdout": PlainFormat(19)}, max_bytes=20) as site:
        site.path.write_bytes(b"o" * 50 + b"\n")
        site.feeds["stdout"].end_with(b"new\n")
        site.run("stdout")
        assert [path.read_bytes() for path in site.files()] == [b"o" * 50 + b"\n", b"new\n"]


def test_a_log_that_was_renamed_is_left_and_not_rotated(tmp_path: Path) -> None:
    with LogSite(tmp_path, {"stdout": PlainFormat(19)}, max_bytes=20) as site:
        feed = site.feeds["stdout"]
        with finishing(site.worker("stdout")):
            os.write(feed.source_wfd.fileno(), b"12345678901234567\n")
            site.wait_written("stdout", 18)
            site.path.rename(site.path.with_suffix(".7"))
            feed.end_with(b"abc\n")
        assert _names(tmp_path) == {"log.7": "12345678901234567\n", "log": "abc\n"}


def test_a_record_that_is_longer_than_the_limit_is_alone_in_its_file(tmp_path: Path) -> None:
    with LogSite(tmp_path, {"stdout": PlainFormat(40)}, max_bytes=20, keep=99) as site:
        lines = [b"a\n", b"b" * 30 + b"\n", b"c" * 10 + b"\n", b"d\n"]
        site.feeds["stdout"].end_with(b"".join(lines))
        site.run("stdout")
        contents = [path.read_bytes() for path in site.files()]
        assert contents == [lines[0], lines[1], lines[2] + lines[3]]


def test_a_full_file_of_which_nothing_is_kept_is_replaced(tmp_path: Path) -> None:
    with LogSite(tmp_path, {"stdout": PlainFormat(19)}, max_bytes=20, keep=0) as site:
        site.path.write_bytes(b"of an earlier run\n")
        site.feeds["stdout"].end_with(b"".join(b"line %d\n" % number for number in range(9)))
        site.run("stdout")
        assert _names(tmp_path) == {"log": "line 8\n"}
        assert stat.S_IMODE(site.path.stat().st_mode) == 0o640


def test_a_replacement_that_was_cut_short_anywhere_is_done_again(tmp_path: Path) -> None:
    def replaced(directory: Path) -> None:
        fd = os.open(directory, os.O_RDONLY)
        rotation.replace(fd, "log")
        os.close(fd)

    _make(tmp_path / "counted", "0")
    last = dying.instructions(lambda: replaced(tmp_path / "counted"))
    for step in range(1, last + 1):
        directory = tmp_path / str(step)
        _make(directory, "0")
        dying.die_at(step, lambda directory=directory: replaced(directory))  # type: ignore[misc] # bound now
        assert (directory / "log").exists()
        replaced(directory)
        assert _names(directory) == {"log": ""}
