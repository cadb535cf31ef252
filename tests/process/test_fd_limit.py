"""The soft RLIMIT_NOFILE: raised for this process and its forks, given back to other programs."""

from __future__ import annotations

import os
import resource
from typing import TYPE_CHECKING

import pytest

from supervisor.linux import fd_limit, spawn
from supervisor.linux.exit_status import Exited
from supervisor.linux.reaper import wait_for
from tests.harness.forked import forked

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.process

SOFT = 200


def test_other_programs_get_the_limit_that_this_one_was_given(tmp_path: Path) -> None:
    def work() -> None:
        _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (SOFT, hard))
        for _each in range(2):
            fd_limit.raise_soft()
            assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
        null, out = (
            os.open(os.devnull, os.O_RDWR),
            os.open(tmp_path / "out", os.O_RDWR | os.O_CREAT),
        )
        words = ["sh", "-c", "ulimit -Sn"]
        ends = (null, out, null)
        pid = spawn.exec_program("/bin/sh", words, cwd="/", stdio=ends, environment=os.environ)
        assert wait_for(pid) == Exited(0)
        os.dup2(out, 1)
        spawn.replace_process("/bin/sh", words, os.environ)

    with forked(work) as child:
        assert child.wait() == Exited(0)
    assert (tmp_path / "out").read_text() == f"{SOFT}\n{SOFT}\n"
