"""shim-log.json: valid JSON whatever the message, and a full disk is no reason to end."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
from pathlib import Path

import pytest

from supervisor.linux import fds
from supervisor.linux.exit_status import Exited
from supervisor.state.journal_log import Kind, encode
from supervisor.state.log import Log, rfc3339
from tests.harness import waiting
from tests.harness.forked import forked

pytestmark = pytest.mark.process


def _open(path: Path) -> fds.Fd:
    return fds.Fd(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o600))


@pytest.mark.parametrize(
    ("message", "read"),
    [
        ("plain", "plain"),
        ('"quoted" \\ and\nnew\r\nlines\t\0', '"quoted" \\ and\\nnew\\r\\nlines\\t\\x00'),
        ("ünï ☃ 🐳", "ünï ☃ 🐳"),
        (os.fsdecode(b"/tmp/\xff"), "/tmp/\\xff"),
        ("\ud800", "\\ud800"),
        ("", ""),
    ],
)
def test_every_record_is_one_line_of_json(tmp_path: Path, message: str, read: str) -> None:
    path = tmp_path / "log"
    log = Log(_open(path))
    log.info(message)
    log.warning(message)
    log.error(message)
    log.close()
    lines = path.read_bytes().split(b"\n")
    assert lines.pop() == b""
    records = [json.loads(line) for line in lines]
    assert [(record["level"], record["msg"]) for record in records] == [
        ("info", read),
        ("warn", read),
        ("error", read),
    ]
    for record in records:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z", record["time"])


@pytest.mark.parametrize(
    ("time_ns", "text"),
    [
        (0, "1970-01-01T00:00:00.000000000Z"),
        (1, "1970-01-01T00:00:00.000000001Z"),
        (1478692800_000000001, "2016-11-09T12:00:00.000000001Z"),
        (951827696_999999999, "2000-02-29T12:34:56.999999999Z"),
    ],
)
def test_times_are_utc_with_nanoseconds(time_ns: int, text: str) -> None:
    assert rfc3339(time_ns) == text


def _stderr_of(log_path: str, prefix: str | None) -> bytes:
    rfd, wfd = os.pipe2(os.O_CLOEXEC)

    def work() -> None:
        os.dup2(wfd, 2)
        log = Log(fds.Fd(os.open(log_path, os.O_WRONLY)), prefix)
        log.info("i")
        log.warning("w \udcff")
        log.error("e")
        log.close()

    with forked(work) as child:
        os.close(wfd)
        said = waiting.read_to_end(rfd)
        assert child.wait() == Exited(0)
    os.close(rfd)
    return said


def test_only_warnings_go_to_stderr_too_and_only_with_a_prefix() -> None:
    assert _stderr_of("/dev/null", None) == b""
    assert _stderr_of("/dev/null", "forkshim: web") == b"forkshim: web: w \\xff\n"


def test_a_full_disk_is_said_on_stderr_if_there_is_one_and_is_no_error() -> None:
    assert _stderr_of("/dev/full", None) == b""
    said = _stderr_of("/dev/full", "p").decode().splitlines()
    assert said == [
        "p: shim-log.json: cannot write; i",
        "p: shim-log.json: cannot write; w \\xff",
        "p: w \\xff",
        "p: shim-log.json: cannot write; e",
    ]


def test_a_stderr_that_nobody_reads_is_no_error(tmp_path: Path) -> None:
    def work() -> None:
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # as in a shim
        rfd, wfd = os.pipe()
        os.dup2(wfd, 2)
        os.close(rfd)
        log = Log(_open(tmp_path / "log"), "p")
        log.warning("w")

    with forked(work) as child:
        assert child.wait() == Exited(0)
    assert json.loads((tmp_path / "log").read_bytes())["msg"] == "w"


def test_a_stderr_that_nobody_reads_is_not_waited_for(tmp_path: Path) -> None:
    rfd, wfd = os.pipe()
    saved = os.dup(2)
    os.set_blocking(wfd, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(wfd, bytes(65536))
    os.set_blocking(wfd, True)
    os.dup2(wfd, 2)
    try:
        path = tmp_path / "log"
        log = Log(fds.Fd(os.open(path, os.O_CREAT | os.O_WRONLY)), mirror_prefix="forkshim: x")
        log.warning("nobody reads this")
        log.close()
    finally:
        os.dup2(saved, 2)
        for fd in (rfd, wfd, saved):
            os.close(fd)
    assert "nobody reads this" in path.read_text()


class _Journal:
    """A socket where journald's is, and a descriptor 2 that is the journal, if it is to be."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.setblocking(False)

    def records(self) -> list[dict[str, str]]:
        found = []
        with contextlib.suppress(BlockingIOError):
            while True:
                lines = self.socket.recv(65536).decode().splitlines()
                found.append(dict(line.split("=", 1) for line in lines))
        return found


