"""Options of our conmon whose effect is on other programs: the runtime, CRIU, the exit command."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.beds.criu import ensure_criu
from tests.harness import mounts, waiting

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.harness.conmon import Engine

pytestmark = [pytest.mark.runc, pytest.mark.process]


def _recorder(directory: Path) -> Path:
    """Make a runtime that notes its pid, LISTEN_PID and its words, and becomes runc."""
    program = directory / "runtime"
    program.write_text(f'#!/bin/sh\necho "$$ $LISTEN_PID $*" >{directory}/called\nexec runc "$@"\n')
    program.chmod(0o755)
    return program


@pytest.mark.parametrize(
    ("listen_pid", "more", "is_set"),
    [("own", (), True), ("1", (), False), ("1", ("--replace-listen-pid",), True)],
)
def test_the_runtime_gets_the_pid_that_listens(
    make_conmon: Callable[..., Engine],
    monkeypatch: pytest.MonkeyPatch,
    listen_pid: str,
    more: tuple[str, ...],
    *,
    is_set: bool,
) -> None:
    engine = make_conmon("exit 0")
    if listen_pid == "own":
        wrapper = engine.directory / "conmon-that-listens"
        wrapper.write_text(f'#!/bin/sh\nexport LISTEN_PID=$$\nexec {engine.program} "$@"\n')
        wrapper.chmod(0o755)
        engine.program = wrapper
    else:
        monkeypatch.setenv("LISTEN_PID", listen_pid)
    engine.create("-r", str(_recorder(engine.directory)), *more)
    pid, seen, *_words = (engine.directory / "called").read_text().split()
    assert (seen == pid) is is_set
    engine.runc("start", engine.cid)
    assert engine.status() == "0"


def test_flags_for_the_runtime_reach_it(make_conmon: Callable[..., Engine]) -> None:
    engine = make_conmon("exit 0")
    flags = ("--no-new-keyring", "--no-pivot", "--runtime-opt", "--preserve-fds=0")
    engine.create("-r", str(_recorder(engine.directory)), "--runtime-arg", "--debug", *flags)
    pid_file = f"{engine.directory}/pid"
    _pid, *words = (engine.directory / "called").read_text().split()
    assert words == [
        *("--debug", "create", "--bundle", str(engine.bundle), "--pid-file", pid_file),
        *("--no-pivot", "--no-new-keyring", "--preserve-fds=0", engine.cid),
    ]
    engine.runc("start", engine.cid)
    assert engine.status() == "0"


def test_the_exit_command_comes_after_its_delay(
    make_conmon: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By sleep(1) of the PATH: here one that only notes for how long."""
    engine = make_conmon("exit 0")
    said = engine.directory / "said"
    sleeps = engine.directory / "bin" / "sleep"
    sleeps.parent.mkdir()
    sleeps.write_text(f"#!/bin/sh\necho sleep $1 >>{said}.new\n")
    sleeps.chmod(0o755)
    monkeypatch.setenv("PATH", f"{sleeps.parent}:{os.environ['PATH']}")
    script = f"echo command >>{said}.new; mv {said}.new {said}"
    words = ("--exit-command-arg", "-c", "--exit-command-arg", script)
    engine.create("--exit-delay", "300", "--exit-command", "/bin/sh", *words)
    engine.runc("start", engine.cid)
    assert engine.status() == "0"
    waiting.wait_true(said.exists)
    assert said.read_text() == "sleep 300\ncommand\n"


@pytest.mark.criu
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_checkpoint_is_restored(make_conmon: Callable[..., Engine]) -> None:
    criu = ensure_criu()
    engine = make_conmon("i=0; while :; do i=$((i+1)); echo line $i; sleep 0.05; done")
    engine.create()
    engine.runc("start", engine.cid)
    waiting.wait_true(lambda: "stdout F line 5" in engine.log())
    images = engine.directory / "images"
    options = (f"--image-path={images}", f"--work-path={engine.directory}/work")
    subprocess.run(
        ["runc", "--criu", criu, "checkpoint", *options, engine.cid],
        preexec_fn=mounts.make_private,
        check=True,
        capture_output=True,
    )
    assert engine.status() == "137"
    waiting.wait_process(engine.monitor)
    before = engine.log()
    (engine.directory / "exits" / engine.cid).unlink()
    engine.enter = mounts.make_private
    engine.create("--restore", str(images), "--runtime-arg", f"--criu={criu}")
    assert engine.created is not None
    assert engine.created["data"] > 0, engine.created
    waiting.wait_true(lambda: len(engine.log()) > len(before) + 3)
    numbers = [int(line.split()[-1]) for line in engine.log()]
    assert numbers == list(range(1, len(numbers) + 1))
    engine.runc("kill", engine.cid, "KILL")
    assert engine.status() == "137"
