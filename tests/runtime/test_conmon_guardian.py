"""Our conmon's guardian with a real runc: what it passes on, holds, starts and runs at the end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from typing import TYPE_CHECKING

import pytest

from supervisor.frontends.conmon.guardian.script import State, guardian_argv
from tests.harness import conmon, waiting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.harness.conmon import Engine

pytestmark = [pytest.mark.runc, pytest.mark.process]

_ANSWERS = "while read line; do echo got $line; done; exit 5"


@pytest.fixture
def running(make_conmon: Callable[..., Engine]) -> Engine:
    engine = make_conmon()
    engine.create()
    engine.runc("start", engine.cid)
    waiting.wait_true(lambda: "stdout F ready" in engine.log())
    return engine


def test_a_guardian_is_a_shell_with_the_store_and_one_pipe(running: Engine) -> None:
    guardian = running.monitor
    directory = f"/proc/{guardian}/fd"
    links = {int(fd): os.readlink(f"{directory}/{fd}") for fd in os.listdir(directory)}
    assert links[1] == links[2] == "/dev/null"
    assert links[0] == links[3]  # read(1) of the shell
    assert links[3].startswith("pipe:")
    assert all(links[fd].startswith("socket:") for fd in (5, 6))
    assert len([fd for fd in links if fd < 10]) == 6
    assert os.getsid(guardian) == guardian


def test_signals_that_come_while_there_is_no_supervisor_are_not_lost(running: Engine) -> None:
    supervisor = running.supervisor
    os.kill(supervisor, signal.SIGKILL)
    os.kill(running.monitor, signal.SIGTERM)
    assert running.status() == "3"
    waiting.wait_process(running.monitor)


@pytest.mark.parametrize("is_killed", [False, True])
def test_the_exit_command_runs_once_with_the_engines_environment(
    make_conmon: Callable[..., Engine], tmp_path: Path, *, is_killed: bool
) -> None:
    said = tmp_path / "said"
    script = f"echo $PPID $(pwd) >>{said}; grep -E 'SigBlk|SigIgn' /proc/self/status >>{said}"
    engine = make_conmon()
    engine.create(*conmon.exit_command(script))
    engine.runc("start", engine.cid)
    waiting.wait_true(lambda: "stdout F ready" in engine.log())
    guardian = engine.monitor
    if is_killed:
        engine.kill_supervisor()
    os.kill(guardian, signal.SIGTERM)
    assert engine.status() == "3"
    waiting.wait_process(guardian)
    first, *signals = said.read_text().splitlines()
    assert first.split() == [str(guardian), os.getcwd()]
    assert [line.split()[1] for line in signals] == ["0" * 16] * 2


def test_a_killed_guardians_exit_command_runs_too(
    make_conmon: Callable[..., Engine], tmp_path: Path
) -> None:
    """Also if there is no time to become the guardian before the container ends."""
    said = tmp_path / "said"
    engine = make_conmon()
    engine.create(*conmon.exit_command(f"echo over >>{said}"))
    engine.runc("start", engine.cid)
    waiting.wait_true(lambda: "stdout F ready" in engine.log())
    pid = int((engine.directory / "pid").read_text())
    os.kill(engine.monitor, signal.SIGKILL)
    os.kill(pid, signal.SIGTERM)
    assert engine.status() == "3"
    waiting.wait_true(said.exists)
    assert said.read_text() == "over\n"


def test_parked_descriptors_outlive_the_supervisor_and_not_the_container(
    make_conmon: Callable[..., Engine],
) -> None:
    """A published port: taken as long as the container runs, free before its exit file is there."""
    engine = make_conmon()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        engine.parked = [listener.fileno()]
        engine.create()
        address = listener.getsockname()
    engine.runc("start", engine.cid)
    waiting.wait_true(lambda: "stdout F ready" in engine.log())
    for _ in range(2):
        socket.create_connection(address).close()
        engine.kill_supervisor()
    socket.create_connection(address).close()
    os.kill(engine.monitor, signal.SIGTERM)
    assert engine.status() == "3"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)


def test_a_time_limit_goes_on(make_conmon: Callable[..., Engine]) -> None:
    engine = make_conmon("echo ready; sleep 1000")
    engine.create("-T", "10")
    engine.runc("start", engine.cid)
    waiting.wait_true(lambda: "stdout F ready" in engine.log())
    engine.kill_supervisor()
    assert engine.status() == "-1"


def test_a_supervisor_killed_during_the_creation_is_not_replaced(
    make_conmon: Callable[..., Engine], tmp_path: Path
) -> None:
    """The runtime dies with it, and the engine sees the end of its pipe."""
    said = tmp_path / "said"
    engine = make_conmon()
    runtime = tmp_path / "runtime"
    runtime.write_text("#!/bin/sh\nexec sleep 1000\n")
    runtime.chmod(0o755)
    engine.runtime = str(runtime)
    call = engine.begin(*conmon.exit_command(f"echo over >>{said}"))
    guardian = engine.monitor
    waiting.wait_true(lambda: len(waiting.children_of(guardian)) == 1)
    (supervisor,) = waiting.children_of(guardian)
    waiting.wait_true(lambda: bool(waiting.children_of(supervisor)))
    os.kill(supervisor, signal.SIGKILL)
    assert call.message() is None
    waiting.wait_true(said.exists)
    waiting.wait_process(guardian)
    assert not (engine.directory / "exits" / engine.cid).exists()


def test_both_killed_the_container_and_its_log_go_on(make_conmon: Callable[..., Engine]) -> None:
    """Fault 4 of the table: the status is lost, and that is all."""
    engine = make_conmon("trap 'echo end; exit 3' TERM; i=0; while :; do i=$((i+1)); echo $i; done")
    engine.create()
    engine.runc("start", engine.cid)
    waiting.wait_true(lambda: len(engine.log()) > 10)
    supervisor = engine.supervisor
    os.kill(engine.monitor, signal.SIGSTOP)
    for pid in (supervisor, engine.monitor):
        os.kill(pid, signal.SIGKILL)
    before = len(engine.log())
    waiting.wait_true(lambda: len(engine.log()) > before + 100)
    pid = int((engine.directory / "pid").read_text())
    os.kill(pid, signal.SIGTERM)
    os.waitpid(pid, 0)  # this test is the subreaper
    waiting.wait_true(lambda: engine.log()[-1] == "stdout F end")
    numbers = [line.split()[2] for line in engine.log()[:-1]]
    assert numbers == [str(number + 1) for number in range(len(numbers))]


def test_a_guardian_gathers_no_zombies(make_conmon: Callable[..., Engine]) -> None:
    """Those of a container without a pid namespace, whose supervisor was killed, come to it."""
    orphans = "while :; do sh -c 'sleep 0.01 &'; sleep 0.01; done"
    engine = make_conmon(f"trap 'exit 3' TERM; echo ready; {orphans}")
    config = engine.bundle / "config.json"
    document = json.loads(config.read_text())
    namespaces = document["linux"]["namespaces"]
    document["linux"]["namespaces"] = [each for each in namespaces if each["type"] != "pid"]
    config.write_text(json.dumps(document))
    engine.create()
    engine.runc("start", engine.cid)
    waiting.wait_true(lambda: "stdout F ready" in engine.log())
    engine.kill_supervisor()
    guardian = engine.monitor
    waiting.wait_true(lambda: len(waiting.children_of(guardian)) > 40)
    waiting.wait_true(lambda: len(waiting.children_of(guardian)) < 20)
    os.kill(guardian, signal.SIGTERM)
    assert engine.status() == "3"


# The script alone, with other programs in the place of supervisors.


@pytest.fixture
def shells() -> Iterator[list[subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for each in started:
        each.kill()
        each.communicate()


def test_a_guardian_starts_each_successor_with_what_it_knows(
    tmp_path: Path, shells: list[subprocess.Popen[bytes]]
) -> None:
    said = tmp_path / "it's said"
    script = (
        f'echo "$SUCCESSOR" >>"{said}"; echo up >&4; [ $(wc -l <"{said}") -eq 3 ] && '
        "{ echo over 7 >&4; exit; }; echo starts 1.5 2.5 >&4"
    )
    state = State(0, os.getpid(), "title", "0")
    argv = guardian_argv(state, "SUCCESSOR", ["sh", "-c", script], (), delay_s=0)
    rfd, wfd = os.pipe()
    os.close(wfd)
    shells.append(
        subprocess.Popen(argv, preexec_fn=lambda: os.dup2(rfd, 3, inheritable=True), pass_fds=[3])
    )
    os.close(rfd)
    assert shells[0].wait(60) == 7
    mine = os.getpid()
    assert said.read_text().splitlines() == [
        f"5 6 4 {mine} ", f"5 6 4 {mine} 1.5 2.5", f"5 6 4 {mine} 1.5 2.5",
    ]  # fmt: skip
