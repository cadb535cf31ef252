"""Our conmon with a real runc, called as an engine calls it: pipes, files, ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import conmon, waiting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = [pytest.mark.runc, pytest.mark.process]

STAYS = "trap 'exit 3' TERM; echo ready; while :; do sleep 0.05; done"
PROCESS = {
    "user": {"uid": 0, "gid": 0},
    "env": ["PATH=/bin"],
    "cwd": "/",
    "noNewPrivileges": True,
}


class Engine:
    """Plays an engine for one container. Deletes it at the end."""

    def __init__(self, directory: Path, bundle: Path) -> None:
        self.directory = directory
        self.bundle = bundle
        self.cid = f"conmon-{os.getpid()}-{directory.name}"[:60]
        self.program = conmon.make_program(directory)
        self.calls: list[conmon.Call] = []
        self.created: dict[str, Any] | None = None
        for name in ("exits", "persist"):
            (directory / name).mkdir()

    def words(self, *more: str, log: str | None = None) -> list[str]:
        return [
            *("-c", self.cid, "-u", self.cid, "-r", "/usr/sbin/runc", "-n", "name"),
            *("-l", log or f"k8s-file:{self.directory}/log", "--log-level", "info"),
            *("--exit-dir", f"{self.directory}/exits", "--full-attach", *more),
        ]

    def call(self, words: list[str], *, is_attached: bool = False) -> conmon.Call:
        self.calls.append(conmon.Call(self.program, words, is_attached=is_attached))
        return self.calls[-1]

    def create(self, *more: str, log: str | None = None) -> conmon.Call:
        """Create the container; the runtime's start is still to come."""
        files = (f"{self.directory}/{name}" for name in ("pid", "conmon.pid", "persist"))
        pid, own, persist = files
        more = ("-p", pid, "-P", own, "--persist-dir", persist, *more)
        words = ["--api-version", "1", "-b", str(self.bundle), *more]
        call = self.call(self.words(*words, log=log))
        call.start()
        call.forked()
        self.created = call.message()
        return call

    def exec(
        self, script: str, *more: str, is_attached: bool = False, has_bundle: bool = True
    ) -> conmon.Call:
        """Execute a shell script in the container."""
        spec = self.directory / f"spec-{len(self.calls)}"
        spec.write_text(json.dumps({**PROCESS, "args": ["sh", "-c", script]}))
        session = self.directory / f"session-{len(self.calls)}"
        session.mkdir()
        bundle = ("-b", str(session)) if has_bundle else ()
        words = self.words(
            *("-e", "--exec-process-spec", str(spec), "-p", f"{session}/pid"), *bundle, *more
        )
        return self.call(words, is_attached=is_attached)

    def runc(self, *words: str) -> None:
        subprocess.run(["runc", *words], check=True, capture_output=True, timeout=60)

    @property
    def monitor(self) -> int:
        return int((self.directory / "conmon.pid").read_text())

    def status(self) -> str:
        """Wait for the exit file; return what it says."""
        path = self.directory / "exits" / self.cid
        waiting.wait_true(path.exists)
        return path.read_text()

    def log(self) -> list[str]:
        """Return the records of the log without their times."""
        lines = (self.directory / "log").read_text().splitlines()
        return [line.partition(" ")[2] for line in lines]

    def close(self) -> None:
        subprocess.run(["runc", "delete", "--force", self.cid], capture_output=True, check=False)
        with suppress(FileNotFoundError, ProcessLookupError):
            waiting.wait_process(self.monitor)
        for call in self.calls:
            call.process.communicate(timeout=60)
            call.close()


@pytest.fixture
def make(tmp_path: Path, make_bundle: Callable[..., Path]) -> Iterator[Callable[..., Engine]]:
    made: list[Engine] = []

    def engine(script: str = STAYS, **options: bool) -> Engine:
        made.append(Engine(tmp_path, make_bundle(script, **options)))
        return made[-1]

    yield engine
    for each in made:
        each.close()


def test_a_container_ends_with_its_files_and_its_status(make: Callable[..., Engine]) -> None:
    engine = make("echo out; echo err >&2; printf part; exit 7")
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


def test_the_engine_starts_it_and_deletes_it(make: Callable[..., Engine]) -> None:
    engine = make("exit 0")
    engine.create()
    engine.runc("start", engine.cid)
    assert engine.status() == "0"
    waiting.wait_process(engine.monitor)
    state = subprocess.run(["runc", "state", engine.cid], capture_output=True, check=True)
    assert json.loads(state.stdout)["status"] == "stopped"