def _say_everything(path: Path, *, is_journal: bool) -> bytes:
    """Return what went to stderr, which systemd has made the journal's if `is_journal`."""
    rfd, wfd = os.pipe2(os.O_CLOEXEC)

    def work() -> None:
        os.dup2(wfd, 2)
        stat = os.fstat(2)
        inode = stat.st_ino if is_journal else stat.st_ino + 1
        os.environ["JOURNAL_STREAM"] = f"{stat.st_dev}:{inode}"
        log = Log(fds.Fd(os.open("/dev/null", os.O_WRONLY)), "forkshim: web")
        log.use_journal("web", str(path))
        log.info("i")
        log.notice("n", Kind.RELOADED)
        log.warning("w", Kind.LOST)
        log.error("e")
        log.close()

    with forked(work) as child:
        os.close(wfd)
        said = waiting.read_to_end(rfd)
        assert child.wait() == Exited(0)
    os.close(rfd)
    return said


@pytest.mark.parametrize("is_journal", [True, False])
def test_a_record_has_priority_name_and_kind_and_the_journal_is_not_told_twice(
    tmp_path: Path, *, is_journal: bool
) -> None:
    journal = _Journal(tmp_path / "journal")
    said = _say_everything(journal.path, is_journal=is_journal)
    assert said == (b"" if is_journal else b"forkshim: web: n\nforkshim: web: w\n")
    fields = {
        "SYSLOG_IDENTIFIER": "web",
        "CONTAINER_NAME": "web",
        "CONTAINER_ID": "web",
        "CONTAINER_ID_FULL": "web",
    }
    notice = {"PRIORITY": "5", "MESSAGE_ID": Kind.RELOADED.value, "MESSAGE": "forkshim: web: n"}
    warning = {"PRIORITY": "4", "MESSAGE_ID": Kind.LOST.value, "MESSAGE": "forkshim: web: w"}
    assert journal.records() == [notice | fields, warning | fields]
    journal.socket.close()


def test_a_journald_that_takes_nothing_is_not_waited_for_and_stderr_has_it(tmp_path: Path) -> None:
    """With priorities, since stderr is another way into the journal."""
    journal = _Journal(tmp_path / "journal")
    filler = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    filler.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            filler.sendto(b"x", str(journal.path))
    wanted = b"<5>forkshim: web: n\n<4>forkshim: web: w\n"
    assert _say_everything(journal.path, is_journal=True) == wanted
    journal.socket.close()
    assert _say_everything(journal.path, is_journal=True) == wanted  # ECONNREFUSED
    filler.close()


def test_a_message_makes_no_field_of_its_own() -> None:
    record = encode("web", "a\nPRIORITY=0", 4, Kind.OTHER)
    assert b"\nPRIORITY=0" not in record
    assert record.startswith(b"MESSAGE=forkshim: web: a")


def test_every_kind_has_an_id_of_its_own_and_is_in_the_readme() -> None:
    ids = [kind.value for kind in Kind]
    assert len({*ids}) == len(ids)
    text = (Path(__file__).parents[2] / "README.md").read_text()
    for each in ids:
        assert re.fullmatch("[0-9a-f]{32}", each)
        assert f"`{each}`" in text
