"""Workers of logs and of the journal, killed hundreds of times: each record is there, once.

FORKSHIM_KILLS makes the long run: 500.
"""

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
from tests.harness.fake_journal import FakeJournal, FakeStreams
from tests.harness.rewriting import cri_streams
from tests.runtime.test_lossless import SEED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [pytest.mark.runc, pytest.mark.slow, pytest.mark.timeout(300)]

KILLS = int(os.environ.get("FORKSHIM_KILLS", "100"))
BLOCK_BYTES = 1 << 20
MOST_BETWEEN_KILLS = 256 << 10
SCRIPT = """
say() { while [ ! -e /tmp/data/enough ]; do cat /tmp/data/block; echo 1 >> /tmp/data/$1; done; }
say stdout & say stderr >&2; wait; exit 26
"""


class Said:
    """What the container says: one block again and again, until there were enough kills.

    Lines of any bytes, of up to 600 bytes, a few of up to 50,000.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self.directory = directory
        chosen = random.Random(SEED)
        content = bytearray()
        while len(content) < BLOCK_BYTES:
            longest = 50_000 if chosen.random() < 0.005 else 600
            content += chosen.randbytes(chosen.randrange(longest)).replace(b"\n", b"x") + b"\n"
        self.block = bytes(content)
        (directory / "block").write_bytes(self.block)

    def end(self) -> None:
        """Let the block that is being said be the last one."""
        (self.directory / "enough").touch()

    def blocks(self, stream: str) -> int:
        """Return how often the container has said it."""
        return len((self.directory / stream).read_text().splitlines())

    def make_bundle(self, directory: Path, rootfs: Path) -> Path:
        mount = bundles.bind(self.directory, "/tmp/data")
        document = bundles.config(rootfs, bundles.shell(SCRIPT), mounts=[mount])
        return bundles.make_bundle(directory, document)


@pytest.fixture
def said(tmp_path: Path) -> Said:
    return Said(tmp_path / "data")


def _kill_along(engine: Engine, said: Said, streams: list[str], written: Callable[[], int]) -> None:
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
        if min(kills.values()) >= KILLS:
            said.end()
    assert engine.wait_end() == 26
    assert engine.wait_shim() == 0


def _sizes(directory: Path) -> int:
    """Return about how much is in the files, which may be renamed meanwhile."""
    size = 0
    for path in directory.iterdir():
        with contextlib.suppress(FileNotFoundError):
            size += path.stat().st_size
    return size


@pytest.mark.parametrize("options", ["", ",max-size=1M,keep=1000"])
def test_both_streams_of_a_cri_log_survive_the_kills(
    tmp_path: Path, rootfs: Path, said: Said, options: str
) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    sink = f"cri{options}:{logs / 'log'}"
    with Engine(
        tmp_path / "state",
        bundles.fresh_id("cri"),
        said.make_bundle(tmp_path / "bundle", rootfs),
        containerdStdout=sink,
        containerdStderr=sink,
    ) as engine:
        engine.run()
        _kill_along(engine, said, ["stdout", "stderr"], lambda: _sizes(logs))
    came = cri_streams(_content(logs))
    for stream in ("stdout", "stderr"):
        assert came[stream] == said.block * said.blocks(stream)


def test_a_file_that_rotates_survives_the_kills(tmp_path: Path, rootfs: Path, said: Said) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    with Engine(
        tmp_path / "state",
        bundles.fresh_id("file"),
        said.make_bundle(tmp_path / "bundle", rootfs),
        containerdStdout=f"file,max-size=1M,keep=1000:{logs / 'log'}",
        containerdStderr="",
    ) as engine:
        engine.run()
        _kill_along(engine, said, ["stdout"], lambda: _sizes(logs))
    assert len(list(logs.iterdir())) > said.blocks("stdout") > 1
    assert _content(logs) == said.block * said.blocks("stdout")


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
    said: Said,
    journal: tuple[FakeJournal, Callable[[], None]],
) -> None:
    fake, enter = journal
    with Engine(
        tmp_path / "state",
        bundles.fresh_id("journal"),
        said.make_bundle(tmp_path / "bundle", rootfs),
        containerdStdout="journal",
        containerdStderr="journal",
    ) as engine:
        engine.launch(preexec_fn=enter)
        engine.created()
        engine.start()
        kept = fake.path.with_suffix(".kept")
        _kill_along(engine, said, ["stdout", "stderr"], lambda: kept.stat().st_size)
    wanted = said.block.split(b"\n")[:-1]
    numbers = dict.fromkeys(("stdout", "stderr"), 0)
    for datagram in fake.datagrams():
        if "CONTAINER_STREAM" not in datagram.fields:
            continue  # a message of the supervisor's own
        stream = datagram.fields["CONTAINER_STREAM"].decode()
        assert datagram.ordinal - numbers[stream] in (0, 1), "repeated once, but never left out"
        numbers[stream] = datagram.ordinal
        assert datagram.message == wanted[(datagram.ordinal - 1) % len(wanted)]
    assert numbers == {stream: len(wanted) * said.blocks(stream) for stream in numbers}


def test_a_stream_of_the_journal_survives_the_kills(
    tmp_path: Path, rootfs: Path, said: Said
) -> None:
    """The records are made by journald; the bytes are ours to bring there."""
    run = tmp_path / "run"
    (run / "systemd/journal").mkdir(parents=True)
    enter = mounts.make_run(run)
    with (
        FakeStreams(run / "systemd/journal/stdout") as fake,
        Engine(
            tmp_path / "state",
            bundles.fresh_id("stream"),
            said.make_bundle(tmp_path / "bundle", rootfs),
            containerdStdout="journal-stream",
            containerdStderr="",
        ) as engine,
    ):
        engine.launch(preexec_fn=enter)
        engine.created()
        engine.start()
        _kill_along(engine, said, ["stdout"], lambda: fake.kept.stat().st_size)
        wanted = said.block * said.blocks("stdout")
        waiting.wait_path(fake.kept, lambda path: path.stat().st_size >= len(wanted))
        assert fake.kept.read_bytes() == wanted
