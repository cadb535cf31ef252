"""OOM kills of a cgroup that lives on, of the version that this machine has."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "tests" / "programs" / "oom_events.py"


def test_each_kill_in_a_cgroup_is_told(tmp_path: Path) -> None:
    name = f"fst-oom-{os.getpid()}-{os.urandom(3).hex()}"
    done = subprocess.run(
        [sys.executable, PROGRAM, ROOT, name], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done
    killed, told = map(int, done.stdout.split())
    assert killed == 2
    assert told >= 2
