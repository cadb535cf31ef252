"""Workers of logs and of the journal, killed hundreds of times: each record is there, once."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.harness import bundles, mounts, waiting
from tests.harness.engine import Engine
from tests.harness.fake_journal import FakeJournal
from tests.harness.rewriting import cri_streams
from tests.runtime.test_lossless import SEED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [pytest.mark.runc, pytest.mark.slow, pytest.mark.timeout(300)]

KILLS = 40  # more on a quiet machine: the killer has to keep up with the worker
BLOCK_BYTES = 1 << 20
BLOCKS = 72
BLOCKS_OF_RECORDS = 24  # a datagram for each line takes longer
MOST_BETWEEN_KILLS = 256 << 10
SCRIPT = """
say() { for i in $(seq %d); do cat /tmp/block; done; }
say & say >&2; wait; exit 26
"""


@pytest.fixture(scope="module")
def block(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Lines of any bytes, of up to 600 bytes, a few of up to 50,000."""
    chosen = random.Random(SEED)
    content = bytearray()
    while len(content) < BLOCK_BYTES:
        longest = 50_000 if chosen.random() < 0.005 else 600
        content += chosen.randbytes(chosen.randrange(longest)).replace(b"\n", b"x") + b"\n"
    path = tmp_path_factory.mktemp("data") / "block"
    path.write_bytes(content)
    return path


def _bundle(tmp_path: Path, rootfs: Path, block: Path, blocks: int) -> Path:
    mount = {
        "destination": "/tmp/block",
        "type": "bind",
        "source": str(block),
        "options": ["bind", "ro"],
    }
    document = bundles.config(rootfs, bundles.shell(SCRIPT % blocks), mounts=[mount])
    return bundles.make_bundle(tmp_path / "bundle", document)


def _kill_along(engine: Engine, streams: list[str], written: Callable[[], int]) -> None:
    """Kill the streams' workers at positions in what is `written`, to the container's end."""
    chosen = random.Random(SEED)
    kills = dict.fromkeys(streams, 0)
    next_at = dict.fromkeys(streams, 0)
    while not waiting.has_hung_up(engine.exit_fd):
        for stream in streams:
            position = written()
            pid = waiting.worker_of(engine.shim_pid, stream)
            if pid is None or position < next_at[stream]:
                continue
            with contextlib.suppress(ProcessLookupError):  # it has come to its end just now
                os.kill(pid, signal.SIGKILL)
                kills[stream] += 1
            next_at[stream] = position + chosen.randrange(MOST_BETWEEN_KILLS)
    assert engine.wait_end() == 26
    assert engine.wait_shim() == 0
    assert min(kills.values()) >= KILLS, kills


def _sizes(directory: Path) -> int:
    """Return about how much is in the files, which may be renamed meanwhile."""
    size = 0
    for path in directory.iterdir():
        with contextlib.suppress(FileNotFoundError):
            size += path.stat().st_size
    return size


@pytest.mark.parametrize("options", ["", ",max-size=1M,keep=1000"])
def test_both_streams_of_a_cri_log_survive_the_kills(
    tmp_path: Path, rootfs: Path, block: Path, options: str
) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    sink = f"cri{options}:{logs / 'log'}"
    with Engine(
        tmp_path / "state",
        bundles.fresh_id("cri"),
        _bundle(tmp_path, rootfs, block, BLOCKS),
        containerdStdout=sink,
        containerdStderr=sink,
    ) as engine:
        engine.run()
        _kill_along(engine, ["stdout", "stderr"], lambda: _sizes(logs))
    wanted = block.read_bytes() * BLOCKS
    said = cri_streams(_content(logs))
    assert [said[stream] == wanted for stream in ("stdout", "stderr")] == [True, True]


def test_a_file_that_rotates_survives_the_kills(tmp_path: Path, rootfs: Path, block: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    with Engine(
        tmp_path / "state",
        bundles.fresh_id("file"),
        _bundle(tmp_path, rootfs, block, BLOCKS),
        containerdStdout=f"file,max-size=1M,keep=1000:{logs / 'log'}",
        containerdStderr="",
    ) as engine:
        engine.run()
        _kill_along(engine, ["stdout"], lambda: _sizes(logs))
    assert len(list(logs.iterdir())) > BLOCKS
    assert _content(logs) == block.read_bytes() * BLOCKS


def _content(logs: Path) -> bytes:
    def age(path: Path) -> int:
        return int(path.suffix[1:] or "0")

    return b"".join(path.read_bytes() for path in sorted(logs.iterdir(), key=age, reverse=True))


@pytest.fixture
def journal() -> Iterator[tuple[FakeJournal, Callable[[], None]]]:
    """A journald that is not one, and what makes it the one of a process."""
    with ExitStack() as stack:
        run = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "run"
        (run / "systemd/journal").mkdir(parents=True)
        fake = stack.enter_context(FakeJournal(run / "systemd/journal/socket"))
        yield fake, mounts.make_run(run)


def test_both_streams_in_the_journal_survive_the_kills(
    tmp_path: Path,
    rootfs: Path,
    block: Path,
    journal: tuple[FakeJournal, Callable[[], None]],
) -> None:
    fake, enter = journal
    with Engine(
        tmp_path / "state",
        bundles.fresh_id("journal"),
        _bundle(tmp_path, rootfs, block, BLOCKS_OF_RECORDS),
        containerdStdout="journal",
        containerdStderr="journal",
    ) as engine:
        engine.launch(preexec_fn=enter)
        engine.created()
        engine.start()
        kept = fake.path.with_suffix(".kept")
        _kill_along(engine, ["stdout", "stderr"], lambda: kept.stat().st_size)
    wanted = block.read_bytes().split(b"\n")[:-1] * BLOCKS_OF_RECORDS
    numbers = dict.fromkeys(("stdout", "stderr"), 0)
    for datagram in fake.datagrams():
        stream = datagram.fields["CONTAINER_STREAM"].decode()
        assert datagram.ordinal - numbers[stream] in (0, 1), "repeated once, but never left out"
        numbers[stream] = datagram.ordinal
        assert datagram.message == wanted[datagram.ordinal - 1]
    assert numbers == dict.fromkeys(numbers, len(wanted))
