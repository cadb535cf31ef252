"""Shared memory and the line reader, when a worker is killed at any instruction."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from typing import TYPE_CHECKING

import pytest

from supervisor.linux import fds
from supervisor.linux.exit_status import Exited
from tests.harness import dying
from tests.harness.forked import forked
from workers.common.shared_memory import PAGE_BYTES, Memory, Record
from workers.copy import staging
from workers.copy.route import Route
from workers.lines.buffer import LineBuffer
from workers.lines.reader import Filled, LineReader
from workers.process.counters import MOST_BYTES, StreamCounters

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.process


@pytest.fixture
def memory() -> Iterator[Memory]:
    made = Memory("test", 100)
    yield made
    made.close()


def test_a_record_is_all_zero_at_first_and_then_what_was_committed(memory: Memory) -> None:
    record = Record(memory.words, 3)
    assert record.read() == [0, 0, 0]
    for numbers in ([1, 2, 3], [2**64 - 1, 0, 5], [7, 8, 9]):
        record.commit(numbers)
        assert record.read() == numbers
    record.release()


def test_a_record_shows_the_old_numbers_or_the_new_ones_at_any_instruction(
    memory: Memory,
) -> None:
    record = Record(memory.words, 3)

    def work() -> None:
        for number in range(1, 4):
            record.commit([number, number, number])

    seen = set()
    for step in range(1, dying.instructions(work) + 1):
        record.commit([0, 0, 0])
        dying.die_at(step, work)
        numbers = record.read()
        assert len(set(numbers)) == 1
        seen.add(numbers[0])
    assert seen == {0, 1, 2}
    record.release()


def test_a_worker_cannot_change_the_size_of_the_memory(memory: Memory) -> None:
    """A read of a removed page is SIGBUS, and the supervisor reads the memory."""

    def attack() -> None:
        paths = [f"/proc/self/fd/{memory.fd}", *map_files(b"memfd:test")]
        assert len(paths) == 2
        for path in paths:
            fd = os.open(path, os.O_RDWR)
            for size in (0, 1, PAGE_BYTES, 1 << 20):
                with pytest.raises(PermissionError):
                    os.ftruncate(fd, size)
            with pytest.raises(PermissionError):
                fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)

    with forked(attack) as worker:
        assert worker.wait() == Exited(0)
    assert Record(memory.words, 3).read() == [0, 0, 0]


def map_files(name: bytes) -> list[str]:
    """Return the path of this process's mapping of that name, to open it without a descriptor."""
    with open("/proc/self/maps", "rb") as maps:
        return [f"/proc/self/map_files/{line.split()[0].decode()}" for line in maps if name in line]


def unsealed(size: int, *, seals: int = 0) -> int:
    fd = os.memfd_create("forkshim:test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    if seals:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


@pytest.mark.parametrize("missing", [fcntl.F_SEAL_SHRINK, fcntl.F_SEAL_GROW, fcntl.F_SEAL_SEAL])
def test_memory_that_could_be_resized_is_not_taken_over(missing: int) -> None:
    every = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
    fd = unsealed(mmap.PAGESIZE, seals=every & ~missing)
    with pytest.raises(ValueError, match="not sealed"):
        StreamCounters(fd=fd)
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        os.fstat(fd)  # `Memory` has closed it


@pytest.mark.parametrize("size", [0, 1, mmap.PAGESIZE, mmap.PAGESIZE + 101, 1 << 30])
def test_memory_of_another_size_is_not_taken_over(size: int) -> None:
    every = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
    with pytest.raises(ValueError, match="bytes"):
        Memory("test", 100, fd=unsealed(size, seals=every))


def test_a_descriptor_that_is_no_memfd_is_not_taken_over() -> None:
    for path in ("/dev/zero", "/etc/passwd"):
        with pytest.raises(ValueError, match="not sealed"):
            Memory("test", 100, fd=os.open(path, os.O_RDONLY))


def test_sealed_memory_is_taken_over_with_its_content(memory: Memory) -> None:
    memory.words[7] = 9
    again = Memory("test", 100, fd=os.dup(memory.fd))
    assert again.words[7] == 9
    again.close()


@pytest.mark.parametrize("wild", [2, 3, 2**63, 2**64 - 2, 2**64 - 1])
def test_numbers_that_a_worker_has_invented_stay_in_range(memory: Memory, wild: int) -> None:
    """The supervisor adds the numbers, and writes them as JSON, whose integers have a limit."""
    record = Record(memory.words, 3)
    record.commit([1, 2, 3])
    for word in range(Record.words_needed(3)):
        before = memory.words[word]
        memory.words[word] = wild
        numbers = record.read()
        assert len(numbers) == 3
        assert all(0 <= number <= 2**64 - 1 for number in numbers)
        record.commit([4, 5, 6])
        assert record.read() == [4, 5, 6]
        memory.words[word] = before
    record.release()
    counters = StreamCounters()
    for word in range(PAGE_BYTES // 8):
        counters._numbers[word] = wild
    assert 0 <= counters.copied_bytes(0) <= MOST_BYTES
    assert 0 <= counters.in_flight_bytes(0) <= MOST_BYTES
    assert 0 <= counters.skipped_bytes(0) <= MOST_BYTES
    counters.close()


class Untold:
    """Progress that no test reads."""

    def add_copied(self, copied_bytes: int) -> None: ...

    def set_in_flight(self, in_flight_bytes: int) -> None: ...

    is_teed = False

    def set_teed(self, *, is_teed: bool) -> None: ...

    def add_skipped(self, client: int, skipped_bytes: int) -> None: ...

    def unteed_bytes(self, branch: int) -> int:
        raise AssertionError(branch)

    def set_unteed_bytes(self, branch: int, count: int) -> None: ...


NO_PROGRESS = Untold()


class Basin:
    """A source, a staging pipe and a line buffer."""

    def __init__(self, longest_line_bytes: int) -> None:
        self.source_rfd, self.source_wfd = fds.pipe()
        self.staging = fds.pipe()
        self.buffer = LineBuffer("test", longest_line_bytes)
        staging = (self.staging[0].fileno(), self.staging[1].fileno())
        self.route = Route(self.source_rfd.fileno(), -1, staging)

    def close(self) -> None:
        for owner in (self.source_rfd, self.source_wfd, *self.staging):
            owner.close()
        self.buffer.close()


@pytest.fixture
def make_basin(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], Basin]]:
    """Basins that read 10 bytes at once."""
    dying.small_reads(monkeypatch, 10)
    made = []

    def make(longest_line_bytes: int) -> Basin:
        made.append(Basin(longest_line_bytes))
        return made[-1]

    yield make
    for basin in made:
        basin.close()


