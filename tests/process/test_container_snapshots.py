"""What a container hands to its next supervisor: each attribute is handed over, or says why not."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from supervisor.container.container import Container
from supervisor.container.host import Host
from supervisor.container.init_process import Process
from supervisor.container.request import ContainerSpec, StartRequest
from supervisor.linux import fds
from supervisor.linux.exit_status import Exited
from supervisor.oci.process_json import ProcessConfig
from supervisor.state.directory import StateDirectory
from tests.harness.forked import forked

if TYPE_CHECKING:
    from pathlib import Path

    from supervisor.linux.exit_status import Termination

pytestmark = pytest.mark.process


def test_every_attribute_is_handed_over_or_listed_as_transient(tmp_path: Path) -> None:
    def work() -> None:
        state_dir = StateDirectory.open(str(tmp_path))
        log = state_dir.open_log()
        host = Host(log, os.environ)
        request = StartRequest(ContainerSpec("web", str(tmp_path), "/bin/true"))
        container = Container(host, request, log, state_dir, ProcessConfig())
        container.assemble()
        running = container.running
        process = Process.of_child(host.loop, host.reaper, os.getpid(), state_dir)
        things = [
            container, container.launch, running, running.handover, running.stopper,
            running.service, running.control, process, process._init_process,
        ]  # fmt: skip
        for thing in things:
            kind: Any = type(thing)
            assert sorted([*kind.SNAPSHOT, *kind.TRANSIENT]) == sorted(vars(thing)), kind.__name__
        process.close()

    with forked(work) as child:
        assert child.wait() == Exited(0)


def test_a_reload_waits_for_a_call_of_the_runtime(tmp_path: Path) -> None:
    def work() -> None:
        state_dir = StateDirectory.open(str(tmp_path))
        host = Host(state_dir.open_log(), os.environ)
        request = StartRequest(ContainerSpec("web", str(tmp_path), "/bin/cat"))
        container = Container(host, request, host.log, state_dir, ProcessConfig())
        container.assemble()
        snapshot = container.running.snapshot
        ends: list[Termination] = []
        assert snapshot.is_settled
        rfd, wfd = fds.pipe()
        container.launch.invoker.run(["/bin/cat"], ends.append, stdio=(rfd.fileno(), 1, 2))
        assert not snapshot.is_settled
        wfd.close()
        host.loop.run_until(lambda: bool(ends))
        assert snapshot.is_settled
        rfd.close()

    with forked(work) as child:
        assert child.wait() == Exited(0)
