"""The supervised process's end: who waits for it is told first."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import orjson
import pytest

from supervisor.container.init_process import InitProcess, Process
from supervisor.linux.exit_status import Exited
from supervisor.state.directory import StateDirectory
from supervisor.systemd import delegation
from supervisor.systemd.oom import OomWatch
from tests.harness import waiting

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness.rig import Rig

pytestmark = pytest.mark.process


def test_a_cgroup_that_cannot_be_read_is_no_reason_to_leave_a_container(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(_pid: int) -> dict[str, str]:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(delegation, "membership", refused)
    assert OomWatch(os.getpid()).kills() == 0


def test_the_status_is_written_before_anything_else_is_looked_for(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state_dir = StateDirectory.open(str(tmp_path))
    there: list[str] = []

    def kills(_watch: OomWatch) -> int:
        there.append((tmp_path / "exitStatus").read_text())
        return 2

    monkeypatch.setattr(OomWatch, "kills", kills)
    init_process = InitProcess.of_child(rig.loop, rig.reaper, 1 << 22)
    process = Process(init_process, state_dir, OomWatch(1 << 22))
    process.termination = Exited(3)
    process.record_end()
    assert there == ["3"]
    assert process.end_in_words().endswith("the kernel killed 2 of its processes")
    process.close()
    state_dir.close()


def test_a_count_goes_on_in_a_cgroup_whose_name_is_no_text(strange_cgroup: Path) -> None:
    """The handover is UTF-8, a cgroup's name is not."""
    (strange_cgroup / "memory.limit_in_bytes").write_text(str(16 << 20))
    grows = 'read go; s=0123456789abcdef; while :; do s="$s$s"; done'
    with subprocess.Popen(["sh", "-c", grows], stdin=subprocess.PIPE) as child:
        (strange_cgroup / "cgroup.procs").write_text(str(child.pid))
        packed = OomWatch(child.pid).snapshot()
        watch = OomWatch(0, orjson.loads(orjson.dumps(packed)))
        assert watch.snapshot() == packed
        assert watch.kills() == 0
        child.communicate(b"go\n", timeout=waiting.LIMIT_S)
    assert watch.kills() == 1


@pytest.fixture
def strange_cgroup() -> Iterator[Path]:
    name = b"/forkshim-test-%d\v\f\r\xe2\x80\xa8\xff" % os.getpid()
    path = Path(os.fsdecode(os.fsencode(delegation.ROOT) + b"/memory" + name))
    path.mkdir()
    yield path
    path.rmdir()
