"""After the end of a process: the drain, by a crew that may be in trouble itself."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from supervisor.container.exit import ExitSequence
from supervisor.container.service_status import ServiceStatus
from supervisor.container.stop import Stopper
from supervisor.linux import spawn
from supervisor.oci.command_line import RuntimeCommand
from supervisor.oci.invoke import RuntimeInvoker
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
    calls = RuntimeInvoker(
        rig.loop,
        rig.reaper,
        name="runc",
        cwd="/",
        null_fd=rig.null.fileno(),
        environment=os.environ,
    )
    command = RuntimeCommand(
        name="runc", args=(), state_dir="/", bundle="/", container_id="web", config=""
    )
    stopper = Stopper(
        rig.loop,
        calls,
        command,
        rig.log,
        timeout_s=1,
        is_exec=False,
        signal_init=lambda _signum: None,
    )
    service = ServiceStatus(
        SILENT, rig.loop, site.stream_set, rig.log, stopper, has_notify_proxy=False
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
