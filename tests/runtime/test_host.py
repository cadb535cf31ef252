"""One supervisor process with three real containers, and a real exec in the third."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from supervisor.container.api import ContainerApi, VerbError
from supervisor.container.container import Container
from supervisor.container.host import Host
from supervisor.container.lifecycle import State
from supervisor.container.request import ContainerSpec, StartRequest
from supervisor.linux.exit_status import Exited
from supervisor.oci.process_json import ProcessConfig
from supervisor.state.directory import StateDirectory
from supervisor.systemd import delegation
from tests.harness import bundles, pod, runtime_calls, waiting
from tests.harness.forked import forked

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.runc


def test_three_containers_in_one_process_have_their_own_timers_and_ends(
    tmp_path: Path, make_bundle: Callable[..., Path]
) -> None:
    programs = [pod.DEAF, pod.OBEYS, pod.STAYS]
    made = {
        bundles.fresh_id(f"pod{number}"): make_bundle(each) for number, each in enumerate(programs)
    }
    process = {
        "args": bundles.shell(pod.SECOND),
        "cwd": "/",
        "env": ["PATH=/bin"],
        "user": {"uid": 0, "gid": 0},
    }
    try:
        pod.run(tmp_path, runtime_calls.RUNTIME, made, process)
    finally:
        for container_id in made:
            runtime_calls.delete(container_id)


def test_the_verbs_start_pause_and_resume_and_when_they_are_errors(
    tmp_path: Path, make_bundle: Callable[..., Path]
) -> None:
    container_id = bundles.fresh_id("verbs")
    bundle = make_bundle("trap 'exit 6' TERM; echo ready; while :; do :; done")
    sink, path = tmp_path / "log", tmp_path / "state"
    path.mkdir()

    def work() -> None:
        state_dir = StateDirectory.open(str(path))
        log = state_dir.open_log()
        host = Host(log, os.environ)
        spec = ContainerSpec(
            container_id,
            str(bundle),
            runtime_calls.RUNTIME,
            starts_container=True,
            is_start_awaited=True,
        )
        config = ProcessConfig(stdout=f"file:{sink}", stderr=f"file:{sink}")
        container = Container(host, StartRequest(spec), log, state_dir, config)
        _use_the_verbs(host, container, sink)
        host.run()
        assert container.outcome.termination == Exited(6)
        with pytest.raises(VerbError, match=r"^stop: stopped already$"):
            ContainerApi(container).stop()

    try:
        with forked(work) as child:
            assert child.wait() == Exited(0)
    finally:
        runtime_calls.delete(container_id)


def test_the_verbs_update_delete_and_kill_by_the_runtime(
    tmp_path: Path, make_bundle: Callable[..., Path]
) -> None:
    container_id = bundles.fresh_id("verbs")
    bundle = make_bundle("trap 'exit 6' USR1; echo ready; while :; do sleep 0.01; done")
    sink, path = tmp_path / "log", tmp_path / "state"
    path.mkdir()

    def work() -> None:
        state_dir = StateDirectory.open(str(path))
        log = state_dir.open_log()
        host = Host(log, os.environ)
        spec = ContainerSpec(
            container_id,
            str(bundle),
            runtime_calls.RUNTIME,
            starts_container=True,
            is_delete_awaited=True,
        )
        config = ProcessConfig(stdout=f"file:{sink}", stderr=f"file:{sink}")
        container = Container(host, StartRequest(spec), log, state_dir, config)
        _update_kill_and_delete(host, container, sink)
        host.run()
        assert container.outcome.termination == Exited(6)
        with pytest.raises(VerbError, match=r"^delete: deleted already$"):
            ContainerApi(container).delete()

    try:
        with forked(work) as child:
            assert child.wait() == Exited(0)
        assert container_id.encode() not in runtime_calls.list_all()
    finally:
        runtime_calls.delete(container_id)


def _update_kill_and_delete(host: Host, container: Container, sink: Path) -> None:
    limit = host.loop.timer(_give_up)
    limit.start(waiting.LIMIT_S)
    tick = host.loop.timer(lambda: tick.start(0.01))
    tick.start(0.01)
    run_until, api, ends = host.loop.run_until, ContainerApi(container), list[str]()
    container.begin()
    with pytest.raises(VerbError, match=r"^update: not created yet$"):
        api.update(b"{}", ends.append)
    run_until(lambda: container.is_started and b"ready" in sink.read_bytes())
    with pytest.raises(VerbError, match=r"^delete: not stopped yet$"):
        api.delete()
    api.update(b'{"pids": {"limit": 77}}', ends.append)
    run_until(lambda: len(ends) == 1)
    assert ends == [""]
    assert _pids_limit(container.pid) == "77"
    api.update(b"no JSON", ends.append)
    run_until(lambda: len(ends) == 2)
    assert ends[1].startswith("exit status 1: ")
    api.kill_by_runtime(signal.SIGUSR1, ends.append)
    run_until(lambda: len(ends) == 3 and container.state is State.DRAINING)
    assert ends[2] == ""
    with pytest.raises(VerbError, match=r"^signal: stopped already$"):
        api.kill_by_runtime(signal.SIGKILL, ends.append, is_all=True)
    limit.cancel()
    tick.cancel()
    api.delete()


def _pids_limit(pid: int) -> str:
    place = delegation.membership(pid)
    name = "" if delegation.is_unified() else "pids"
    return Path(f"{delegation.ROOT}/{name}/{place[name]}/pids.max").read_text().strip()


def _use_the_verbs(host: Host, container: Container, sink: Path) -> None:
    limit = host.loop.timer(_give_up)
    limit.start(waiting.LIMIT_S)
    tick = host.loop.timer(lambda: tick.start(0.01))
    tick.start(0.01)
    run_until, api, ends = host.loop.run_until, ContainerApi(container), list[str]()
    container.begin()
    run_until(lambda: container.state is State.STARTING)
    assert api.state().status == "created"
    with pytest.raises(VerbError, match=r"^pause: not started yet$"):
        api.pause(ends.append)
    api.start()
    with pytest.raises(VerbError, match=r"^start: under way, or not left to this verb$"):
        api.start()
    run_until(lambda: container.is_started and b"ready" in sink.read_bytes())
    with pytest.raises(VerbError, match=r"^start: started already$"):
        api.start()
    api.pause(ends.append)
    with pytest.raises(VerbError, match=r"^resume: another pause or resume is under way$"):
        api.resume(ends.append)
    run_until(lambda: bool(ends))
    assert (ends, api.state().status) == ([""], "paused")
    used = _cpu_time(container.pid)
    api.pause(ends.append)  # the runtime takes its time, and refuses it
    run_until(lambda: len(ends) == 2)
    assert "exit" in ends[1]
    assert (_cpu_time(container.pid), api.state().status) == (used, "paused")
    api.resume(ends.append)
    run_until(lambda: _cpu_time(container.pid) > used and len(ends) == 3)
    assert (ends[2], api.state().status) == ("", "running")
    limit.cancel()
    tick.cancel()
    api.stop()


def _give_up() -> None:
    raise TimeoutError


def _cpu_time(pid: int) -> int:
    """Return the CPU time of a process in nanoseconds. Source: proc(5), schedstat."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])
