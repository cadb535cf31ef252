"""What the service manager is told of a stop whose time-out is not the request's."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest

from supervisor.container.api import ContainerApi
from supervisor.container.container import Container
from supervisor.container.host import Host
from supervisor.container.lifecycle import State
from supervisor.container.request import ContainerSpec, Origin, StartRequest
from supervisor.container.service_status import MARGIN_S
from supervisor.linux.exit_status import Exited
from supervisor.oci.invoke import CALL_LIMIT_S
from supervisor.oci.process_json import ProcessConfig
from supervisor.state.directory import StateDirectory
from supervisor.systemd.notify import Notifier
from tests.harness.forked import forked

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.process


@pytest.mark.parametrize(("timeout_s", "told_s"), [(None, 10.0), (77.0, 77.0), (0.5, 0.5)])
def test_a_stop_asks_for_the_time_that_its_own_time_out_takes(
    tmp_path: Path, timeout_s: float | None, told_s: float
) -> None:
    def work() -> None:
        state_dir = StateDirectory.open(str(tmp_path))
        log = state_dir.open_log()
        host = Host(log, os.environ)
        request = StartRequest(
            ContainerSpec("web", str(tmp_path), "/bin/true"),
            origin=Origin(notifier=Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify")})),
        )
        container = Container(host, request, log, state_dir, ProcessConfig())
        container.assemble()
        container.machine.state = State.RUNNING
        ContainerApi(container).stop(timeout_s)

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        with forked(work) as child:
            assert child.wait() == Exited(0)
        manager.setblocking(False)
        words: list[str] = []
        while not any(word.startswith("EXTEND_TIMEOUT_USEC") for word in words):
            words += manager.recv(4096).decode().split("\n")
    wanted = told_s + CALL_LIMIT_S + MARGIN_S
    assert f"EXTEND_TIMEOUT_USEC={wanted * 1e6:.0f}" in words
