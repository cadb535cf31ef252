"""`forkshim run --detach`: a daemon, as daemon(7) has it."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.harness import bundles, fd_stores, runtime_calls, runtimes, waiting
from tests.harness.engine import FORKSHIM

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.runc

_LOOP = "trap 'echo bye; exit 8' TERM; echo ready; while :; do sleep 0.1; done"


def detach(
    root: Path, bundle: Path, container_id: str, *options: str | Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [FORKSHIM, "run", "--root", root, "--bundle", bundle, "--detach", *options, container_id],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=waiting.LIMIT_S,
        env={**os.environ, **environment},
    )


def stop(root: Path, container_id: str) -> str:
    """TERM it by its pid file and wait; returns the exit status it has written."""
    pid = int((root / container_id / "supervisor.pid").read_text())
    os.kill(pid, signal.SIGTERM)
    waiting.wait_process(pid)
    return (root / container_id / "init" / "exitStatus").read_text()


def wait_for_the_end(root: Path, container_id: str) -> None:
    """Wait for the end of the daemon, which removes its pid file as its last act."""
    waiting.wait_path(root / container_id / "supervisor.pid", lambda path: not path.exists())


def test_it_returns_when_the_container_runs_and_leaves_the_status_behind(
    tmp_path: Path, make_bundle: Callable[..., Path]
) -> None:
    container_id = bundles.fresh_id("detached")
    root, log = tmp_path / "root", tmp_path / "log"
    done = detach(root, make_bundle(_LOOP), container_id, "--log", f"file:{log}")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert b'"running"' in runtime_calls.call("state", container_id)
    waiting.wait_path(log, lambda path: path.read_text() == "ready\n")
    assert stop(root, container_id) == "8"
    assert log.read_text() == "ready\nbye\n"
    assert sorted(os.listdir(root / container_id)) == ["init", "state.json"]


def test_the_daemon_has_only_what_it_documents(
    tmp_path: Path, make_bundle: Callable[..., Path]
) -> None:
    container_id = bundles.fresh_id("detached")
    root, log = tmp_path / "root", tmp_path / "log"
    stray = os.open(make_bundle("true") / "config.json", os.O_RDONLY)
    os.set_inheritable(stray, True)
    try:
        options: list[str | Path] = [
            "--bundle",
            make_bundle(_LOOP),
            "--detach",
            "--log",
            f"file:{log}",
        ]
        command: list[str | Path] = [FORKSHIM, "run", "--root", root, *options, container_id]
        subprocess.run(command, check=True, close_fds=False)
    finally:
        os.close(stray)
    pid = int((root / container_id / "supervisor.pid").read_text())
    proc = Path("/proc") / str(pid)
    session, terminal = (proc / "stat").read_text().rpartition(")")[2].split()[3:5]
    assert int(session) not in (pid, os.getsid(0)), "a leader could gain a terminal again"
    assert terminal == "0"
    assert os.readlink(proc / "cwd") == str(root / container_id / "init")
    status = dict(line.split(":\t", 1) for line in (proc / "status").read_text().splitlines())
    assert status["Umask"] == "0022"
    assert int(status["PPid"]) == os.getpid(), "nobody's child but the nearest subreaper's"
    assert waiting.title_of(pid) == f"forkshim: {container_id}"
    fd_stores.wait_published(root / container_id / "init")
    assert _kinds(proc) == _OWN
    worker = waiting.wait_worker(pid, "stdout")
    assert _kinds(Path("/proc") / str(worker)) == _OF_A_WORKER
    assert waiting.worker_of(pid, "stderr") is None, "both go to one file, by one worker"
    assert stop(root, container_id) == "8"


_OF_A_WORKER = ["/dev/null"] * 3 + ["file"] + ["pipe"] * 4

_OWN = sorted(
    ["/dev/null"] * 4  # 0, 1, 2 and the one that is lent to runtimes and workers
    + ["anon_inode:[eventpoll]", *["directory"] * 2, "file", "log", "control", "exit", "exitStatus"]
    + ["anon_inode:[pidfd]"]
    + ["memfd"] * 2  # the counters, and Python's duplicate for its mapping
    + ["socket"] * 2  # the deposit
    + ["pipe"] * 6  # signals (2), stdout's source, its staging pipe (2), the worker's report
)


def _kinds(proc: Path) -> list[str]:
    kinds = []
    for entry in (proc / "fd").iterdir():
        target = os.readlink(entry)
        path = Path(target)
        if target == "/dev/null" or target.startswith("anon_inode"):
            kinds.append(target)
        elif target.startswith(("pipe:", "socket:")):
            kinds.append(target.split(":")[0])
        elif target.startswith("/memfd:"):
            kinds.append("memfd")
        elif path.name in ("control", "exit"):
            kinds.append(path.name)
        elif path.name == "shim-log.json":
            kinds.append("log")
        elif path.name.startswith(".exitStatus."):
            kinds.append("exitStatus")
        else:
            kinds.append("directory" if path.is_dir() else "file")
    return sorted(kinds)


def test_a_container_that_cannot_start_is_told_to_the_caller(tmp_path: Path, rootfs: Path) -> None:
    root = tmp_path / "root"
    bundle = bundles.make_bundle(tmp_path / "b", bundles.config(rootfs, ["no-such-program"]))
    done = detach(root, bundle, bundles.fresh_id("detached"), "--log", "null")
    assert done.returncode == 1
    assert "no-such-program" in done.stderr
    assert done.stderr.count("\n") == 1
    assert os.listdir(root) == []


def test_a_container_that_ends_at_once_has_been_started_all_the_same(
    tmp_path: Path, make_bundle: Callable[..., Path]
) -> None:
    container_id = bundles.fresh_id("detached")
    root = tmp_path / "root"
    done = detach(root, make_bundle("exit 9"), container_id, "--log", "null")
    assert (done.returncode, done.stderr) == (0, "")
    wait_for_the_end(root, container_id)
    assert (root / container_id / "init" / "exitStatus").read_text() == "9"


def test_a_container_that_is_quicker_than_its_start_has_been_started_as_well(
    tmp_path: Path, make_bundle: Callable[..., Path]
) -> None:
    container_id = bundles.fresh_id("detached")
    root = tmp_path / "root"
    runtime, _gate = runtimes.lingering(tmp_path, "start")
    options = ["--log", "null", "--runtime", str(runtime)]
    done = detach(root, make_bundle("exit 9"), container_id, *options)
    assert (done.returncode, done.stderr) == (0, "")
    wait_for_the_end(root, container_id)
    assert (root / container_id / "init" / "exitStatus").read_text() == "9"


def test_an_id_whose_daemon_has_ended_can_be_run_again(
    tmp_path: Path, make_bundle: Callable[..., Path]
) -> None:
    container_id = bundles.fresh_id("detached")
    root = tmp_path / "root"
    for status in ("3", "4"):
        done = detach(root, make_bundle(f"exit {status}"), container_id, "--log", "null")
        assert done.returncode == 0
        wait_for_the_end(root, container_id)
        assert (root / container_id / "init" / "exitStatus").read_text() == status


def launch(root: Path, bundle: Path, *words: str | Path) -> subprocess.Popen[str]:
    command = [FORKSHIM, "run", "--root", root, "--bundle", bundle, "--detach", *words]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_signal_to_the_caller_gives_the_start_up(
    tmp_path: Path, make_bundle: Callable[..., Path], signum: signal.Signals
) -> None:
    root, container_id = tmp_path / "root", bundles.fresh_id("detached")
    runtime, gate = runtimes.gate(tmp_path, "create")
    options = ("--log", "null", "--runtime", runtime, container_id)
    with launch(root, make_bundle(_LOOP), *options) as caller, gate.open("w"):
        caller.send_signal(signum)
        said = caller.communicate(timeout=waiting.LIMIT_S)[1]
    assert caller.returncode == 143
    assert said.startswith(f"forkshim: {container_id}: ")
    assert said.count("\n") == 1
    assert "stopped" in said
    assert os.listdir(root) == []


def test_a_start_that_is_given_up_too_late_is_stopped(
    tmp_path: Path, make_bundle: Callable[..., Path]
) -> None:
    """The container runs already, and the runtime's `start` has not ended."""
    root, log, container_id = tmp_path / "root", tmp_path / "log", bundles.fresh_id("detached")
    runtime, gate = runtimes.lingering(tmp_path, "start")
    options = ("--log", f"file:{log}", "--runtime", runtime, container_id)
    with launch(root, make_bundle(_LOOP), *options) as caller:
        waiting.wait_path(log, lambda path: path.exists() and path.read_text() == "ready\n")
        caller.send_signal(signal.SIGTERM)
        shim_log_path = root / container_id / "init" / "shim-log.json"
        waiting.wait_path(shim_log_path, lambda path: "SIGTERM: stopping" in path.read_text())
        gate.open("w").close()
        said = caller.communicate(timeout=waiting.LIMIT_S)[1]
    assert (caller.returncode, said) == (143, f"forkshim: {container_id}: stopped by SIGTERM\n")
    assert log.read_text() == "ready\nbye\n"
    assert os.listdir(root) == []


def test_under_systemd_it_stays_in_the_foreground(
    tmp_path: Path, make_bundle: Callable[..., Path]
) -> None:
    done = detach(
        tmp_path / "root",
        make_bundle("echo hi; exit 5"),
        bundles.fresh_id("detached"),
        NOTIFY_SOCKET=str(tmp_path / "notify"),
    )
    assert (done.returncode, done.stdout) == (5, "hi\n")
    assert "stays in the foreground" in done.stderr
