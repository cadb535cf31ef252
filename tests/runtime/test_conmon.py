"""Our conmon with a real runc, called as an engine calls it: pipes, files, ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.harness import conmon, waiting

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.harness.conmon import Engine

pytestmark = [pytest.mark.runc, pytest.mark.process]

SAYS_BYE = "trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.05; done"


def test_a_container_ends_with_its_files_and_its_status(make_conmon: Callable[..., Engine]) -> None:
    engine = make_conmon("echo out; echo err >&2; printf part; exit 7")
    call = engine.create()
    assert engine.created == {"data": int((engine.directory / "pid").read_text())}
    assert engine.monitor > 1
    engine.runc("start", engine.cid)
    assert engine.status() == "7"
    assert (engine.directory / "persist" / "exit").read_text() == "7"
    assert call.message() is None
    assert sorted(engine.log()) == ["stderr F err", "stdout F out", "stdout P part"]
    assert sorted(path.name for path in engine.bundle.iterdir()) == [
        ".forkshim", "config.json", "ctl", "winsz",
    ]  # fmt: skip


def test_the_engine_starts_it_and_deletes_it(make_conmon: Callable[..., Engine]) -> None:
    engine = make_conmon("exit 0")
    engine.create()
    engine.runc("start", engine.cid)
    assert engine.status() == "0"
    waiting.wait_process(engine.monitor)
    state = subprocess.run(["runc", "state", engine.cid], capture_output=True, check=True)
    assert json.loads(state.stdout)["status"] == "stopped"


def test_nothing_happens_before_the_engines_word(make_conmon: Callable[..., Engine]) -> None:
    engine = make_conmon("exit 0")
    pid = f"{engine.directory}/pid"
    call = engine.call(engine.words("--api-version", "-b", str(engine.bundle), "-p", pid))
    waiting.wait_true((engine.directory / "log").exists)
    assert call.process.poll() is None
    assert not (engine.bundle / "attach").exists()
    call.start()
    call.forked()
    assert call.message() is not None
    engine.runc("start", engine.cid)
    assert engine.status() == "0"


def test_a_failed_creation_is_told_in_the_runtimes_words(
    make_conmon: Callable[..., Engine],
) -> None:
    engine = make_conmon()
    config = engine.bundle / "config.json"
    document = json.loads(config.read_text())
    document["process"]["args"] = ["/no/such"]
    config.write_text(json.dumps(document))
    engine.create()
    message = engine.created
    assert message is not None
    assert message["data"] == -1
    assert "no such file or directory" in message["message"]
    assert message["message"].endswith("\n")
    waiting.wait_process(engine.monitor)
    assert not (engine.directory / "exits" / engine.cid).exists()


def test_a_terminals_runtime_fails_in_its_words_too(make_conmon: Callable[..., Engine]) -> None:
    engine = make_conmon(terminal=True)
    (engine.bundle / "config.json").write_text("{}")
    engine.create("-t")
    message = engine.created
    assert message is not None
    assert message["data"] == -1
    assert message["message"]
    waiting.wait_process(engine.monitor)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_signals_are_the_containers(make_conmon: Callable[..., Engine], signum: int) -> None:
    engine = make_conmon(
        f"trap 'echo got; exit 9' {signum}; echo ready; while :; do sleep 0.05; done"
    )
    engine.create()
    engine.runc("start", engine.cid)
    waiting.wait_true(lambda: "stdout F ready" in engine.log())
    os.kill(engine.monitor, signum)
    assert engine.status() == "9"
    assert "stdout F got" in engine.log()


def test_a_signal_that_the_runtime_ignores_is_the_containers(
    make_conmon: Callable[..., Engine],
) -> None:
    """It came at the end of the creation: CRI-O stops a container whose exec has just begun."""
    engine = make_conmon()
    engine.create()
    engine.runc("start", engine.cid)
    there = engine.directory
    wrapper = there / "runtime"
    wrapper.write_text(
        f"#!/bin/sh\ntrap 'touch {there}/got' TERM\nrunc \"$@\" || exit\n"
        f"until [ -e {there}/go ]; do sleep 0.02; done\n"
    )
    wrapper.chmod(0o755)
    call = engine.exec("exec sleep 1000", "--sync", "-r", str(wrapper), has_bundle=False)
    call.start()
    session = there / "session-1"
    waiting.wait_true((session / "pid").exists)
    call.process.send_signal(signal.SIGTERM)
    waiting.wait_true((there / "got").exists)
    (there / "go").touch()
    assert call.message() == {"exit_code": 128 + signal.SIGTERM}


def test_a_time_limit_is_the_status_below_zero(make_conmon: Callable[..., Engine]) -> None:
    engine = make_conmon()
    engine.create("--timeout=1")
    engine.runc("start", engine.cid)
    assert engine.status() == "-1"


def test_the_exit_command_has_the_engines_environment_and_directory(
    make_conmon: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_conmon("exit 5")
    monkeypatch.setenv("OF_THE_ENGINE", "yes")
    script = (
        'echo "$OF_THE_ENGINE $(pwd) $(ls /proc/self/fd | wc -w)"; '
        "grep -E 'SigBlk|SigIgn' /proc/self/status"
    )
    said = engine.directory / "said"
    words = (f"exec > {said}.new; {script}; mv {said}.new {said}",)
    engine.create(
        "--exit-command", "/bin/sh", *(part for word in ("-c", *words) for part in
                                       ("--exit-command-arg", word))
    )  # fmt: skip
    engine.runc("start", engine.cid)
    assert engine.status() == "5"
    waiting.wait_true(said.exists)
    first, *signals = said.read_text().splitlines()
    assert first == f"yes {os.getcwd()} 4"
    assert [line.split()[1] for line in signals] == ["0" * 16] * 2


def test_resizes_reach_the_terminal_also_early_ones(make_conmon: Callable[..., Engine]) -> None:
    engine = make_conmon("read x; stty size; read x; stty size; exit 0", terminal=True)
    engine.create("-t")
    (engine.bundle / "ctl").write_text("1 33 99\n")
    pid = int((engine.directory / "pid").read_text())
    engine.runc("start", engine.cid)
    with conmon.Client(engine.bundle / "attach") as client:
        waiting.wait_true(lambda: waiting.window_of(pid) == (99, 33))
        client.send(b"\n")
        client.hear(b"33 99\r\n")
        (engine.bundle / "ctl").write_text("1 44 88 and more\nnonsense\n")
        waiting.wait_true(lambda: "nonsense" in engine.own_log())
        client.send(b"\n")
        client.hear(b"44 88\r\n")
    assert engine.status() == "0"


def test_a_log_that_the_engine_has_renamed_is_made_at_once(
    make_conmon: Callable[..., Engine],
) -> None:
    engine = make_conmon(SAYS_BYE)
    engine.create()
    engine.runc("start", engine.cid)
    waiting.wait_true(lambda: engine.log() == ["stdout F ready"])
    log = engine.directory / "log"
    log.rename(engine.directory / "old")
    (engine.bundle / "ctl").write_text("2 0 0\n")
    waiting.wait_true(log.exists)
    assert (engine.directory / "old").read_text().endswith("stdout F ready\n")
    os.kill(engine.monitor, signal.SIGTERM)
    assert engine.status() == "3"
    assert engine.log() == ["stdout F bye"]
    assert (engine.directory / "old").read_text().endswith("stdout F ready\n")


def test_a_log_is_rotated_when_the_engine_says_so(make_conmon: Callable[..., Engine]) -> None:
    engine = make_conmon(SAYS_BYE)
    engine.create("--log-rotate", "--log-max-files", "2")
    engine.runc("start", engine.cid)
    waiting.wait_true(lambda: engine.log() == ["stdout F ready"])
    (engine.bundle / "ctl").write_text("2 0 0\n")
    waiting.wait_true((engine.directory / "log.1").exists)
    os.kill(engine.monitor, signal.SIGTERM)
    assert engine.status() == "3"
    assert engine.log() == ["stdout F bye"]
    assert (engine.directory / "log.1").read_text().endswith("stdout F ready\n")


def test_a_limit_keeps_the_log_small(make_conmon: Callable[..., Engine]) -> None:
    engine = make_conmon("i=0; while [ $i -lt 2000 ]; do i=$((i+1)); echo line $i; done")
    engine.create("--log-size-max", "10000")
    engine.runc("start", engine.cid)
    assert engine.status() == "0"
    assert (engine.directory / "log").stat().st_size <= 10000
    assert engine.log()[-1] == "stdout F line 2000"


@pytest.fixture
def running(make_conmon: Callable[..., Engine]) -> Engine:
    engine = make_conmon()
    engine.create()
    engine.runc("start", engine.cid)
    waiting.wait_true(lambda: "stdout F ready" in engine.log())
    return engine


def test_an_exec_tells_its_pid_and_then_its_status(running: Engine) -> None:
    call = running.exec("exit 5", "--api-version")
    call.start()
    call.forked()
    pid = call.message()
    assert pid is not None
    assert pid["data"] > 1
    assert call.message() == {"data": 5}
    assert call.message() is None


def test_a_legacy_exec_stays_a_child_and_tells_its_status_alone(running: Engine) -> None:
    call = running.exec("echo there; exit 6", "--sync", has_bundle=False)
    call.start()
    assert call.message() == {"exit_code": 6}
    assert call.message() is None
    assert call.process.wait(60) == 6
    assert "stdout F there" in running.log()


def test_an_exec_out_of_time_is_told_in_the_words_of_the_prober(running: Engine) -> None:
    call = running.exec("sleep 1000", "--sync", "-T", "1", has_bundle=False)
    call.start()
    assert call.message() == {"exit_code": -1, "message": "command timed out"}


def test_an_exec_does_not_wait_for_the_children_that_it_leaves(running: Engine) -> None:
    call = running.exec("sleep 1000 & echo there; exit 4", "--sync", has_bundle=False)
    call.start()
    assert call.message() == {"exit_code": 4}
    assert "stdout F there" in running.log()


def test_an_exec_that_fails_is_told_once(running: Engine) -> None:
    call = running.exec("exit 0", "--api-version")
    spec = next(running.directory.glob("spec-*"))
    spec.write_text(json.dumps({**conmon.PROCESS, "args": ["/no/such"]}))
    call.start()
    call.forked()
    message = call.message()
    assert message is not None
    assert message["data"] == -1
    assert "/no/such" in message["message"]
    assert call.message() is None


def test_clients_attach_before_the_process_is_executed(running: Engine) -> None:
    call = running.exec("cat; exit 8", "-i", "--api-version", "--exec-attach", is_attached=True)
    call.start()
    call.forked()
    assert call.message("_OCI_ATTACHPIPE") == {"data": 0}
    session = next(running.directory.glob("session-*"))
    assert not (session / "pid").exists()
    with conmon.Client(session / "attach") as client:
        client.send(b"early\n")
        call.start()
        client.hear(b"early\n")
        client.socket.shutdown(socket.SHUT_WR)
        assert client.socket.recv(8193) == b""
        assert not (session / "attach").exists()
    assert call.message() is not None
    assert call.message() == {"data": 8}


def test_the_words_of_a_wrong_call_are_on_stderr_and_nothing_is_made(
    make_conmon: Callable[..., Engine],
) -> None:
    engine = make_conmon()
    spec = ("-e", "--exec-process-spec", "/s", "--exec-attach", "--api-version")
    for words, text in (
        (engine.words(*spec), "--attach specified but _OCI_ATTACHPIPE was not"),
        (engine.words(log="k8s-file:/no/such/log"), "Failed to open log file"),
        (["-c", "x", "-u", "x", "-r", "/no/such"], "Runtime path /no/such is not valid No such"),
    ):
        done = conmon.run(engine.program, *words)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith(f"[conmon:e]: {text}")
        assert done.stderr.count("\n") == 1
    assert conmon.run(engine.program, "--version").stdout.startswith("conmon version 2.2.1\n")


def test_a_pipe_that_is_none_is_named(make_conmon: Callable[..., Engine]) -> None:
    engine = make_conmon()
    for name in ("_OCI_SYNCPIPE", "_OCI_STARTPIPE"):
        for value in ("nonsense", "999"):
            done = conmon.run(engine.program, *engine.words(), env={**os.environ, name: value})
            assert (done.returncode, done.stdout) == (1, "")
            assert name in done.stderr
