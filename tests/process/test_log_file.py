"""Records in a log file: each exactly once, wherever its worker is killed."""

from __future__ import annotations

import errno
import os
import random
import re
import select
import signal
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

import pytest

from supervisor.linux import spawn
from supervisor.linux.exit_status import Exited, Killed
from tests.harness import dying, waiting
from tests.harness.forked import Child, file_limit, finishing, forked
from tests.harness.pauses import Pauses
from tests.harness.rewriting import CRI_RECORD, LogSite, Writer, cri_records, cri_streams
from workers.common.policy import BLOCK, DROP_NEW
from workers.copy.batching import LEAST_RUN
from workers.process.report import Report
from workers.sinks.cri_format import CriFormat, PlainFormat
from workers.sinks.log_writer import LogWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from workers.sinks.log_file import Format

pytestmark = pytest.mark.process

STDOUT = b"one\n\ntwo two two\n" + b"long " * 9 + b"\n\0\xff\r\nlast"
STDERR = b"warn\n" + b"x" * 33 + b"\noops\n"
SAID = {"stdout": STDOUT, "stderr": STDERR}


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pauses]:
    made = Pauses(monkeypatch)
    yield made
    made.close()


def _cri(limit_bytes: int = 12) -> dict[str, CriFormat]:
    return {stream: CriFormat(stream, limit_bytes) for stream in ("stdout", "stderr")}


def _check(site: LogSite) -> None:
    assert cri_streams(site.content()) == SAID
    for slot, content in enumerate(SAID.values()):
        assert site.counters.copied_bytes(slot) == len(content)
    for path in site.files():
        content = path.read_bytes()
        assert content.endswith(b"\n") or not content
        assert site.log.max_bytes == 0 or len(content) <= site.log.max_bytes


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read 40 bytes at once: the streams above then take several, and move their buffers."""
    dying.small_reads(monkeypatch, 40)


def _fed(directory: Path, *, max_bytes: int = 0) -> LogSite:
    site = LogSite(directory, _cri(), max_bytes=max_bytes, keep=99)
    for stream, content in SAID.items():
        site.feeds[stream].end_with(content)
    return site


def _finish(site: LogSite, first: str, second: str) -> None:
    for stream in (first, second):
        ended = site.run(stream)
        assert ended is not None
        assert (ended.errno, ended.stream) == (0, stream)
    _check(site)


@pytest.mark.parametrize("max_bytes", [0, 200])
def test_two_streams_share_a_file(tmp_path: Path, small: None, max_bytes: int) -> None:
    with _fed(tmp_path / "logs", max_bytes=max_bytes) as site:
        _finish(site, "stdout", "stderr")
        assert [(stream, tag, text) for _time, stream, tag, text in cri_records(site.content())][
            :6
        ] == [
            ("stdout", "F", b"one"),
            ("stdout", "F", b""),
            ("stdout", "F", b"two two two"),
            ("stdout", "P", b"long long lo"),
            ("stdout", "P", b"ng long long"),
            ("stdout", "P", b" long long l"),
        ]
        assert (len(site.files()) == 1) == (max_bytes == 0)


def _kill_everywhere(
    directory: Path, steps: range, max_bytes: int, then: Callable[[int], tuple[str, str]]
) -> None:
    """Kill stdout's worker before each of `steps`, then finish both streams."""
    for step in steps:
        with _fed(directory / str(step), max_bytes=max_bytes) as site:
            dying.die_at(step, site.worker("stdout"))
            _finish(site, *then(step))


def _steps(directory: Path, max_bytes: int) -> int:
    with _fed(directory / "count", max_bytes=max_bytes) as site:
        return dying.instructions(site.worker("stdout"))


