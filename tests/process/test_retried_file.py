"""A file that cannot be written now: it is tried again, and the log says so once."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from supervisor.state import retried_file
from supervisor.state.retried_file import RetriedFile

if TYPE_CHECKING:
    from tests.harness.rig import Rig

pytestmark = pytest.mark.process


def test_it_is_tried_until_it_is_written(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retried_file, "RETRY_S", 0.001)
    tries: list[int] = []

    def write() -> None:
        tries.append(len(tries))
        if len(tries) < 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    file = RetriedFile(rig.loop, rig.log, "name", write)
    file.write()
    assert file.is_missing
    rig.run_until(lambda: not file.is_missing)
    assert len(tries) == 4
    assert not rig.loop.timers
    assert rig.messages() == [
        "write name: no space left on device; trying again every 0.001 s",
        "write name: done, after 3 failures (no space left on device)",
    ]


def test_after_a_cancel_it_is_not_tried_again(rig: Rig) -> None:
    def write() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    file = RetriedFile(rig.loop, rig.log, "name", write)
    file.write()
    file.cancel()
    assert not rig.loop.timers