def test_bytes_keep_their_positions_while_the_buffer_moves(
    make_basin: Callable[[int], Basin],
) -> None:
    basin = make_basin(7)
    content = bytes(range(100))
    os.write(basin.source_wfd.fileno(), content)
    basin.source_wfd.close()
    reader = LineReader(basin.route, basin.buffer, NO_PROGRESS)
    consumed = 0
    while reader.fill(consumed) is Filled.SOME:
        taken = basin.buffer.read().taken
        assert basin.buffer.copy(consumed, taken) == content[consumed:taken]
        consumed = taken - min(7, taken - consumed)  # as much as may remain
    assert reader.fill(100) is Filled.END
    assert basin.buffer.read()[:3] == (100, 100, 0)


def test_a_newline_is_found_by_position(make_basin: Callable[[int], Basin]) -> None:
    basin = make_basin(7)
    os.write(basin.source_wfd.fileno(), b"a\nb\ncccccc")
    LineReader(basin.route, basin.buffer, NO_PROGRESS).fill(0)
    basin.buffer.make_room(4)
    assert basin.buffer.last_newline(0, 10) == 3
    assert basin.buffer.last_newline(0, 3) == 1
    assert basin.buffer.last_newline(4, 10) == -1


def test_a_silent_source_is_waited_for_as_long_as_asked(
    make_basin: Callable[[int], Basin],
) -> None:
    basin = make_basin(7)
    reader = LineReader(basin.route, basin.buffer, NO_PROGRESS)
    assert reader.fill(0, 0) is Filled.NOTHING
    assert reader.fill(0, 1) is Filled.NOTHING
    os.write(basin.source_wfd.fileno(), b"x")
    assert reader.fill(0, 0) is Filled.SOME


def test_a_source_that_another_process_has_read_is_polled_again(
    make_basin: Callable[[int], Basin], monkeypatch: pytest.MonkeyPatch
) -> None:
    basin = make_basin(7)
    os.write(basin.source_wfd.fileno(), b"x")

    def another_reader_was_faster(*_arguments: object) -> int:
        raise BlockingIOError

    with monkeypatch.context() as patch:
        patch.setattr(staging, "fill", another_reader_was_faster)
        reader = LineReader(basin.route, basin.buffer, NO_PROGRESS)
        assert reader.fill(0) is Filled.SOME
    assert basin.buffer.read().taken == 0


def test_a_line_that_is_too_long_for_the_buffer_is_a_bug_and_not_overwritten(
    make_basin: Callable[[int], Basin],
) -> None:
    basin = make_basin(7)
    os.write(basin.source_wfd.fileno(), bytes(20))
    reader = LineReader(basin.route, basin.buffer, NO_PROGRESS)
    reader.fill(0)
    reader.fill(0)
    with pytest.raises(RuntimeError, match="an unfinished line of 20 bytes"):
        reader.fill(0)


@pytest.mark.parametrize(("start", "end"), [(9, 12), (10, 21), (12, 11)])
def test_bytes_that_are_not_there_are_a_bug(
    make_basin: Callable[[int], Basin], start: int, end: int
) -> None:
    basin = make_basin(7)
    os.write(basin.source_wfd.fileno(), bytes(20))
    reader = LineReader(basin.route, basin.buffer, NO_PROGRESS)
    reader.fill(0)
    reader.fill(10)
    assert basin.buffer.copy(10, 20) == bytes(10)
    with pytest.raises(RuntimeError, match=f"bytes {start} to {end}, of 10 to 20"):
        basin.buffer.copy(start, end)


def test_a_line_reader_needs_a_staging_pipe(make_basin: Callable[[int], Basin]) -> None:
    with pytest.raises(ValueError, match="staging"):
        LineReader(Route(0, -1), make_basin(7).buffer, NO_PROGRESS)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_kill_at_any_instruction_of_a_line_reader_leaves_each_byte_in_one_place(
    make_basin: Callable[[int], Basin],
) -> None:
    content = bytes(range(50))

    def fed() -> Basin:
        basin = make_basin(len(content))
        os.write(basin.source_wfd.fileno(), content)
        basin.source_wfd.close()
        return basin

    def take_all(basin: Basin) -> None:
        reader = LineReader(basin.route, basin.buffer, NO_PROGRESS)
        while reader.fill(0) is Filled.SOME:
            pass

    counted = fed()
    for step in range(1, dying.instructions(lambda: take_all(counted)) + 1):
        basin = fed()
        dying.die_at(step, lambda basin=basin: take_all(basin))  # type: ignore[misc] # bound now
        take_all(basin)
        assert basin.buffer.read()[:3] == (0, 50, 0)
        assert basin.buffer.copy(0, 50) == content
        basin.close()
