"""A benchmark and a soak that are ended while their containers run, by whatever signal."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import waiting

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.runc, pytest.mark.slow]


def descendants(pid: int) -> list[int]:
    """Return the processes below this one."""
    found = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for child in waiting.children_of(pid):
            found += [child, *descendants(child)]
    return found


def crowd_of(pid: int) -> set[str]:
    """Return the ids of the containers whose supervisors are below this process."""
    titles = [waiting.title_of(each) for each in descendants(pid)]
    return {title.split()[1] for title in titles if title.startswith("forkshim: fst-")}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    ("program", "most"),
    [(["tests.bench", "idle"], 3), (["tests.faults"], 1)],
    ids=["bench", "soak"],
)
def test_whoever_ends_it_nothing_is_left(
    tmp_path: Path, program: list[str], most: int, number: signal.Signals
) -> None:
    in_memory = set(os.listdir("/dev/shm"))
    fenced = subprocess.Popen(
        [sys.executable, "-m", *program],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    with fenced:
        waiting.wait_true(lambda: len(crowd_of(fenced.pid)) >= most)
        names = crowd_of(fenced.pid)
        below = [os.pidfd_open(pid) for pid in descendants(fenced.pid)]
        fenced.send_signal(number)
        for fd in below:
            waiting.wait_readable(fd)
            os.close(fd)
        assert fenced.stderr is not None
        said = fenced.stderr.read()  # the soak's are the words of its supervisors
        assert not said or program == ["tests.faults"]
    assert fenced.returncode == (-number if number == signal.SIGKILL else 128 + number)
    waiting.wait_true(lambda: not os.listdir(tmp_path))
    groups = [name for _path, folders, _files in os.walk("/sys/fs/cgroup") for name in folders]
    assert not names.intersection(groups)
    assert set(os.listdir("/dev/shm")) <= in_memory
    assert str(tmp_path) not in Path("/proc/self/mounts").read_text()
