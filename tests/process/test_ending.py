"""After the end of a process: the drain, by a crew that may be in trouble itself."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from supervisor.container.exit import ExitSequence
from supervisor.container.service_status import ServiceStatus
from supervisor.linux import spawn
from supervisor.systemd.notify import SILENT

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.harness.stream_site import Site

pytestmark = pytest.mark.process


def test_a_drain_is_over_once_though_the_last_stream_ends_while_it_is_looked_at(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream that no worker can be forked for is over as soon as it is hung up on."""

    def fails(_work: Callable[[], None]) -> int:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(spawn, "fork_worker", fails)
    rig = site.rig
    service = ServiceStatus(
        SILENT, rig.loop, site.stream_set, rig.log, stop_timeout_s=1, has_notify_proxy=False
    )
    ending = ExitSequence(rig.loop, site.stream_set, service, rig.log, is_stopping=lambda: False)
    site.on_over = ending.look
    drained: list[str] = []
    _stray, _reader, stream = site.output()
    site.start()
    ending.drain(lambda: drained.append(stream.name))
    site.run_until(lambda: stream.is_closed)
    assert drained == ["stdout"]
    assert site.overs == 1
