"""Containers of `docker` through a real dockerd: the stock shim and ours keep the same promises."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.engines.containerd import OURS, RUNTIMES, containerd
from tests.engines.docker import Docker, docker
from tests.engines.image import IMAGE
from tests.harness import waiting

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.engine, pytest.mark.process, pytest.mark.slow]

RM = ["--rm"]
STAYS = ["sh", "-c", "trap 'exit 3' TERM; echo ready; while :; do sleep 0.05; done"]


@pytest.fixture(scope="module", params=list(RUNTIMES.values()), ids=list(RUNTIMES))
def daemon(request: pytest.FixtureRequest, rootfs: Path) -> Iterator[Docker]:
    """A dockerd. 20.10 knows no other name than the stock shim's: ours stands in its place."""
    with tempfile.TemporaryDirectory(prefix="cd-") as name:
        shadow = Path(name) / "shadow"
        shadow.mkdir()
        if request.param == OURS:
            ours = Path(sys.executable).parent / "containerd-shim-forkshim-v2"
            (shadow / "containerd-shim-runc-v2").symlink_to(ours)
        with (
            containerd(Path(name), rootfs, first_on_path=str(shadow)) as cd,
            docker(cd, cd.directory / "image.tar") as made,
        ):
            yield made


@pytest.fixture
def dk(daemon: Docker) -> Iterator[Docker]:
    """The module's dockerd; the test fails if it leaves a container or a part of one."""
    yield daemon
    try:
        assert daemon.docker("ps", "-aq").stdout == ""
        daemon.cd.wait_clean(daemon.pid)
    except AssertionError:
        for name in daemon.docker("ps", "-aq").stdout.split():
            daemon.docker("rm", "-f", name, check=False)
        raise


@contextmanager
def detached(dk: Docker, name: str, *command: str, options: tuple[str, ...] = ()) -> Iterator[None]:
    """Start a container that no client waits for; remove it at the end."""
    dk.run(*command, options=["-d", "--name", name, *options])
    try:
        yield
    finally:
        dk.docker("rm", "-f", name)


def test_output_input_and_status_are_the_containers(dk: Docker) -> None:
    script = "cat; echo err >&2; exit 7"
    done = dk.run("sh", "-c", script, options=["--rm", "-i"], input="in\n", check=False)
    assert (done.returncode, done.stdout, done.stderr) == (7, "in\n", "err\n")


def test_a_terminal_is_the_containers(dk: Docker) -> None:
    leader, follower = os.openpty()
    try:
        script = "test -t 0 && test -t 1 && echo ask && read -r line && echo got:$line && exit 4"
        words = dk.words("run", "--rm", "-it", "--network", "none", IMAGE, "sh", "-c", script)
        with subprocess.Popen(words, stdin=follower, stdout=follower, stderr=follower) as client:
            waiting.read_until(leader, b"ask")
            os.write(leader, b"word\n")
            waiting.read_until(leader, b"got:word")
            assert client.wait(waiting.LIMIT_S) == 4
    finally:
        os.close(leader)
        os.close(follower)


def test_a_second_process_has_its_own_streams_and_status(dk: Docker) -> None:
    with detached(dk, "one", *STAYS):
        script = "cat; echo err >&2; exit 5"
        done = dk.docker("exec", "-i", "one", "sh", "-c", script, input="in\n", check=False)
        assert (done.returncode, done.stdout, done.stderr) == (5, "in\n", "err\n")
        missing = dk.docker("exec", "one", "/no/such", check=False)
        assert missing.returncode in (126, 127)
        assert dk.inspect("one")["Status"] == "running"


def test_top_and_stats_tell_of_the_container(dk: Docker) -> None:
    with detached(dk, "one", *STAYS, options=("-m", "64m")):
        assert "while :" in dk.docker("top", "one").stdout
        (line,) = dk.docker(
            "stats", "--no-stream", "--format", "{{json .}}", "one"
        ).stdout.splitlines()
        told = json.loads(line)
        assert told["MemUsage"].endswith("/ 64MiB")
        assert int(told["PIDs"]) >= 1


def test_pause_update_and_stop_reach_the_container(dk: Docker) -> None:
    with detached(dk, "one", *STAYS):
        dk.docker("pause", "one")
        assert dk.inspect("one")["Status"] == "paused"
        dk.docker("unpause", "one")
        dk.docker("update", "-m", "48m", "--memory-swap", "48m", "one")
        (line,) = dk.docker(
            "stats", "--no-stream", "--format", "{{.MemUsage}}", "one"
        ).stdout.split("\n")[:1]
        assert line.endswith("/ 48MiB")
        dk.docker("stop", "-t", "10", "one")
        assert dk.inspect("one")["ExitCode"] == 3


def test_logs_are_whole(dk: Docker) -> None:
    script = "for i in $(seq 3000); do echo line $i; done; echo last"
    with detached(dk, "one", "sh", "-c", script):
        assert dk.docker("wait", "one").stdout == "0\n"
        lines = dk.docker("logs", "one").stdout.splitlines()
        assert lines == [*(f"line {n}" for n in range(1, 3001)), "last"]


def test_memory_that_runs_out_is_told(dk: Docker) -> None:
    script = "dd if=/dev/zero of=/dev/null bs=64M count=1"
    with detached(dk, "one", "sh", "-c", script, options=("-m", "16m", "--memory-swap", "16m")):
        dk.docker("wait", "one")
        assert dk.inspect("one")["OOMKilled"] is True
        assert dk.inspect("one")["ExitCode"] == 137


def test_a_program_that_is_not_there_is_an_error(dk: Docker) -> None:
    done = dk.run("/no/such/program", options=RM, check=False)
    assert done.returncode == 127
    assert "no such file or directory" in done.stderr


def test_a_container_that_fails_is_started_again(dk: Docker) -> None:
    options = ("--restart", "on-failure:2")
    with detached(dk, "one", "sh", "-c", "exit 9", options=options):
        waiting.wait_true(lambda: dk.inspect("one", ".RestartCount") == 2)
        dk.wait_state("one", "exited")
        assert dk.inspect("one")["ExitCode"] == 9


def test_health_checks_run(dk: Docker) -> None:
    options = ("--health-cmd", "true", "--health-interval", "200ms")
    with detached(dk, "one", *STAYS, options=options):
        waiting.wait_true(lambda: dk.inspect("one")["Health"]["Status"] == "healthy")


def test_dockerd_may_be_killed_and_finds_what_happened(dk: Docker) -> None:
    with (
        detached(dk, "one", *STAYS, options=("--restart", "always")),
        detached(dk, "two", *STAYS),
    ):
        dk.close()
        waiting.wait_process(dk.pid)
        dk.socket.unlink()
        dk.start()
        waiting.wait_true(lambda: dk.inspect("one")["Status"] == "running")
        dk.docker("rm", "-f", "two")
        dk.run("true", options=["-d", "--name", "two"])
