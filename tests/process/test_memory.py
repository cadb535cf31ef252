"""What a forked child shares with its supervisor, as a fresh interpreter has it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[2]
_CODE = """
import gc, os
import supervisor.cli.main, supervisor.container.running
from supervisor.container.host import Host
from supervisor.linux import reaper, spawn

def collect():
    gc.collect()
    with open("/proc/self/smaps_rollup") as file:
        kib = [line.split()[1] for line in file if line.startswith("Private_Dirty:")]
    os.write(wfd, kib[0].encode())

host = Host(None, {})
host.prepare_forks("forkshim: web")
rfd, wfd = os.pipe()
reaper.wait_for(spawn.fork_worker(collect))
print(os.read(rfd, 100).decode())
host.close()
"""


def test_a_collection_in_a_worker_leaves_the_supervisors_heap_shared() -> None:
    path = f"import sys; sys.path[:] = {[str(ROOT), *sys.path]!r}\n"
    done = subprocess.run(
        [sys.executable, "-IS", "-c", path + _CODE], check=True, capture_output=True, text=True
    )
    assert 0 < int(done.stdout) < 2500, done
