"""`forkshim run` as the main process of a unit: what it tells the service manager, and its end."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from supervisor.handover import discover
from tests.harness import bundles, fd_stores, networks, runtime_calls, runtimes, waiting
from tests.harness.engine import FORKSHIM

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.runc

LOOP = "echo ready; while :; do sleep 0.1; done"


class Manager:
    """A service manager, as far as NOTIFY_SOCKET goes, with one service."""

    def __init__(self, directory: Path) -> None:
        self.root = directory / "root"
        self.id = bundles.fresh_id("service")
        self._address = str(directory / "notify")
        self._socket = networks.long_queue()
        self._socket.bind(self._address)
        self._socket.settimeout(waiting.LIMIT_S)
        self.environment = {**os.environ, "NOTIFY_SOCKET": self._address}
        self.process: subprocess.Popen[bytes] | None = None
        self._heard: list[str] = []

    def start(self, bundle: Path, *options: str, **environment: str) -> subprocess.Popen[bytes]:
        self.process = subprocess.Popen(
            [FORKSHIM, "run", "--root", self.root, "--bundle", bundle, *options, self.id],
            env={**self.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        return self.process

    def replace(self) -> subprocess.Popen[bytes]:
        """Kill the service, and start it again for the container that it has left."""
        assert self.process is not None
        # READY=1 of the container itself may come before its start has ended.
        fd_stores.wait_published(self.root / self.id / "init")
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdout, self.process.stderr):  # what it has left holds them open
            assert pipe is not None
            pipe.close()
        self.process = subprocess.Popen(
            [FORKSHIM, "adopt", "--root", self.root, self.id],
            env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        return self.process

    def hear(self, word: str) -> list[str]:
        """Return the words up to and including the first that begins with `word`."""
        words: list[str] = []
        while not any(line.startswith(word) for line in words):
            try:
                words += self._socket.recv(65536).decode().split("\n")
            except TimeoutError:
                pytest.fail(f"no {word} after {self._heard + words}")
        self._heard += words
        return words

    def hear_rest(self) -> list[str]:
        """Return what is still unheard after the service's end."""
        self._socket.setblocking(False)
        words: list[str] = []
        while True:
            try:
                words += self._socket.recv(65536).decode().split("\n")
            except BlockingIOError:
                return words

    def ended(self) -> tuple[int, str, str]:
        assert self.process is not None
        out, err = self.process.communicate(timeout=waiting.LIMIT_S)
        return self.process.returncode, out.decode(), err.decode()

    def close(self) -> None:
        self._socket.close()
        if self.process is not None:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
                discover.end_leftovers(str(self.root / self.id / "init"))
                runtime_calls.delete(self.id)
            self.process.communicate()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    made = Manager(tmp_path)
    yield made
    made.close()


def test_it_is_ready_when_the_container_runs_and_says_how_it_goes(
    manager: Manager, make_bundle: Callable[..., Path]
) -> None:
    process = manager.start(make_bundle("trap 'exit 0' TERM; " + LOOP))
    words = manager.hear("READY=1")
    assert re.fullmatch(
        r"STATUS=running, pid \d+, stdout \d B, stderr 0 B, respawned 0, forkshim .+", words[-1]
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGTERM)
    assert manager.ended() == (0, "", "")
    words = manager.hear_rest()
    assert words[0] == "STOPPING=1"
    phases = ["asked to stop", "dead", "dead", "dead"]
    told = [
        word for word in words if word.startswith("STATUS=") and not word.startswith("STATUS=ended")
    ]
    assert [word.removeprefix("STATUS=").partition(",")[0] for word in told] == phases
    assert "(exit status 0), stdout 6 B, stderr 0 B, respawned 0" in told[-1]
    # 10 s of grace, 10 s for a runtime that hangs, 10 s to spare.
    assert "EXTEND_TIMEOUT_USEC=30000000" in words


def test_it_says_what_a_stream_waits_for_and_what_was_dropped(
    manager: Manager, make_bundle: Callable[..., Path]
) -> None:
    """/dev/full is full for ever; the buffer holds 512 KiB."""
    loop = "while :; do sleep 0.1; done"  # LOOP says a line more, if TERM comes late
    script = f"trap 'exit 0' TERM; yes | head -c 5000000; echo said >&2; {loop}"
    process = manager.start(
        make_bundle(script), "--log", "path,policy=drop-new,buffer=512k:/dev/full"
    )

    def hear_match(pattern: str) -> None:
        while not any(re.fullmatch(pattern, word) for word in manager.hear("STATUS=")):
            pass

    hear_match(r"STATUS=running, pid \d+, stdout 0 B.* \(No space left on device\), stderr .*")
    process.send_signal(signal.SIGTERM)
    hear_match(r"STATUS=dead, .* stdout 0 B \+ 4\.8 MiB in 2500000 lines dropped, stderr 0 B.*")
    assert manager.ended()[0] == 0


