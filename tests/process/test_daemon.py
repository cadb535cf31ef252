"""Detaching: what the daemon is, and what its caller is told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from supervisor.cli.daemon import StartReport
from supervisor.linux import fds
from tests.harness import waiting

pytestmark = pytest.mark.process

PROGRAM = Path(__file__).parent.parent / "programs" / "detacher.py"


def _detach(behaviour: str, directory: Path) -> Any:
    done = subprocess.run(
        [sys.executable, PROGRAM, behaviour, directory],
        capture_output=True,
        start_new_session=True,
        timeout=waiting.LIMIT_S,
        umask=0o077,
        cwd="/",
        env={**os.environ, "PYTHONPATH": str(PROGRAM.parent.parent.parent)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""
    for pid in waiting.children_of(os.getpid()):  # the daemon, whose subreaper we are
        waiting.wait_process(pid)
    return json.loads(done.stdout)


def test_a_daemon_has_its_own_session_directory_umask_and_descriptors(tmp_path: Path) -> None:
    assert _detach("runs", tmp_path) is None
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert facts["sid"] not in (os.getsid(0), facts["pid"])  # it can get no terminal again
    assert not facts["has_tty"]
    assert facts["cwd"] == str(tmp_path)
    assert facts["umask"] == 0o022
    assert facts["sigchld_is_default"]
    links = sorted(facts["fds"].values())
    # 0, 1, 2 and the one preserved; the pipe to the caller.
    assert [link for link in links if not link.startswith("pipe:")] == ["/dev/null"] * 4
    assert len(links) == 5


def test_a_daemons_error_is_its_callers_with_its_exit_status_however_long(tmp_path: Path) -> None:
    assert _detach("fails", tmp_path) == [2, "wrong " + "x" * 200_000]


@pytest.mark.parametrize("behaviour", ["is killed", "has a bug", "says nothing"])
def test_a_daemon_that_dies_silently_is_an_error(tmp_path: Path, behaviour: str) -> None:
    exit_status, message = _detach(behaviour, tmp_path)
    assert exit_status == 70
    assert message.startswith("the supervisor died before the container ran")


def test_an_interrupt_is_passed_on_to_the_daemon_which_has_ended_then(tmp_path: Path) -> None:
    assert _detach("is interrupted", tmp_path) == [143, "stopped by SIGINT"]
    assert (tmp_path / "facts.json").exists(), "the interrupt has killed no half of a daemon"


def test_a_directory_that_is_not_there_is_an_error_too(tmp_path: Path) -> None:
    exit_status, message = _detach("runs", tmp_path / "nowhere")
    assert exit_status == 71
    assert message.startswith("detach: ")


def test_a_machine_that_refuses_a_daemon_is_said(tmp_path: Path) -> None:
    exit_status, message = _detach("cannot fork", tmp_path)
    assert exit_status == 71
    assert message.startswith("detach: Failed first fork: ")
    assert "Resource temporarily unavailable" in message


@pytest.mark.usefixtures("signal_state")
def test_a_caller_that_is_gone_is_no_error_for_the_daemon() -> None:
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    rfd, wfd = fds.pipe()
    rfd.close()
    StartReport(wfd).started()
    assert not wfd.is_open
