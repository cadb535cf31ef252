"""The exact branch of an output: every byte once, wherever a worker is killed."""

from __future__ import annotations

import fcntl
import os
import random
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from supervisor.linux import fds, syscalls
from tests.harness import dying, waiting
from tests.harness.forked import finishing, forked
from workers.copy import output
from workers.copy.route import BranchPipes, Route
from workers.process.context import WorkerContext
from workers.process.counters import StreamCounters
from workers.sinks import log_output
from workers.sinks.cri_format import PlainFormat
from workers.sinks.log_file import LogFile

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.process

_PAGE = 4096


class _Site:
    """A source, a log file or a pipe as its sink, and branches."""

    def __init__(
        self, directory: Path, *, has_log: bool, branches: int, tee_pipe_bytes: int
    ) -> None:
        directory.mkdir()
        self.path = directory / "log"
        self.source_rfd, self.source = fds.pipe()
        self.staging = fds.pipe()
        self.sink_rfd, self.sink_wfd = fds.pipe()
        self.tee_pipes = [fds.pipe(tee_pipe_bytes) for _ in range(branches)]
        for rfd, _wfd in self.tee_pipes:
            fcntl.fcntl(rfd.fileno(), fcntl.F_SETPIPE_SZ, tee_pipe_bytes)
        self.outs = [fds.pipe() for _ in range(branches)]
        self.report = fds.pipe()
        self.null = fds.Fd(os.open(os.devnull, os.O_RDWR))
        self.counters = StreamCounters()
        self._dir = fds.Fd(os.open(directory, os.O_RDONLY))
        self.log = None
        if has_log:
            self.log = LogFile(self._dir.fileno(), "log", {"stdout": PlainFormat(64)})

    def work(self) -> None:
        context = WorkerContext(
            stream="stdout",
            title="forkshim: branch [stdout]",
            counters=self.counters,
            slot=0,
            report_wfd=self.report[1].fileno(),
            null_fd=self.null.fileno(),
        )
        route = Route(
            self.source_rfd.fileno(),
            self.sink_wfd.fileno(),
            (self.staging[0].fileno(), self.staging[1].fileno()),
            branches=tuple(
                BranchPipes(number, (tee_pipe[0].fileno(), tee_pipe[1].fileno()), out[1].fileno())
                for number, (tee_pipe, out) in enumerate(
                    zip(self.tee_pipes, self.outs, strict=True)
                )
            ),
            tee=syscalls.tee,
        )
        if self.log is None:
            output.work(context, route)
        else:
            log_output.work(context, route, self.log, "stdout")

    def write(self, *parts: bytes) -> None:
        for part in parts:
            os.write(self.source.fileno(), part)

    def sunk(self) -> bytes:
        if self.log is None:
            return _content(self.sink_rfd)
        return self.path.read_bytes()

    def heard(self) -> list[bytes]:
        return [_content(rfd) for rfd, _wfd in self.outs]

    def close(self) -> None:
        if self.log is not None:
            self.log.close()
        pairs = (self.staging, self.report, *self.tee_pipes, *self.outs)
        single = (self.source_rfd, self.source, self.sink_rfd, self.sink_wfd, self.null, self._dir)
        for owner in (*single, *(end for pair in pairs for end in pair)):
            owner.close()
        self.counters.close()


def _content(rfd: fds.Fd) -> bytes:
    pending = fds.pending_bytes(rfd.fileno())
    return os.read(rfd.fileno(), pending) if pending else b""


@contextmanager
def _site(
    directory: Path, *, has_log: bool, branches: int = 1, tee_pipe_bytes: int = fds.PIPE_BYTES
) -> Iterator[_Site]:
    site = _Site(directory, has_log=has_log, branches=branches, tee_pipe_bytes=tee_pipe_bytes)
    try:
        yield site
    finally:
        site.close()


_PARTS = [b"a line\n", b"", b"another, in ", b"two parts\n", b"and an end"]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("tee_pipe_bytes", [fds.PIPE_BYTES, _PAGE])
@pytest.mark.parametrize("has_log", [False, True])
def test_a_kill_at_any_instruction_loses_and_repeats_nothing(
    tmp_path: Path, *, has_log: bool, tee_pipe_bytes: int
) -> None:
    """Also where the tee_pipe has room for one buffer of several: the user's limit, pipe(7)."""
    content = b"".join(_PARTS)

    def fill(site: _Site) -> None:
        for part in _PARTS:  # one buffer each: a page is not shared with a splice between
            rfd, wfd = os.pipe()
            os.write(wfd, part)
            if part:
                os.splice(rfd, site.source.fileno(), len(part))
            os.close(rfd)
            os.close(wfd)
        site.source.close()

    options = {"has_log": has_log, "branches": 2, "tee_pipe_bytes": tee_pipe_bytes}
    with _site(tmp_path / "count", **options) as site:  # type: ignore[arg-type]
        fill(site)
        last = dying.instructions(site.work)
        assert site.heard() == [content, content]
    for step in range(1, last + 1):
        with _site(tmp_path / str(step), **options) as site:  # type: ignore[arg-type]
            fill(site)
            dying.die_at(step, site.work)
            with finishing(site.work):
                pass
            assert (site.sunk(), site.heard()) == (content, [content, content]), step


def test_random_kills_in_a_stream_lose_and_repeat_nothing(tmp_path: Path) -> None:
    content = b"".join(b"%d\n" % number for number in range(400_000))
    chance = random.Random(2)
    with _site(tmp_path / "logs", has_log=True) as site:
        os.set_blocking(site.source.fileno(), False)
        # A client that a busy machine keeps away finds no more than this at once.
        fcntl.fcntl(site.outs[0][1].fileno(), fcntl.F_SETPIPE_SZ, 65536)
        view, heard, kills = memoryview(content), b"", 0
        while len(heard) < len(content):
            with forked(site.work) as worker:
                until = len(heard) + chance.randint(1, 300_000)
                while len(heard) < min(until, len(content)):
                    if view and fds.is_writable(site.source.fileno()):
                        view = view[os.write(site.source.fileno(), view[:65536]) :]
                    heard += site.heard()[0]
                os.kill(worker.pid, signal.SIGKILL)
            kills += 1
        assert heard == content
        assert kills > 4
        site.source.close()
        with finishing(site.work):
            pass
        assert site.sunk() == content


def test_the_sink_has_a_line_before_a_branch_that_is_full_takes_it(tmp_path: Path) -> None:
    with _site(tmp_path / "logs", has_log=True) as site:
        fcntl.fcntl(site.outs[0][1].fileno(), fcntl.F_SETPIPE_SZ, _PAGE)
        os.write(site.outs[0][1].fileno(), bytes(_PAGE))
        with forked(site.work) as worker:
            site.write(b"first\n")
            waiting.wait_true(lambda: site.path.exists() and site.sunk() == b"first\n")
            site.write(b"second\n")
            waiting.wait_true(lambda: waiting.state_of(worker.pid) == "S")
            assert site.sunk() == b"first\n"
            assert os.read(site.outs[0][0].fileno(), _PAGE) == bytes(_PAGE)
            waiting.wait_true(lambda: site.sunk() == b"first\nsecond\n")


def test_a_branch_that_has_ended_keeps_no_process_waiting(tmp_path: Path) -> None:
    with _site(tmp_path / "logs", has_log=False) as site:
        site.outs[0][0].close()
        site.write(b"first", b"second")
        site.source.close()
        with finishing(site.work):
            pass
        assert site.sunk() == b"firstsecond"
