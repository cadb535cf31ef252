"""Real podman with our conmon: what its users do."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.engines.podman import IMAGE, Podman, podman
from tests.harness import waiting

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.engine, pytest.mark.process]

_KILLS = 5
STAYS = ("sh", "-c", "trap 'exit 3' TERM; echo ready; while :; do sleep 0.05; done")


@pytest.fixture(scope="module")
def installed(rootfs: Path) -> Iterator[Podman]:
    with tempfile.TemporaryDirectory(prefix="pm-") as name, podman(Path(name), rootfs) as made:
        yield made


@pytest.fixture
def pm(installed: Podman) -> Iterator[Podman]:
    """The module's podman; the test fails if it leaves a container or a monitor."""
    yield installed
    installed.run("rm", "--all", "--force", "--time", "0")
    waiting.wait_true(lambda: not monitors(installed))


def monitors(pm: Podman) -> list[int]:
    """Return the pids of this podman's monitors that live: each has a log of its own open."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            links = [os.readlink(fd) for fd in (entry / "fd").iterdir()]
        except OSError:
            continue
        if any(link.startswith(str(pm.directory)) and "shim-log" in link for link in links):
            found.append(int(entry.name))
    return found


@pytest.fixture
def stays(pm: Podman) -> str:
    pm.run("run", "-d", "--name", "stays", IMAGE, *STAYS)
    wait_log(pm, "stays", "ready\n")
    return "stays"


def wait_log(pm: Podman, name: str, text: str) -> None:
    waiting.wait_true(lambda: text in pm.run("logs", name).stdout)


def test_output_and_status_are_the_containers(pm: Podman) -> None:
    script = "echo out; echo err >&2; exit 7"
    done = pm.run("run", "--rm", IMAGE, "sh", "-c", script, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")


def test_a_detached_container_is_logged_and_waited_for(pm: Podman) -> None:
    pm.run("run", "-d", "--name", "a", IMAGE, "sh", "-c", "echo out; echo err >&2; exit 7")
    assert pm.out("wait", "a") == "7"
    logs = pm.run("logs", "a")
    assert (logs.stdout, logs.stderr) == ("out\n", "err\n")
    assert pm.inspect("a", ".State.ExitCode") == "7"


def test_the_monitor_is_ours(pm: Podman, stays: str) -> None:
    """The engine knows the guardian, whose child the supervisor is."""
    guardian = int(pm.inspect(stays, ".State.ConmonPid"))
    assert monitors(pm) == waiting.children_of(guardian)
    assert waiting.title_of(guardian).startswith(
        f"/bin/sh -c # forkshim: {pm.inspect(stays, '.Id')}"
    )


def test_stdin_comes_whole_through_run_and_exec(pm: Podman, stays: str) -> None:
    content = os.urandom(2 << 20)
    wanted = hashlib.sha256(content).digest()
    for words in (("run", "--rm", "-i", IMAGE, "cat"), ("exec", "-i", stays, "cat")):
        done = subprocess.run(
            pm.command(*words), input=content, capture_output=True, timeout=120, check=True
        )
        assert hashlib.sha256(done.stdout).digest() == wanted


def test_an_exec_has_its_own_output_and_status(pm: Podman, stays: str) -> None:
    done = pm.run("exec", stays, "sh", "-c", "echo out; echo err >&2; exit 9", check=False)
    assert (done.returncode, done.stdout, done.stderr) == (9, "out\n", "err\n")


def test_a_detached_exec_runs_by_itself(pm: Podman, stays: str) -> None:
    pm.run("exec", "-d", stays, "sh", "-c", "echo made > /tmp/made")
    waiting.wait_true(
        lambda: pm.run("exec", stays, "cat", "/tmp/made", check=False).stdout == "made\n"
    )


@pytest.mark.parametrize(
    ("command", "status"), [("/no/such", 127), ("/etc", 126), ("/proc/version", 126)]
)
def test_what_cannot_be_executed_has_the_statuses_of_a_shell(
    pm: Podman, stays: str, command: str, status: int
) -> None:
    for words in (("run", "--rm", IMAGE), ("exec", stays)):
        done = pm.run(*words, command, check=False)
        assert done.returncode in (status, 127), done.stderr  # podman reads runc's words
        assert "runc" in done.stderr
    assert pm.inspect(stays, ".State.Status") == "running"


def test_a_stop_ends_it_by_its_own_handler(pm: Podman, stays: str) -> None:
    pm.run("stop", stays)
    assert pm.inspect(stays, ".State.ExitCode") == "3"
    assert pm.inspect(stays, ".State.Status") == "exited"


def test_a_kill_is_a_status_of_128_and_the_signal(pm: Podman, stays: str) -> None:
    pm.run("kill", "--signal", "KILL", stays)
    assert pm.out("wait", stays) == "137"


def test_a_restart_runs_it_again_with_one_log(pm: Podman, stays: str) -> None:
    pm.run("restart", stays)
    waiting.wait_true(lambda: pm.run("logs", stays).stdout == "ready\nready\n")
    assert pm.inspect(stays, ".State.Status") == "running"


def test_a_forced_removal_leaves_nothing(pm: Podman, stays: str) -> None:
    pm.run("rm", "--force", "--time", "0", stays)
    assert pm.out("ps", "--all", "--quiet") == ""


def test_a_restart_policy_starts_it_with_clean_signals(pm: Podman) -> None:
    script = "grep -E 'SigBlk|SigIgn' /proc/self/status; exit 3"
    pm.run("run", "-d", "--restart", "on-failure:2", "--name", "a", IMAGE, "sh", "-c", script)
    clean = "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n"
    waiting.wait_true(lambda: pm.run("logs", "a").stdout == 3 * clean)


def test_a_terminal_is_the_containers_stdin_and_stdout(pm: Podman) -> None:
    pm.run("run", "-d", "-t", "--name", "a", IMAGE, "sh", "-c", "tty; exit 4")
    assert pm.out("wait", "a") == "4"
    assert pm.run("logs", "a").stdout == "/dev/pts/0\n"


def test_a_second_client_attaches_and_hears_what_follows(pm: Podman) -> None:
    pm.run("run", "-d", "-i", "--name", "a", IMAGE, "cat")
    with subprocess.Popen(
        pm.command("attach", "a"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        client.stdin.write("first\n")
        client.stdin.flush()
        assert client.stdout.readline() == "first\n"
        client.stdin.close()
        assert client.stdout.read().strip() == ""  # podman ends its own line
    assert pm.out("wait", "a") == "0"
    assert pm.run("logs", "a").stdout == "first\n"


def test_no_log_is_kept_and_clients_hear_all_the_same(pm: Podman) -> None:
    done = pm.run("run", "--rm", "--log-driver", "none", IMAGE, "echo", "heard")
    assert done.stdout == "heard\n"


def test_passed_through_streams_are_the_callers(pm: Podman) -> None:
    with tempfile.TemporaryFile("w+") as file:
        words = ("run", "-d", "--log-driver", "passthrough", "--name", "a", IMAGE, "echo", "there")
        subprocess.run(pm.command(*words), stdout=file, stderr=file, timeout=120, check=True)
        assert pm.out("wait", "a") == "0"
        file.seek(0)
        assert "there\n" in file.read()


def test_a_time_limit_kills_it_and_the_status_says_so(pm: Podman) -> None:
    pm.run("run", "-d", "--timeout", "1", "--name", "a", IMAGE, "sleep", "1000")
    assert pm.out("wait", "a") == "-1"


def test_preserved_descriptors_reach_the_container(pm: Podman) -> None:
    rfd, wfd = os.pipe()
    os.write(wfd, b"through\n")
    os.close(wfd)
    words = pm.command("run", "--rm", "--preserve-fds", "1", IMAGE, "cat", "/dev/fd/3")
    program = f"import os, sys; os.dup2({rfd}, 3); os.execvp(sys.argv[1], sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", program, *words],
        pass_fds=[3, rfd], capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    os.close(rfd)
    assert done.stdout == b"through\n", done.stderr


def test_signals_to_the_monitor_are_the_containers(pm: Podman, stays: str) -> None:
    os.kill(int(pm.inspect(stays, ".State.ConmonPid")), signal.SIGTERM)
    assert pm.out("wait", stays) == "3"


def test_ten_short_runs_lose_no_output(pm: Podman) -> None:
    for number in range(10):
        assert pm.run("run", "--rm", IMAGE, "echo", str(number)).stdout == f"{number}\n"


def test_killed_workers_lose_nothing_of_the_log(pm: Podman) -> None:
    halves = [f"while [ $i -lt {n} ]; do i=$((i+1)); echo line $i; done" for n in (50000, 100000)]
    script = f"i=0; {halves[0]}; until [ -e /go ]; do sleep 0.01; done; {halves[1]}; exit 7"
    pm.run("run", "-d", "--name", "a", IMAGE, "sh", "-c", script)
    (supervisor,) = monitors(pm)
    kills = 0
    children = Path(f"/proc/{supervisor}/task/{supervisor}/children")
    while kills < _KILLS:
        try:
            pids = children.read_text().split()
            titled = [
                pid for pid in pids if b"[stdout]" in Path(f"/proc/{pid}/cmdline").read_bytes()
            ]
        except OSError:  # it ended meanwhile
            continue
        for pid in titled:
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
                kills += 1
    pm.run("exec", "a", "touch", "/go")
    assert pm.out("wait", "a") == "7"
    assert pm.run("logs", "a").stdout == "".join(f"line {i + 1}\n" for i in range(100000))