def test_a_silent_container_is_ready_again_after_an_adoption(
    manager: Manager, make_bundle: Callable[..., Path]
) -> None:
    """Without a byte nothing is published after the start: the first document has to do."""
    manager.start(make_bundle("trap 'exit 3' TERM; while :; do sleep 0.05; done"))
    manager.hear("READY=1")
    manager.replace()
    manager.hear("READY=1")
    adopter = manager.replace()
    manager.hear("READY=1")
    adopter.terminate()
    assert manager.ended()[0] == 3


def test_a_container_that_cannot_start_is_never_ready(
    manager: Manager, rootfs: Path, tmp_path: Path
) -> None:
    bundle = bundles.make_bundle(tmp_path / "b", bundles.config(rootfs, ["no-such-program"]))
    manager.start(bundle)
    code, _out, err = manager.ended()
    assert code == 1
    assert "no-such-program" in err
    assert "READY=1" not in manager.hear_rest()


def test_a_container_that_is_quicker_than_its_start_was_ready(
    manager: Manager, make_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    """Else its unit would have failed, with the result `protocol`."""
    runtime, _gate = runtimes.lingering(tmp_path, "start")
    manager.start(make_bundle("exit 0"), "--runtime", str(runtime))
    assert manager.ended() == (0, "", "")
    assert "READY=1" in manager.hear_rest()


@pytest.mark.parametrize(
    ("script", "options", "code"),
    [
        ("trap 'exit 143' TERM; " + LOOP, (), 0),
        ("trap 'exit 7' TERM; " + LOOP, (), 7),
        ("trap '' TERM; " + LOOP, ("--stop-timeout", "0.1"), 0),
    ],
    ids=["dies of it", "fails", "is killed"],
)
def test_an_end_that_was_asked_for_is_no_failure_unless_the_container_says_so(
    manager: Manager, make_bundle: Callable[..., Path],
    script: str, options: tuple[str, ...], code: int,
) -> None:  # fmt: skip
    process = manager.start(make_bundle(script), *options)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGTERM)
    assert manager.ended()[0] == code


@pytest.mark.parametrize(("environment", "code"), [({}, 0), ({"SYSTEMD_EXEC_PID": "1"}, 143)])
def test_a_stop_before_there_is_a_container_is_no_failure_of_the_unit(
    manager: Manager, make_bundle: Callable[..., Path], tmp_path: Path,
    environment: dict[str, str], code: int,
) -> None:  # fmt: skip
    runtime, gate = runtimes.gate(tmp_path, "state")
    (manager.root / manager.id / "init").mkdir(parents=True)
    process = manager.start(make_bundle("echo no"), "--runtime", str(runtime), **environment)
    with gate.open("wb"):
        process.send_signal(signal.SIGTERM)
    assert manager.ended()[:2] == (code, "")
    assert os.listdir(manager.root) == []


def test_a_stop_of_a_start_is_no_failure_of_the_unit(
    manager: Manager, make_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    text = f"[ $verb = start ] && {{ echo > {tmp_path}/started; exec sleep 1000; }}"
    runtime = runtimes.script(tmp_path / "hangs", text)
    process = manager.start(make_bundle("echo no"), "--runtime", str(runtime))
    waiting.wait_path(tmp_path / "started", lambda path: path.exists())
    process.send_signal(signal.SIGTERM)
    assert manager.ended() == (0, "", "")


@pytest.mark.parametrize("status", [137, 143])
def test_an_end_that_nobody_asked_for_is_the_containers_own(
    manager: Manager, make_bundle: Callable[..., Path], status: int
) -> None:
    manager.start(make_bundle(f"exit {status}"))
    assert manager.ended()[0] == status


def test_a_process_that_is_not_the_units_main_one_says_nothing(
    manager: Manager, make_bundle: Callable[..., Path]
) -> None:
    manager.start(make_bundle("exit 3"), SYSTEMD_EXEC_PID="1")
    assert manager.ended()[0] == 3
    assert manager.hear_rest() == []


def test_it_gives_signs_of_life_and_replaces_a_worker_that_does_not_move(
    manager: Manager, make_bundle: Callable[..., Path]
) -> None:
    bundle = make_bundle("trap 'exit 0' TERM; echo ready; while sleep 0.1; do echo x; done")
    process = manager.start(bundle, WATCHDOG_USEC="200000")
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    manager.hear("WATCHDOG=1")
    worker = waiting.wait_worker(process.pid, "stdout")
    os.kill(worker, signal.SIGSTOP)
    words = manager.hear("STATUS=running, pid")
    while "respawned 0" in words[-1]:
        words = manager.hear("STATUS=running, pid")
    assert waiting.wait_worker(process.pid, "stdout") != worker
    assert process.stdout.readline() == b"x\n"
    process.send_signal(signal.SIGTERM)
    code, _out, err = manager.ended()
    assert code == 0
    assert f"stdout: worker {worker} is stuck; killing and replacing it" in err
