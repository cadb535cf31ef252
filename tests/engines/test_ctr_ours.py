"""What our shim promises beyond the stock one."""

from __future__ import annotations

import os
import resource
import signal
from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests.engines.containerd import OURS
from tests.engines.shim_client import ShimClient, exec_values, socket_of
from tests.engines.test_ctr import STAYS, detached
from tests.engines.test_ctr_kill import kill
from tests.engines.test_ctr_reload import reload, shim_of
from tests.harness import waiting

if TYPE_CHECKING:
    from pathlib import Path

    from tests.engines.containerd import Containerd

pytestmark = [pytest.mark.engine, pytest.mark.process]

E = {"id": "a", "exec_id": "e"}
SAYS = ["sh", "-c", "trap 'n=$((n+1)); echo $n' USR1; n=0; echo 0; while :; do sleep 0.05; done"]
LOGGER = """#!/bin/sh
exec 5>&-
echo $$ >>{log}.pids
while read -r line <&3; do echo "$line" >>{log}; done
"""


def make_logger(directory: Path, script: str) -> Path:
    """Make a program that logs."""
    program = directory / "logger"
    program.write_text(script.format(log=directory / "log"))
    program.chmod(0o755)
    return program


def test_an_end_of_input_that_comes_before_the_start_is_remembered(cd: Containerd) -> None:
    with detached(cd, OURS, "a", *STAYS), ShimClient(socket_of(cd)) as client:
        stdin = cd.bundle("a") / "in"
        os.mkfifo(stdin)
        bundle = client.ask("State", {"id": "a"})["bundle"]
        client.ask("Exec", exec_values("cat; exit 6", stdin=f"{bundle}/in"))
        client.ask("CloseIO", {**E, "stdin": True})
        client.ask("Start", E)
        assert client.ask("Wait", E)["exit_status"] == 6
        client.ask("Delete", E)


def test_an_exec_whose_client_does_not_come_does_not_hold_the_end_back(cd: Containerd) -> None:
    with detached(cd, OURS, "a", *STAYS), ShimClient(socket_of(cd)) as client:
        os.mkfifo(cd.bundle("a") / "out")
        bundle = client.ask("State", {"id": "a"})["bundle"]
        client.ask("Exec", exec_values("echo word", stdout=f"{bundle}/out"))
        client.send("Start", E)
        wait = client.send("Wait", {"id": "a"})
        client.ask("Kill", {"id": "a", "signal": signal.SIGKILL})
        assert client.answer(wait)["exit_status"] == 137


def test_a_shim_may_have_as_many_descriptors_as_the_kernel_lets_it(cd: Containerd) -> None:
    soft, hard = resource.prlimit(cd.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(cd.pid, resource.RLIMIT_NOFILE, (hard - 1, hard))
    try:
        with detached(cd, OURS, "a", *STAYS):
            (shim,) = cd.shims()
            assert resource.prlimit(shim.pid, resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.prlimit(cd.pid, resource.RLIMIT_NOFILE, (soft, hard))


def test_the_name_of_an_exec_that_failed_may_be_used_again(cd: Containerd) -> None:
    with detached(cd, OURS, "a", *STAYS):
        for _each in range(2):
            failed = cd.ctr("task", "exec", "--exec-id", "e", "a", "/no/such", check=False)
            assert "OCI runtime exec failed" in failed.stderr
            assert "no such file or directory" in failed.stderr
        assert cd.ctr("task", "exec", "--exec-id", "e", "a", "echo", "here").stdout == "here\n"


def test_a_log_program_that_is_killed_is_started_again_and_loses_nothing(
    cd: Containerd, tmp_path: Path
) -> None:
    program, log, pids = make_logger(tmp_path, LOGGER), tmp_path / "log", tmp_path / "log.pids"
    with detached(cd, OURS, "a", *SAYS, options=["--log-uri", f"binary://{program}"]):
        for number in range(3):
            waiting.wait_path(log, partial(has_lines, count=number + 1))
            logger = int(pids.read_text().split()[-1])
            os.kill(cd.sandbox.pid_outside(logger), signal.SIGKILL)
            cd.ctr("task", "kill", "-s", "USR1", "a")
        waiting.wait_path(log, partial(has_lines, count=4))
        assert log.read_text() == "0\n1\n2\n3\n"
        assert len(pids.read_text().split()) == 4
    assert not [each for each in cd.sandbox.processes() if "logger" in each.title]


def test_a_log_program_goes_on_over_a_reload_and_another_follows_a_killed_shim(
    cd: Containerd, tmp_path: Path
) -> None:
    program, log, pids = make_logger(tmp_path, LOGGER), tmp_path / "log", tmp_path / "log.pids"
    with detached(cd, OURS, "a", *SAYS, options=["--log-uri", f"binary://{program}"]):
        waiting.wait_path(log, partial(has_lines, count=1))
        reload(cd, shim_of(cd))
        cd.ctr("task", "kill", "-s", "USR1", "a")
        waiting.wait_path(log, partial(has_lines, count=2))
        assert len(pids.read_text().split()) == 1
        kill(cd)
        cd.ctr("task", "kill", "-s", "USR1", "a")
        waiting.wait_path(log, partial(has_lines, count=3))
        assert log.read_text() == "0\n1\n2\n"
        assert len(pids.read_text().split()) == 2
    assert not [each for each in cd.sandbox.processes() if "logger" in each.title]


def has_lines(path: Path, *, count: int) -> bool:
    """Say whether a file has so many lines."""
    return path.exists() and path.read_text().count("\n") == count


@pytest.mark.parametrize("script", ["exec 5>&-; exec cat <&3", "exit 3"], ids=["closes", "exits"])
def test_a_log_program_that_is_not_ready_refuses_the_container(
    cd: Containerd, tmp_path: Path, script: str
) -> None:
    program = make_logger(tmp_path, f"#!/bin/sh\n{script}\n")
    uri = ["--log-uri", f"binary-v2://{program}"]
    done = cd.run(OURS, "a", *STAYS, options=["-d", *uri], check=False)
    assert done.returncode != 0
    assert f"log program {program}: " in done.stderr
    cd.ctr("container", "rm", "a", check=False)


@pytest.mark.parametrize(
    ("method", "values", "answer"),
    [
        ("Kill", {"id": "a", "signal": 99}, "invalid argument"),
        ("Kill", {"id": "a", "signal": 1 << 31}, "invalid argument"),
        ("ResizePty", {**E, "width": 70_000, "height": 24}, "invalid argument"),
        ("ResizePty", {**E, "width": 80, "height": (1 << 32) - 1}, "invalid argument"),
        ("Update", {"id": "a", "resources": {"type_url": "x", "value": b"{"}}, ""),
    ],
)
def test_a_request_that_cannot_be_served_costs_nothing_else(
    cd: Containerd, method: str, values: dict[str, object], answer: str
) -> None:
    with detached(cd, OURS, "a", *STAYS), ShimClient(socket_of(cd)) as client:
        shim = shim_of(cd)
        client.ask("Exec", exec_values("sleep 1000", terminal=method == "ResizePty"))
        client.ask("Start", E)
        with pytest.raises(AssertionError, match=f"(?i){answer}"):
            client.ask(method, values)
        client.ask("Pause", {"id": "a"})  # the runtime's calls go on, too
        client.ask("Resume", {"id": "a"})
        assert shim_of(cd).pid == shim.pid
        client.ask("Kill", {**E, "signal": 9})
        assert client.ask("Wait", E)["exit_status"] == 137
        client.ask("Delete", E)