ORDERS = [("stdout", "stderr"), ("stderr", "stdout")]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("max_bytes", [0, 200])
def test_a_kill_at_any_instruction_loses_and_repeats_nothing(
    tmp_path: Path, small: None, max_bytes: int
) -> None:
    """The successor or the other worker, in turn, finishes the write.

    Without rotation there is no instruction that is not met with it: every fourth will do.
    """
    steps = range(1, _steps(tmp_path, max_bytes) + 1, 1 if max_bytes else 4)
    _kill_everywhere(tmp_path, steps, max_bytes, lambda step: ORDERS[step // 3 % 2])


@pytest.mark.slow
@pytest.mark.parametrize("max_bytes", [0, 200])
def test_two_kills_in_a_row_lose_and_repeat_nothing(
    tmp_path: Path, small: None, max_bytes: int
) -> None:
    """Kill stdout's worker, then the worker that finishes its write."""
    last = _steps(tmp_path, max_bytes)
    chance = random.Random(6)
    for number in range(30):
        steps = chance.randint(1, last), chance.randint(1, last // 3)
        with _fed(tmp_path / str(number), max_bytes=max_bytes) as site:
            dying.die_at(steps[0], site.worker("stdout"))
            dying.die_at(steps[1], site.worker(chance.choice(["stdout", "stderr"])))
            _finish(site, *chance.choice(ORDERS))


@pytest.mark.slow
@pytest.mark.parametrize("then", ORDERS)
def test_a_kill_within_a_write_is_finished_where_it_stopped(
    tmp_path: Path, small: None, then: tuple[str, str]
) -> None:
    for written_bytes in range(0, 435, 15):
        with _fed(tmp_path / str(written_bytes)) as site:
            dying.die_writing(site.worker("stdout"), written_bytes)
            assert site.path.stat().st_size == written_bytes
            _finish(site, *then)


def test_what_a_reader_has_seen_of_a_torn_write_stays(tmp_path: Path, small: None) -> None:
    """A reader follows the file: it would read vanished or changed bytes twice or never."""
    with _fed(tmp_path / "logs") as site:
        dying.die_writing(site.worker("stdout"), 130)
        seen = site.content()
        assert len(seen) == 130
        site.run("stderr")
        assert site.content().startswith(seen)
        site.run("stdout")
        _check(site)


def test_a_line_waits_for_its_end_and_is_not_in_flight(tmp_path: Path) -> None:
    with LogSite(tmp_path / "logs", _cri()) as site:
        source = site.feeds["stdout"].source_wfd.fileno()
        with forked(site.worker("stdout")):
            os.write(source, b"one\ntw")
            site.wait_written("stdout", 4)
            os.write(source, b"o\nth")
            site.wait_written("stdout", 8)
            assert site.counters.in_flight_bytes(0) == 0
        assert [text for *_head, text in cri_records(site.content())] == [b"one", b"two"]
        site.feeds["stdout"].hang_up()
        assert site.run("stdout") == Report("stdout", 2)
        assert [text for *_head, text in cri_records(site.content())] == [b"one", b"two", b"th"]


@pytest.mark.slow
def test_a_file_that_may_not_grow_keeps_whole_records_and_is_continued(
    tmp_path: Path, small: None
) -> None:
    for limit_bytes in range(0, 400, 23):
        with _fed(tmp_path / str(limit_bytes)) as site:

            def limited(site: LogSite = site, limit_bytes: int = limit_bytes) -> None:
                with file_limit(limit_bytes):
                    site.worker("stdout")()

            ended = site.feeds["stdout"].run(limited)
            assert ended is not None
            assert (ended.errno, ended.side) == (errno.EFBIG, "sink")
            assert limit_bytes - 60 < site.path.stat().st_size <= limit_bytes
            list(cri_records(site.content()))
            _finish(site, *ORDERS[limit_bytes % 2])


def test_a_full_disk_loses_and_repeats_nothing(tmp_path: Path, small_disk: Path) -> None:
    lines = b"".join(b"line %d\n" % number for number in range(20_000))
    with LogSite(small_disk, _cri(100)) as site:
        filler = small_disk / "log.9"
        filler.write_bytes(bytes(600_000))
        site.feeds["stdout"].end_with(lines)
        site.feeds["stderr"].end_with(b"oops\n")
        failed = site.run("stdout")
        assert failed is not None
        assert (failed.errno, failed.side) == (errno.ENOSPC, "sink")
        failed = site.run("stderr")  # tries to finish the write of the other worker
        assert failed is not None
        assert (failed.errno, failed.side) == (errno.ENOSPC, "sink")
        filler.unlink()
        site.run("stderr")
        site.run("stdout")
        assert cri_streams(site.content()) == {"stdout": lines, "stderr": b"oops\n"}


def test_a_new_worker_opens_the_name_again_and_the_other_follows(tmp_path: Path) -> None:
    """A log is reopened like this: the supervisor kills either worker."""
    with LogSite(tmp_path / "logs", _cri()) as site:
        out, err = (site.feeds[stream].source_wfd.fileno() for stream in SAID)
        with finishing(site.worker("stderr")):
            with forked(site.worker("stdout")):
                for source in (out, err):
                    os.write(source, b"one\n")
                site.wait_written("stdout", 4)
                site.wait_written("stderr", 4)
                site.path.rename(site.path.with_suffix(".1"))
                for source in (out, err):
                    os.write(source, b"two\n")
                site.wait_written("stdout", 8)
                site.wait_written("stderr", 8)
            assert not site.path.exists()
            with forked(site.worker("stdout")):
                waiting.wait_path(site.path, lambda path: path.exists())
                os.write(err, b"three\n")
                site.wait_written("stderr", 14)
                os.write(out, b"three\n")
                site.wait_written("stdout", 14)
            site.feeds["stderr"].source_wfd.close()
        texts = [[text for *_head, text in cri_records(path.read_bytes())] for path in site.files()]
        assert sorted(texts[0]) == [b"one", b"one", b"two", b"two"]
        assert texts[1] == [b"three", b"three"]


@pytest.mark.parametrize("is_unlinked", [False, True])
@pytest.mark.parametrize("then", ORDERS)
def test_a_torn_write_is_finished_in_its_own_file_whatever_its_name_is_now(
    tmp_path: Path, small: None, then: tuple[str, str], is_unlinked: bool
) -> None:
    with _fed(tmp_path / "logs") as site:
        dying.die_writing(site.worker("stdout"), 130)
        old = site.path.open("rb")
        if is_unlinked:
            site.path.unlink()
        else:
            site.path.rename(tmp_path / "elsewhere")
        for stream in then:
            site.run(stream)
        with old:
            assert cri_streams(old.read() + site.content()) == SAID


def test_a_living_worker_finishes_the_write_of_a_killed_one(tmp_path: Path) -> None:
    with LogSite(tmp_path / "logs", _cri()) as site:
        out, err = (site.feeds[stream].source_wfd.fileno() for stream in SAID)
        with forked(site.worker("stderr")):
            os.write(err, b"one\n")
            site.wait_written("stderr", 4)
            os.write(out, b"first\nsecond\n")
            dying.die_writing(site.worker("stdout"), 60)
            os.write(err, b"two\n")
            site.wait_written("stderr", 8)
        assert [text for *_head, text in cri_records(site.content())] == [
            b"one", b"first", b"second", b"two",
        ]  # fmt: skip
        site.feeds["stdout"].end_with(b"")
        assert site.run("stdout") == Report("stdout", 0)
        assert site.counters.copied_bytes(0) == 13  # although another process wrote them


def test_a_worker_that_died_with_the_slot_empty_is_replaced_by_the_other(
    tmp_path: Path,
) -> None:
    with LogSite(tmp_path / "logs", _cri()) as site:
        err = site.feeds["stderr"].source_wfd.fileno()
        with finishing(site.worker("stderr")):
            os.write(err, b"one\n")
            site.wait_written("stderr", 4)
            # The state that stdout's worker leaves when it is killed between its two steps.
            site.log.commit(site.log.read()._replace(generation=77))
            site.log.fd_slot.clear()
            site.feeds["stderr"].end_with(b"two\n")
        assert site.log.read().generation == 78
        assert [text for *_head, text in cri_records(site.content())] == [b"one", b"two"]


def test_an_unfinished_write_without_a_file_is_a_bug(tmp_path: Path) -> None:
    with LogSite(tmp_path / "logs", _cri()) as site:
        site.log.commit(site.log.read()._replace(writer=1))
        with pytest.raises(RuntimeError, match="that no worker has begun"):
            LogWriter(site.log, "stdout").open()


@pytest.mark.parametrize("then", ORDERS)
def test_another_process_that_changes_the_file_costs_a_repeat_and_no_loss(
    tmp_path: Path, then: tuple[str, str]
) -> None:
    texts = [b"one", b"two"]
    for stranger in (_append, _truncate):
        with LogSite(tmp_path / stranger.__name__, _cri()) as site:
            site.path.write_bytes(b"older\n" * 20)
            site.feeds["stdout"].end_with(b"one\ntwo\n")
            site.feeds["stderr"].end_with(b"")
            dying.die_writing(site.worker("stdout"), 60)
            stranger(site.path)
            dying.die_writing(site.worker(then[0]), 20)
            for stream in then:
                site.run(stream)
            list(cri_records(site.content().rpartition(b"stranger\n")[2]))
            whole = [match[4] for match in CRI_RECORD.finditer(site.content())]
            assert whole[-2:] == texts


def _append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"stranger\n")


def _truncate(path: Path) -> None:
    os.truncate(path, 0)


def test_an_old_log_is_continued_at_its_end(tmp_path: Path) -> None:
    with LogSite(tmp_path / "logs", {"stdout": PlainFormat(100)}) as site:
        site.path.write_bytes(b"before\n")
        site.feeds["stdout"].end_with(b"after\n")
        assert site.run("stdout") == Report("stdout", 6)
        assert site.content() == b"before\nafter\n"


@pytest.mark.parametrize("kind", ["fifo", "directory"])
def test_a_log_that_is_no_regular_file_is_an_error_of_the_sink(tmp_path: Path, kind: str) -> None:
    with LogSite(tmp_path / "logs", _cri()) as site:
        os.mkfifo(site.path) if kind == "fifo" else site.path.mkdir()
        expected = errno.EINVAL if kind == "fifo" else errno.EISDIR
        assert site.run("stdout") == Report("stdout", 0, expected, "sink")


def test_a_source_that_fails_is_named(tmp_path: Path) -> None:
    with LogSite(tmp_path / "logs", _cri()) as site:
        feed = site.feeds["stdout"]
        os.dup2(site.log.dir_fd, feed.source_rfd.fileno(), inheritable=False)
        assert site.run("stdout") == Report("stdout", 0, errno.EISDIR, "source")


def _pausing(site: LogSite, pauses: Pauses) -> Child:
    """Fork a worker, bring it into its first pause, and return it."""
    feed = site.feeds["stdout"]
    worker = Child(spawn.fork_worker(site.worker("stdout")))
    for number in range(1, LEAST_RUN + 1):
        os.write(feed.source_wfd.fileno(), b"line\n")
        site.wait_written("stdout", 5 * number)
    pauses.wait()
    return worker


@pytest.mark.parametrize("policy", [BLOCK, DROP_NEW])
def test_lines_that_gather_in_a_pause_are_one_batch(
    tmp_path: Path, pauses: Pauses, policy: str
) -> None:
    """Records of one batch have one time. Everything was written before the pause."""
    cri = {"stdout": CriFormat("stdout")}
    with LogSite(tmp_path / "logs", cri, policy=policy, buffer_bytes=1 << 20) as site:
        worker = _pausing(site, pauses)
        assert len(list(cri_records(site.content()))) == LEAST_RUN
        assert site.counters.in_flight_bytes(0) == 0
        for _each in range(100):
            os.write(site.feeds["stdout"].source_wfd.fileno(), b"more\n")
        pauses.end()
        pauses.wait()
        more = [time for time, _stream, _tag, text in cri_records(site.content())][LEAST_RUN:]
        assert (len(more), len(set(more))) == (100, 1)
        worker.kill()


@pytest.mark.parametrize("policy", [BLOCK, DROP_NEW])
def test_a_kill_or_an_end_in_a_pause_loses_and_repeats_nothing(
    tmp_path: Path, pauses: Pauses, policy: str
) -> None:
    cri = {"stdout": CriFormat("stdout")}
    with LogSite(tmp_path / "logs", cri, policy=policy, buffer_bytes=1 << 20) as site:
        worker = _pausing(site, pauses)
        os.write(site.feeds["stdout"].source_wfd.fileno(), b"more\nlast")
        assert worker.kill() == Killed(signal.SIGKILL)
        site.feeds["stdout"].end_with(b"")
        assert site.run("stdout") == Report("stdout", 9)
        said = b"line\n" * LEAST_RUN + b"more\nlast"
        assert cri_streams(site.content())["stdout"] == said
        assert site.counters.copied_bytes(0) == len(said)


def _block(stream: str, number: int) -> bytes:
    """Return some 200 kB of lines: some empty, two longer than a record."""
    chance = random.Random(stream)
    content = chance.randbytes(40_000).replace(b"\n", b"")
    lines = [content[: chance.choice([0, 3, 50, 100, 200])] for _each in range(1500)]
    return b"%d\n%b\n%b\n" % (number, b"\n".join([*lines, content]), content)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("formats", "max_bytes", "kills"),
    [
        ({"stdout": CriFormat("stdout"), "stderr": CriFormat("stderr")}, 0, 250),
        ({"stdout": CriFormat("stdout"), "stderr": CriFormat("stderr")}, 3 << 20, 250),
        ({"stdout": PlainFormat(1 << 18)}, 3 << 20, 500),
    ],
)
def test_kills_under_load_lose_and_repeat_nothing(
    tmp_path: Path, formats: dict[str, Format], max_bytes: int, kills: int
) -> None:
    """Kill the workers of both streams into one file at random moments."""
    chance = random.Random(4)
    with (
        LogSite(tmp_path / "logs", formats, max_bytes=max_bytes, keep=999) as site,
        ExitStack() as stack,
    ):
        writers = {
            stream: Writer(site.feeds[stream], partial(_block, stream), stack) for stream in formats
        }
        workers = {stream: stack.enter_context(forked(site.worker(stream))) for stream in formats}
        for _each in range(kills):
            stream = chance.choice(list(formats))
            writers[stream].tell()
            select.select([], [], [], chance.uniform(0, 0.006))
            assert workers[stream].kill() == Killed(signal.SIGKILL)
            workers[stream] = stack.enter_context(forked(site.worker(stream)))
        for writer in writers.values():
            writer.end()
        for worker in workers.values():
            assert worker.wait() == Exited(0)
        for writer in writers.values():
            writer.wait()
        content = site.content()
        for stream, writer in writers.items():
            said = content if len(formats) == 1 else _said_by(content, stream)
            assert said == writer.content()
        assert len(site.files()) > 10 or not max_bytes
        assert all(path.stat().st_size <= (max_bytes or 1 << 40) for path in site.files())


def _said_by(content: bytes, stream: str) -> bytes:
    """Return the same as `cri_streams`, faster."""
    tagged = re.findall(rb"(?m)^[-0-9T:.]{29}Z %b ([FP] [^\n]*)" % stream.encode(), content)
    assert content.count(b"\n") == len(
        re.findall(rb"(?m)^[-0-9T:.]{29}Z (?:stdout|stderr) [FP] [^\n]*$", content)
    )
    return b"".join(text[2:] + (b"\n" if text[:1] == b"F" else b"") for text in tagged)
