"""Sinks that take nothing: drops are counted to the byte, wherever a worker is killed."""

from __future__ import annotations

import errno
import math
import os
import random
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple, Protocol

import pytest

from supervisor.linux import fds
from tests.harness import dying, waiting
from tests.harness.fake_journal import FakeJournal
from tests.harness.forked import file_limit, forked
from tests.harness.rewriting import Feed, LogSite, cri_streams
from workers.common.policy import DROP_NEW, DROP_OLD
from workers.journal import native_output
from workers.journal.fields import Origin
from workers.journal.native import Journal
from workers.process import report
from workers.process.counters import StreamCounters
from workers.sinks import buffered_fd
from workers.sinks.buffered_fd import Buffered
from workers.sinks.cri_format import CriFormat, PlainFormat

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from workers.lines.buffer import LineBuffer
    from workers.sinks.log_file import Format

pytestmark = pytest.mark.process

FOR_EVER = math.inf
POLICIES = (DROP_NEW, DROP_OLD)
BUFFER_BYTES = 100
LINES = [b"%02d %s\n" % (number, b"abcdefghijklm"[: number % 13]) for number in range(24)]
LONG = [*LINES[:9], b"long " * 90 + b"\n", *LINES[9:], b"last"]


class Site(Protocol):
    """A stream that may drop lines, its feed and its sink."""

    feed: Feed

    def worker(self, hold_s: float = 0.0, reported: int = 0) -> Callable[[], None]:
        """Return the function that a worker runs."""

    def buffer(self) -> LineBuffer:
        """Return the line buffer, borrowed."""

    def content(self) -> bytes:
        """Return the content of the sink, in the container's own bytes."""


class FileSite:
    """A log file."""

    def __init__(self, directory: Path, policy: str, kind: str) -> None:
        form: Format = CriFormat("stdout", 30) if kind == "cri" else PlainFormat(30)
        self.site = LogSite(directory, {"stdout": form}, policy=policy, buffer_bytes=BUFFER_BYTES)
        self.feed = self.site.feeds["stdout"]
        self._is_cri = kind == "cri"

    def worker(self, hold_s: float = 0.0, reported: int = 0) -> Callable[[], None]:
        return self.site.worker("stdout", hold_s, reported)

    def buffer(self) -> LineBuffer:
        return self.site.log.buffers[0]

    def content(self) -> bytes:
        content = self.site.content()
        return cri_streams(content)["stdout"] if self._is_cri else content

    def close(self) -> None:
        self.site.__exit__()


