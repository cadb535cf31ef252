"""Our conmon with a full disk and without its log's directory, where conmon loses lines or dies."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.harness import conmon, waiting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.harness.conmon import Engine

pytestmark = [pytest.mark.runc, pytest.mark.process]

_LINES = 30000
_WRITES = f"i=0; while [ $i -lt {_LINES} ]; do i=$((i+1)); echo line $i; done; exit 7"
_COUNTS = "trap 'exit 3' TERM; i=0; while :; do i=$((i+1)); echo line $i; done"


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    path = tmp_path / "small"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "small", path], check=True)
    yield path
    subprocess.run(["umount", "--lazy", path], check=True)


def _fill(directory: Path) -> Path:
    path = directory / "filler"
    with path.open("wb", buffering=0) as file:
        try:
            while file.write(b"x" * 4096) == 4096:
                pass
        except OSError:
            pass
    return path


def test_a_full_disk_makes_the_container_wait_and_loses_no_line(
    make_conmon: Callable[..., Engine], small: Path
) -> None:
    """Fault 7 of the table: conmon drops what it cannot write, also in the middle of a line."""
    engine = make_conmon(_WRITES)
    engine.create(log=f"k8s-file:{small}/log")
    engine.runc("start", engine.cid)
    waiting.wait_true(lambda: "No space left on device" in engine.own_log())
    engine.kill_supervisor()
    subprocess.run(["mount", "-o", "remount,size=8m", small], check=True)
    assert engine.status() == "7"
    texts = [line.split(" ", 3)[3] for line in (small / "log").read_text().splitlines()]
    assert texts == [f"line {i + 1}" for i in range(_LINES)]


def test_an_exit_file_waits_for_room(make_conmon: Callable[..., Engine], small: Path) -> None:
    """Fault 7, too: conmon ends without the status."""
    engine = make_conmon("exit 5")
    (engine.directory / "exits").rmdir()
    (engine.directory / "exits").symlink_to(small)
    said = engine.directory / "said"
    engine.create(*conmon.exit_command(f"echo over >>{said}"))
    filler = _fill(small)
    engine.runc("start", engine.cid)
    waiting.wait_true(lambda: "trying again for 60 s" in engine.own_log())
    assert (engine.bundle / ".forkshim" / "exitStatus").read_text() == "5"
    assert not (small / engine.cid).exists()
    filler.unlink()
    assert engine.status() == "5"
    waiting.wait_true(said.exists)


def test_a_log_whose_directory_is_gone_comes_back_with_it(
    make_conmon: Callable[..., Engine], tmp_path: Path
) -> None:
    """Fault 8 of the table: conmon dies at the next truncation, and the container with it."""
    directory = tmp_path / "logs"
    directory.mkdir()
    engine = make_conmon(_COUNTS)
    engine.create("--log-size-max", "10000", log=f"k8s-file:{directory}/log")
    engine.runc("start", engine.cid)
    waiting.wait_true(lambda: (directory / "log").stat().st_size > 1000)
    shutil.rmtree(directory)
    waiting.wait_true(lambda: "No such file or directory" in engine.own_log())
    pid = int((engine.directory / "pid").read_text())
    assert waiting.is_alive(pid)
    directory.mkdir()
    waiting.wait_true((directory / "log").exists)
    waiting.wait_true(lambda: (directory / "log").stat().st_size > 1000)
    os.kill(engine.monitor, signal.SIGTERM)
    assert engine.status() == "3"
