"""Streams whose workers turn bytes into records, and the log files that they write."""

from __future__ import annotations

import math
import os
import re
import time
from typing import TYPE_CHECKING

from supervisor.linux import fds
from supervisor.linux.exit_status import Exited
from tests.harness import waiting
from tests.harness.forked import forked
from workers.common.policy import BLOCK
from workers.copy.route import Route
from workers.process import report
from workers.process.context import WorkerContext
from workers.process.counters import StreamCounters
from workers.process.task import COPY, COUNT_REST, Task, TaskKind
from workers.sinks import log_output
from workers.sinks.log_file import LogFile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import ExitStack
    from pathlib import Path

    from workers.sinks.log_file import Format


def task_of(hold_s: float) -> Task:
    """Return DROP_UNTIL for `hold_s`, COPY for 0 and COUNT_REST for infinity."""
    if math.isinf(hold_s):
        return COUNT_REST
    return Task(TaskKind.DROP_UNTIL, time.monotonic() + hold_s) if hold_s else COPY


class Feed:
    """The source, staging and report pipes of a stream. Owns them until `close`."""

    def __init__(self, name: str, counters: StreamCounters, slot: int) -> None:
        self.name = name
        self.counters = counters
        self.slot = slot
        self.source_rfd, self.source_wfd = fds.pipe()
        self.staging = fds.pipe()
        self.null = fds.Fd(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
        self.report_rfd, self.report_wfd = fds.pipe(4096)

    @property
    def route(self) -> Route:
        staging = (self.staging[0].fileno(), self.staging[1].fileno())
        return Route(self.source_rfd.fileno(), -1, staging)

    def context(self, *, hold_s: float = 0.0, reported_dropped_bytes: int = 0) -> WorkerContext:
        return WorkerContext(
            stream=self.name,
            task=task_of(hold_s),
            reported_dropped_bytes=reported_dropped_bytes,
            title=f"forkshim: bench [{self.name}]",
            counters=self.counters,
            slot=self.slot,
            report_wfd=self.report_wfd.fileno(),
            null_fd=self.null.fileno(),
        )

    def end_with(self, content: bytes) -> None:
        """Write what fits into the pipe, and close it."""
        if content:
            assert os.write(self.source_wfd.fileno(), content) == len(content)
        self.source_wfd.close()

    def hang_up(self) -> None:
        """Hang the source up like the supervisor, although other processes have it open."""
        os.dup2(self.null.fileno(), self.source_rfd.fileno(), inheritable=False)

    def run(self, work: Callable[[], None]) -> report.Report | None:
        """Run a worker to its end and return its report."""
        self._read_report()  # of a predecessor that was killed after its report
        with forked(work) as child:
            assert child.wait() == Exited(0)
        return report.decode(self._read_report())

    def _read_report(self) -> bytes:
        if not fds.is_readable(self.report_rfd.fileno()):
            return b""
        return os.read(self.report_rfd.fileno(), report.MOST_BYTES)

    def close(self) -> None:
        for owner in (
            self.source_rfd, self.source_wfd, *self.staging, self.null,
            self.report_rfd, self.report_wfd,
        ):  # fmt: skip
            owner.close()


class Writer:
    """A child that writes another block into a feed on each request.

    So a test decides how much flows between two kills. Takes the feed's write end.
    """

    def __init__(self, feed: Feed, block: Callable[[int], bytes], stack: ExitStack) -> None:
        """Fork the child; `block` makes block 0, 1, ...; `stack` owns the child."""
        self.blocks = 0
        self._feed = feed
        self._block = block
        self._told_rfd, self._told_wfd = fds.pipe()
        stack.callback(self.end)
        self._child = stack.enter_context(forked(self._write))
        feed.source_wfd.close()
        self._told_rfd.close()

    def _write(self) -> None:
        self._told_wfd.close()
        number = 0
        while os.read(self._told_rfd.fileno(), 1):
            rest = memoryview(self._block(number))
            number += 1
            while rest:
                rest = rest[os.write(self._feed.source_wfd.fileno(), rest) :]

    def tell(self) -> None:
        """Request another block."""
        self.blocks += 1
        os.write(self._told_wfd.fileno(), b"!")

    def end(self) -> None:
        """Request the exit after the current block."""
        self._told_wfd.close()

    def wait(self) -> None:
        """Wait for its exit."""
        assert self._child.wait() == Exited(0)

    def content(self) -> bytes:
        """Return every requested block."""
        return b"".join(map(self._block, range(self.blocks)))


class LogSite:
    """A log file in a directory of its own, and a feed for each of its streams."""

    def __init__(
        self,
        directory: Path,
        formats: Mapping[str, Format],
        *,
        max_bytes: int = 0,
        keep: int = 1,
        policy: str = BLOCK,
        buffer_bytes: int = 0,
        total_max_bytes: int = 0,
        is_any_file: bool = False,
        is_synced: bool = False,
    ) -> None:
        directory.mkdir(exist_ok=True)
        self.path = directory / "log"
        self._directory = fds.Fd(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        self.log = LogFile(
            self._directory.fileno(),
            "log",
            formats,
            max_bytes=max_bytes,
            keep=keep,
            policy=policy,
            buffer_bytes=buffer_bytes,
            total_max_bytes=total_max_bytes,
            is_any_file=is_any_file,
            is_synced=is_synced,
        )
        self.counters = StreamCounters()
        self.feeds = {
            stream: Feed(stream, self.counters, slot) for slot, stream in enumerate(formats)
        }

    def __enter__(self) -> LogSite:
        return self

    def __exit__(self, *_exception: object) -> None:
        for feed in self.feeds.values():
            feed.close()
        self.log.close()
        self.counters.close()
        self._directory.close()

    def worker(self, stream: str, hold_s: float = 0.0, reported: int = 0) -> Callable[[], None]:
        feed = self.feeds[stream]
        return lambda: log_output.work(
            feed.context(hold_s=hold_s, reported_dropped_bytes=reported),
            feed.route,
            self.log,
            stream,
        )

    def run(self, stream: str) -> report.Report | None:
        return self.feeds[stream].run(self.worker(stream))

    def wait_written(self, stream: str, size: int) -> None:
        """Wait until `size` bytes of the stream are counted."""
        slot = self.feeds[stream].slot
        waiting.wait_true(lambda: self.counters.copied_bytes(slot) >= size)

    def files(self) -> list[Path]:
        """Return the log files, the oldest first."""
        old = [path for path in self.path.parent.iterdir() if path != self.path]
        old.sort(key=lambda path: -int(path.suffix[1:]))
        return [*old, self.path]

    def content(self) -> bytes:
        """Return the content of all files, in order."""
        return b"".join(path.read_bytes() for path in self.files())


CRI_RECORD = re.compile(
    rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z) (stdout|stderr) ([FP]) ([^\n]*)\n"
)


def cri_records(content: bytes) -> Iterator[tuple[bytes, str, str, bytes]]:
    """Yield time, stream, tag and text of each record; anything else is an error."""
    end = 0
    for match in CRI_RECORD.finditer(content):
        assert match.start() == end, content[end : match.start()]
        end = match.end()
        yield match[1], match[2].decode(), match[3].decode(), match[4]
    assert end == len(content), content[end:]


def cri_streams(content: bytes) -> dict[str, bytes]:
    """Return the bytes of each stream, joined as a reader of the format joins them."""
    said = {"stdout": bytearray(), "stderr": bytearray()}
    last = b""
    for stamp, stream, tag, text in cri_records(content):
        assert stamp >= last
        last = stamp
        said[stream] += text + (b"\n" if tag == "F" else b"")
    return {stream: bytes(content) for stream, content in said.items()}