def test_nothing_happens_before_the_engines_word(make: Callable[..., Engine]) -> None:
    engine = make("exit 0")
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


def test_a_failed_creation_is_told_in_the_runtimes_words(make: Callable[..., Engine]) -> None:
    engine = make()
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


def test_a_terminals_runtime_fails_in_its_words_too(make: Callable[..., Engine]) -> None:
    engine = make(terminal=True)
    (engine.bundle / "config.json").write_text("{}")
    engine.create("-t")
    message = engine.created
    assert message is not None
    assert message["data"] == -1
    assert message["message"]
    waiting.wait_process(engine.monitor)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_signals_are_the_containers(make: Callable[..., Engine], signum: int) -> None:
    engine = make(f"trap 'echo got; exit 9' {signum}; echo ready; while :; do sleep 0.05; done")
    engine.create()
    engine.runc("start", engine.cid)
    waiting.wait_true(lambda: "stdout F ready" in engine.log())
    os.kill(engine.monitor, signum)
    assert engine.status() == "9"
    assert "stdout F got" in engine.log()


def test_a_time_limit_is_the_status_below_zero(make: Callable[..., Engine]) -> None:
    engine = make()
    engine.create("--timeout=1")
    engine.runc("start", engine.cid)
    assert engine.status() == "-1"


def test_the_exit_command_has_the_engines_environment_and_directory(
    make: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make("exit 5")
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


def test_resizes_reach_the_terminal_also_early_ones(make: Callable[..., Engine]) -> None:
    engine = make("read x; stty size; read x; stty size; exit 0", terminal=True)
    engine.create("-t")
    (engine.bundle / "ctl").write_text("1 33 99\n")
    pid = int((engine.directory / "pid").read_text())
    engine.runc("start", engine.cid)
    with Client(engine.bundle / "attach") as client:
        waiting.wait_true(lambda: waiting.window_of(pid) == (99, 33))
        client.send(b"\n")
        client.hear(b"33 99\r\n")
        (engine.bundle / "ctl").write_text("1 44 88 and more\nnonsense\n")
        waiting.wait_true(lambda: "nonsense" in engine_log(engine))
        client.send(b"\n")
        client.hear(b"44 88\r\n")
    assert engine.status() == "0"


def engine_log(engine: Engine) -> str:
    return (engine.bundle / ".forkshim" / "shim-log.json").read_text()


class Client:
    """A client of an attach socket."""

    def __init__(self, path: Path) -> None:
        import socket

        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(60)
        directory = os.open(path.parent, os.O_PATH)
        try:
            self.socket.connect(f"/proc/self/fd/{directory}/{path.name}")
        finally:
            os.close(directory)
        self.heard = b""

    def send(self, data: bytes) -> None:
        self.socket.send(data)

    def hear(self, wanted: bytes) -> None:
        """Receive until this was heard."""
        while wanted not in self.heard:
            packet = self.socket.recv(8193)
            assert packet, self.heard
            self.heard += packet[1:]

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


def test_a_log_that_the_engine_has_renamed_is_made_at_once(make: Callable[..., Engine]) -> None:
    engine = make()
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


def test_a_limit_keeps_the_log_small(make: Callable[..., Engine]) -> None:
    engine = make("i=0; while [ $i -lt 2000 ]; do i=$((i+1)); echo line $i; done")
    engine.create("--log-size-max", "10000")
    engine.runc("start", engine.cid)
    assert engine.status() == "0"
    assert (engine.directory / "log").stat().st_size <= 10000
    assert engine.log()[-1] == "stdout F line 2000"


@pytest.fixture
def running(make: Callable[..., Engine]) -> Engine:
    engine = make()
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
    spec.write_text(json.dumps({**PROCESS, "args": ["/no/such"]}))
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
    with Client(session / "attach") as client:
        client.send(b"early\n")
        call.start()
        client.hear(b"early\n")
        import socket

        client.socket.shutdown(socket.SHUT_WR)
        assert client.socket.recv(8193) == b""
        assert not (session / "attach").exists()
    assert call.message() is not None
    assert call.message() == {"data": 8}


def test_the_words_of_a_wrong_call_are_on_stderr_and_nothing_is_made(
    make: Callable[..., Engine],
) -> None:
    engine = make()
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


def test_a_pipe_that_is_none_is_named(make: Callable[..., Engine]) -> None:
    engine = make()
    for name in ("_OCI_SYNCPIPE", "_OCI_STARTPIPE"):
        for value in ("nonsense", "999"):
            done = conmon.run(engine.program, *engine.words(), env={**os.environ, name: value})
            assert (done.returncode, done.stdout) == (1, "")
            assert name in done.stderr