class PipeSite:
    """A pipe that only the test reads."""

    def __init__(self, policy: str) -> None:
        self.counters = StreamCounters()
        self.feed = Feed("stdout", self.counters, 0)
        self.buffered = Buffered("stdout", policy, BUFFER_BYTES)
        self.rfd, self.wfd = fds.pipe()
        self._said = bytearray()

    def worker(self, hold_s: float = 0.0, reported: int = 0) -> Callable[[], None]:
        context = self.feed.context(hold_s=hold_s, reported_dropped_bytes=reported)
        return lambda: buffered_fd.work(context, self.feed.route, self.buffered, self.wfd.fileno())

    def buffer(self) -> LineBuffer:
        return self.buffered.buffer

    def content(self) -> bytes:
        while fds.is_readable(self.rfd.fileno()):
            self._said += os.read(self.rfd.fileno(), 1 << 20)
        return bytes(self._said)

    def close(self) -> None:
        self.feed.close()
        self.buffered.close()
        self.rfd.close()
        self.wfd.close()
        self.counters.close()


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[[str, str], Site]]:
    """Return a function that makes a site of a kind with a policy."""
    with ExitStack() as stack:

        def make(kind: str, policy: str) -> Site:
            directory = tmp_path / f"{kind}-{random.getrandbits(64):x}"
            made = PipeSite(policy) if kind == "pipe" else FileSite(directory, policy, kind)
            stack.callback(made.close)
            return made

        yield make


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read 40 bytes at once, and the buffer two and a half of them."""
    dying.small_reads(monkeypatch, 40)


class Came(NamedTuple):
    """The outcome of a stream."""

    content: bytes
    dropped_bytes: int
    dropped_lines: int


def _finish(site: Site) -> Came:
    """Run workers until a worker is at end of file."""
    ends = []
    while 0 not in ends:
        ended = site.feed.run(site.worker(reported=site.buffer().read().dropped_bytes))
        assert ended is not None
        ends.append(ended.errno)
    assert len(ends) <= 2
    state = site.buffer().read()
    return Came(site.content(), state.dropped_bytes, state.dropped_lines)


def _check(came: Came, said: bytes) -> None:
    """Check that every byte is written or counted, and that the output consists of input lines."""
    assert len(came.content) + came.dropped_bytes == len(said)
    assert came.content.count(b"\n") + came.dropped_lines == said.count(b"\n")
    rest = iter(said.splitlines(keepends=True))
    for line in came.content.splitlines(keepends=True):
        text = line.removesuffix(b"\n")
        # A line that is longer than the buffer may leave a piece, with the end of the line.
        assert any(text == other.rstrip(b"\n") or _is_piece(text, other) for other in rest), line


def _is_piece(text: bytes, line: bytes) -> bool:
    return len(line) > BUFFER_BYTES and line.startswith(b"long ") and text in line


KINDS = ("file", "cri", "pipe")


@pytest.mark.parametrize("lines", [LINES, LONG], ids=["short", "long"])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_that_was_given_up_is_counted(
    make: Callable[[str, str], Site], kind: str, policy: str, lines: list[bytes]
) -> None:
    site = make(kind, policy)
    site.feed.end_with(b"".join(lines))
    assert site.feed.run(site.worker(FOR_EVER)) == report.Report("stdout", 0)
    came = _finish(site)
    assert came == (b"", len(b"".join(lines)), b"".join(lines).count(b"\n"))


@pytest.mark.slow
@pytest.mark.parametrize("lines", [LINES, LONG], ids=["short", "long"])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_kill_at_any_instruction_leaves_nothing_uncounted(
    make: Callable[[str, str], Site], kind: str, policy: str, lines: list[bytes]
) -> None:
    """Kill a worker that drops, then a worker that writes the rest."""
    said = b"".join(lines)

    def fed() -> Site:
        site = make(kind, policy)
        site.feed.end_with(said)
        return site

    site = fed()
    last = dying.instructions(site.worker(FOR_EVER))
    chance = random.Random(7)
    seen = set()
    for step in range(1, last, 13 if lines is LONG else 5):
        site = fed()
        dying.die_at(step, site.worker(FOR_EVER))
        if step % 2:
            dying.die_at(chance.randrange(1, last), site.worker())
        came = _finish(site)
        _check(came, said)
        seen.add(bool(came.content) + 2 * bool(came.dropped_bytes))
    assert {2, 3} <= seen


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_oldest_or_the_newest_lines_stay(
    make: Callable[[str, str], Site], kind: str, policy: str
) -> None:
    site = make(kind, policy)
    for line in LINES:
        os.write(site.feed.source_wfd.fileno(), line)
    said = b"".join(LINES)
    with forked(site.worker(3600.0)):
        waiting.wait_true(lambda: _seen_bytes(site) == len(said))
    site.feed.end_with(b"")
    came = _finish(site)
    _check(came, said)
    assert 60 < len(came.content) <= BUFFER_BYTES
    assert said.startswith(came.content) == (policy == DROP_NEW)
    assert said.endswith(came.content) == (policy == DROP_OLD)


@pytest.mark.parametrize("policy", POLICIES)
def test_an_end_of_file_waits_for_a_held_sink_and_no_longer(
    make: Callable[[str, str], Site], policy: str
) -> None:
    """The sink has everything, so no write is due: the worker still wakes up to report."""
    site = make("pipe", policy)
    site.feed.end_with(b"")
    assert site.feed.run(site.worker(0.05)) == report.Report("stdout", 0)


def _seen_bytes(site: Site) -> int:
    """Return how much of the stream is in the buffer or was dropped."""
    state = site.buffer().read()
    return state.taken - state.passed_bytes + state.dropped_bytes


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("kind", ["file", "cri"])
def test_a_file_that_may_not_grow_drops_by_its_policy_and_recovers(
    make: Callable[[str, str], Site], kind: str, policy: str
) -> None:
    said = b"".join(LONG * 3)
    for limit_bytes in range(0, 900, 60):
        site = make(kind, policy)
        site.feed.end_with(said)

        def limited(site: Site = site, limit_bytes: int = limit_bytes) -> None:
            with file_limit(limit_bytes):
                site.worker()()

        ended = site.feed.run(limited)
        assert ended is not None
        assert (ended.errno, ended.side) == (errno.EFBIG, "sink")
        dying.die_at(400, site.worker(FOR_EVER))
        _check(_finish(site), said)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_reader_that_stops_does_not_stop_the_container(
    make: Callable[[str, str], Site], policy: str
) -> None:
    site = make("pipe", policy)
    assert isinstance(site, PipeSite)
    os.set_blocking(site.wfd.fileno(), False)
    filler = os.write(site.wfd.fileno(), bytes(1 << 21))
    os.set_blocking(site.wfd.fileno(), True)
    with forked(site.worker()) as child:
        for line in LINES * 40:  # more than all pipes and buffers hold
            os.write(site.feed.source_wfd.fileno(), line)
        waiting.wait_true(lambda: site.buffer().read().dropped_bytes > 0)
        waiting.wait_true(lambda: not fds.is_readable(site.feed.source_rfd.fileno()))
        os.read(site.rfd.fileno(), filler)
        # The worker reports it when nothing was dropped for a second.
        child.wait()
    ended = report.decode(os.read(site.feed.report_rfd.fileno(), report.MOST_BYTES))
    assert ended is not None
    assert (ended.errno, ended.side) == (errno.EAGAIN, "sink")
    site.feed.end_with(b"")
    _check(_finish(site), b"".join(LINES * 40))


@pytest.mark.parametrize("policy", POLICIES)
def test_a_prompt_does_not_wait_for_the_end_of_its_line(
    make: Callable[[str, str], Site], policy: str
) -> None:
    site = make("pipe", policy)
    assert isinstance(site, PipeSite)
    with forked(site.worker()):
        os.write(site.feed.source_wfd.fileno(), b"login: ")
        waiting.wait_readable(site.rfd.fileno())
        assert site.content() == b"login: "


def test_a_reader_that_has_left_is_an_error(make: Callable[[str, str], Site]) -> None:
    site = make("pipe", DROP_NEW)
    assert isinstance(site, PipeSite)
    site.rfd.close()
    site.feed.end_with(b"x\n")
    ended = site.feed.run(site.worker())
    assert ended is not None
    assert (ended.errno, ended.side) == (errno.EPIPE, "sink")
    assert site.feed.run(site.worker(FOR_EVER)) == report.Report("stdout", 0)
    assert site.buffer().read().dropped_bytes == 2


@pytest.mark.parametrize("policy", POLICIES)
def test_a_journald_that_does_not_read_does_not_stop_the_container(
    tmp_path: Path, policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # back to full-size reads
    counters = StreamCounters()
    feed = Feed("stdout", counters, 0)
    said = b"".join(b"%06d %s\n" % (number, b"x" * 90) for number in range(60_000))
    with FakeJournal(tmp_path / "socket") as fake:
        journal = Journal(
            Origin("web", "web", "epoch"),
            "stdout",
            6,
            policy=policy,
            buffer_bytes=512 << 10,
            limit_bytes=4096,
            path=str(fake.path),
        )
        context = feed.context()
        fake.stop()
        with forked(lambda: native_output.work(context, feed.route, journal, os.getppid())):
            rest = memoryview(said)
            while rest:  # a blocking pipe: without a policy this would block for ever
                rest = rest[os.write(feed.source_wfd.fileno(), rest) :]
            waiting.wait_true(lambda: not fds.is_readable(feed.source_rfd.fileno()))
            fake.go_on()
            waiting.wait_readable(feed.report_rfd.fileno())
        ended = report.decode(os.read(feed.report_rfd.fileno(), report.MOST_BYTES))
        assert ended is not None
        assert (ended.errno, ended.side) == (errno.EAGAIN, "sink")
        messages = [datagram.message + b"\n" for datagram in fake.datagrams()]
        state = journal.buffer.read()
        assert state.dropped_bytes > 0
        assert len(b"".join(messages)) + state.dropped_bytes == len(said)
        assert len(messages) + state.dropped_lines == 60_000
        assert (messages[-1] == said[-98:]) == (policy == DROP_OLD)
        journal.close()
    feed.close()
    counters.close()
