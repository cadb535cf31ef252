"""The supervised process's end: who waits for it is told first."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from supervisor.oom import OomWatch
from supervisor.payload import Payload
from supervisor.process import Process
from supervisor.statedir import ExitStatusFile
from supervisor.waitstatus import Exited

if TYPE_CHECKING:
    from pathlib import Path

    from tests.harness.yard import Yard

pytestmark = pytest.mark.process


def test_the_status_is_written_before_anything_else_is_looked_for(
    yard: Yard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    there: list[str] = []

    def kills(_watch: OomWatch) -> int:
        there.append((tmp_path / "exitStatus").read_text())
        return 2

    monkeypatch.setattr(OomWatch, "kills", kills)
    payload = Payload.of_child(yard.loop, yard.reaper, 1 << 22)
    process = Process(payload, ExitStatusFile(), OomWatch(1 << 22))
    process.termination = Exited(3)
    process.record_end()
    assert there == ["3"]
    assert process.end_in_words().endswith("the kernel killed 2 of its processes")
    process.close()
