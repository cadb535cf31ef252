"""Where our conmon sends a container's output, and its own words."""

from __future__ import annotations

import os
import signal
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.harness import conmon, mounts, waiting
from tests.harness.fake_journal import FakeJournal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.harness.conmon import Engine

pytestmark = [pytest.mark.runc, pytest.mark.process]

_KILLS = 20


class Journal:
    """A /run with a journal; `enter` gives it to a program."""

    def __init__(self, stack: ExitStack) -> None:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "run"
        (directory / "systemd/journal").mkdir(parents=True)
        self.fake = stack.enter_context(FakeJournal(directory / "systemd/journal/socket"))
        self.enter = mounts.make_run(directory)

    def messages(self, stream: str) -> list[bytes]:
        """Return what came of a stream, every ordinal once."""
        found = {
            each.ordinal: each.message
            for each in self.fake.datagrams()
            if each.fields.get("CONTAINER_STREAM") == stream.encode()
        }
        assert list(found) == list(range(1, len(found) + 1))
        return list(found.values())


@pytest.fixture
def journal() -> Iterator[Journal]:
    with ExitStack() as stack:
        yield Journal(stack)


def _create(engine: Engine, journal: Journal, *more: str) -> None:
    engine.enter = journal.enter
    engine.create("-l", "journald", *more)
    engine.runc("start", engine.cid)


def test_a_file_and_the_journal_get_the_same(
    make_conmon: Callable[..., Engine], journal: Journal
) -> None:
    engine = make_conmon("for i in 1 2 3; do echo out $i; done; echo err >&2; printf part; exit 7")
    _create(engine, journal)
    assert engine.status() == "7"
    assert [line for line in engine.log() if line.startswith("stdout")] == [
        "stdout F out 1", "stdout F out 2", "stdout F out 3", "stdout P part",
    ]  # fmt: skip
    assert journal.messages("stdout") == [b"out 1", b"out 2", b"out 3", b"part"]


def test_a_terminal_has_two_logs_too(make_conmon: Callable[..., Engine], journal: Journal) -> None:
    engine = make_conmon("echo out; exit 0", terminal=True)
    _create(engine, journal, "-t")
    assert engine.status() == "0"
    assert engine.log() == ["stdout F out"]
    assert journal.messages("stdout") == [b"out"]


def test_killed_workers_and_clients_harm_neither_log(
    make_conmon: Callable[..., Engine], journal: Journal
) -> None:
    engine = make_conmon("i=0; while [ $i -lt 60000 ]; do i=$((i+1)); echo line $i; done; exit 7")
    engine.enter = journal.enter
    engine.create("-l", "journald")
    with conmon.Client(engine.bundle / "attach") as client:
        engine.runc("start", engine.cid)
        kills = 0
        while kills < _KILLS:
            client.hear_more()
            for pid in waiting.children_of(engine.supervisor):
                if waiting.title_of(pid).endswith(("[stdout]", "[stdout.second]")):
                    with suppress(ProcessLookupError):
                        waiting.send(pid, signal.SIGKILL)
                    kills += 1
        client.hear_end()
    assert engine.status() == "7"
    lines = [f"line {i + 1}" for i in range(60000)]
    assert engine.log() == [f"stdout F {line}" for line in lines]
    assert journal.messages("stdout") == [line.encode() for line in lines]


def test_a_client_that_leaves_takes_no_log_with_it(
    make_conmon: Callable[..., Engine], journal: Journal
) -> None:
    engine = make_conmon("trap 'echo two; exit 0' TERM; echo one; while :; do sleep 0.05; done")
    engine.enter = journal.enter
    engine.create("-l", "journald")
    with conmon.Client(engine.bundle / "attach") as client:
        engine.runc("start", engine.cid)
        client.hear(b"one")
        waiting.wait_true(lambda: "[stdout.attach]" in _titles(engine))
    waiting.wait_true(lambda: "[stdout.attach]" not in _titles(engine))
    os.kill(engine.monitor, signal.SIGTERM)
    assert engine.status() == "0"
    assert engine.log() == ["stdout F one", "stdout F two"]
    assert journal.messages("stdout") == [b"one", b"two"]


def _titles(engine: Engine) -> str:
    return " ".join(waiting.title_of(pid) for pid in waiting.children_of(engine.supervisor))


def test_an_engines_log_may_be_in_anybodys_directory(make_conmon: Callable[..., Engine]) -> None:
    """A rootless engine's `/` belongs to no user of its namespace."""
    engine = make_conmon("echo there; exit 0")
    theirs = engine.directory / "theirs"
    theirs.mkdir()
    os.chown(theirs, 65534, 65534)
    theirs.chmod(0o777)
    engine.create(log=f"k8s-file:{theirs}/log")
    assert engine.created is not None
    assert engine.created["data"] > 0
    engine.runc("start", engine.cid)
    assert engine.status() == "0"
    assert (theirs / "log").read_text().endswith(" stdout F there\n")


def test_an_engines_log_may_be_a_fifo(make_conmon: Callable[..., Engine]) -> None:
    engine = make_conmon("echo there; exit 0")
    fifo = engine.directory / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    engine.create(log=f"k8s-file:{fifo}")
    engine.runc("start", engine.cid)
    assert engine.status() == "0"
    assert os.read(reader, 999).endswith(b" stdout F there\n")
    os.close(reader)


def test_the_journals_records_have_the_engines_fields(
    make_conmon: Callable[..., Engine], journal: Journal
) -> None:
    engine = make_conmon("echo out; printf part; exit 0")
    options = ("--log-tag", "a tag", "--log-label", "ONE=1", "--log-label", "TWO=2:3")
    _create(engine, journal, *options, "--no-container-partial-message")
    assert engine.status() == "0"
    records = [
        each.fields for each in journal.fake.datagrams() if "CONTAINER_STREAM" in each.fields
    ]
    assert [record["MESSAGE"] for record in records] == [b"out", b"part"]
    for record in records:
        assert record["CONTAINER_NAME"] == b"name"
        assert record["CONTAINER_TAG"] == record["SYSLOG_IDENTIFIER"] == b"a tag"
        assert (record["ONE"], record["TWO"]) == (b"1", b"2:3")
        assert "CONTAINER_PARTIAL_MESSAGE" not in record


def test_a_limit_of_all_that_is_logged_is_met_and_told(make_conmon: Callable[..., Engine]) -> None:
    engine = make_conmon("i=0; while [ $i -lt 500 ]; do i=$((i+1)); echo line $i; done; exit 0")
    engine.create("--log-global-size-max", "4096", "--log-size-max", "1000", "--log-rotate")
    engine.runc("start", engine.cid)
    assert engine.status() == "0"
    waiting.wait_process(engine.monitor)
    kept = sum(path.stat().st_size for path in engine.directory.glob("log*"))
    assert kept <= 2000
    assert f"stdout {engine.directory}/log: dropped " in engine.own_log()
