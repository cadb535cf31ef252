"""Real podman when our conmon is killed: the supervisor, its guardian; and when it is reloaded."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import tempfile
import threading
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.engines.podman import IMAGE, Podman, podman
from tests.harness import shim_log, waiting

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.engine, pytest.mark.process]

COUNTS = "trap 'exit 7' TERM; i=0; while :; do i=$((i+1)); echo $i; sleep 0.01; done"
_MIB, _FAULTS = 1 << 20, 8


@pytest.fixture(scope="module")
def installed(rootfs: Path) -> Iterator[Podman]:
    with tempfile.TemporaryDirectory(prefix="pmk-") as name, podman(Path(name), rootfs) as made:
        yield made


@pytest.fixture
def pm(installed: Podman) -> Iterator[Podman]:
    """The module's podman; the test fails if it leaves a process of ours."""
    installed.set_successors(5)
    yield installed
    installed.run("rm", "--all", "--force", "--time", "0")


class Container:
    """One container of podman, and the processes that supervise it."""

    def __init__(self, pm: Podman, container_id: str) -> None:
        """Find the files of a running container; see `started`."""
        self.pm = pm
        self.id = container_id
        self.pid = int(self.inspect(".State.Pid"))
        self.log = Path(self.inspect(".HostConfig.LogConfig.Path"))
        self._own_log = Path(self.inspect(".StaticDir")) / ".forkshim" / "shim-log.json"
        self._pid_file = Path(self.inspect(".ConmonPidFile"))

    @classmethod
    def started(cls, pm: Podman, *words: str) -> Container:
        """Run one detached, with the name `c`."""
        return cls(pm, pm.out("run", "-d", "--name", "c", *words))

    def inspect(self, field: str) -> str:
        """Return a field of `podman inspect`."""
        return self.pm.inspect(self.id, field)

    @property
    def guardian(self) -> int:
        """The pid that podman knows."""
        return int(self._pid_file.read_text())

    def supervisors(self) -> list[int]:
        """Return the pids of living supervisors: children of the guardian, without streams."""
        with suppress(OSError):
            children = Path(f"/proc/{self.guardian}/task/{self.guardian}/children").read_text()
            return [int(pid) for pid in children.split() if self._has_title(pid)]
        return []

    def _has_title(self, pid: str) -> bool:
        with suppress(OSError):
            title = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").decode()
            return title == f"forkshim: {self.id}"
        return False

    def count(self, words: str) -> int:
        """Return how often our log has these words."""
        return sum(words in message for message in shim_log.messages(self._own_log))

    def wait_more(self, words: str, before: int) -> None:
        """Wait until our log has these words more often."""
        waiting.wait_true(lambda: self.count(words) > before)

    def kill(self) -> None:
        """Kill the supervisor, and wait until another one has adopted the container."""
        before = self.count("adopted:")
        self.kill_only()
        self.wait_more("adopted:", before)

    def kill_guardian(self) -> None:
        """Kill the guardian, and wait until the container has another one and a supervisor."""
        before, known = self.count("adopted:"), self.guardian
        os.kill(known, signal.SIGKILL)
        waiting.wait_true(lambda: self.guardian != known)
        self.wait_more("adopted:", before)
        assert waiting.is_alive(self.guardian)

    def reload(self) -> None:
        """Have the supervisor reloaded, and wait for that."""
        before = self.count("reloaded:")
        os.kill(self.guardian, signal.SIGHUP)
        self.wait_more("reloaded:", before)

    def kill_only(self) -> None:
        """Kill the supervisor."""
        os.kill(self.supervisor(), signal.SIGKILL)

    def supervisor(self) -> int:
        """Return the pid of the supervisor, once there is one."""
        found: list[int] = []

        def is_there() -> bool:
            found[:] = self.supervisors()
            return len(found) == 1

        waiting.wait_true(is_there)
        return found[0]

    def numbers(self) -> list[int]:
        """Return what `podman logs` has of a container that counts."""
        return [int(word) for word in self.pm.out("logs", self.id).split()]

    def wait_counted(self, more_bytes: int = 500) -> None:
        """Wait until so much more is in the log."""
        before = self.log.stat().st_size
        waiting.wait_true(lambda: self.log.stat().st_size > before + more_bytes)


def check_counted(container: Container) -> None:
    """Check that the log has all, once."""
    numbers = container.numbers()
    assert len(numbers) > 20
    assert numbers == list(range(1, len(numbers) + 1))


def test_a_killed_supervisor_is_replaced_and_podman_sees_nothing(pm: Podman) -> None:
    """Fault 2 of the table: under conmon the log ends, `wait` hangs, and `stop` never ends."""
    container = Container.started(pm, IMAGE, "sh", "-c", COUNTS)
    guardian = container.guardian
    for _ in range(3):
        container.wait_counted()
        container.kill()
    container.wait_counted()
    assert container.guardian == guardian
    assert waiting.is_alive(guardian)
    assert pm.out("ps", "--format", "{{.Names}}") == "c"
    assert pm.out("exec", "c", "echo", "there") == "there"
    waiter = subprocess.Popen(pm.command("wait", "c"), stdout=subprocess.PIPE, text=True)
    pm.run("stop", "c")
    assert waiter.communicate(timeout=60)[0] == "7\n"
    assert container.inspect(".State.Status") == "exited"
    check_counted(container)
    waiting.wait_true(lambda: not waiting.is_alive(guardian))
    assert container.supervisors() == []


@pytest.mark.parametrize(("signum", "status"), [("USR1", "0"), ("USR2", "9"), ("KILL", "137")])
def test_the_status_is_true_of_a_container_that_ends_without_a_supervisor(
    pm: Podman, signum: str, status: str
) -> None:
    script = "trap 'exit 0' USR1; trap 'exit 9' USR2; echo ready; while :; do sleep 0.01; done"
    container = Container.started(pm, IMAGE, "sh", "-c", script)
    waiting.wait_true(lambda: container.log.stat().st_size > 0)
    container.kill_only()
    os.kill(container.pid, getattr(signal, f"SIG{signum}"))
    assert pm.out("wait", "c") == status
    assert pm.out("logs", "c") == "ready"


def test_what_came_in_meanwhile_goes_to_clients_of_before_and_of_after(pm: Podman) -> None:
    script = "while read line; do echo got $line; done; exit 3"
    container = Container.started(pm, "-i", IMAGE, "sh", "-c", script)
    bundle = Path(container.inspect(".StaticDir"))
    with client_of(pm, "attach", "c") as first, client_of(pm, "logs", "-f", "c") as follower:
        first.say("first\n")
        for each in (first, follower):
            each.hear("got first\n")
        container.kill()
        with client_of(pm, "attach", "c") as second:
            waiting.wait_true(lambda: connections(bundle) == 2)
            for number, client in enumerate((first, second)):
                client.say(f"{number}\n")
                for each in (first, second, follower):
                    each.hear(f"got {number}\n")
                container.kill()
            first.end_input()  # and so ends the container's, as under conmon
            assert pm.out("wait", "c") == "3"
            assert follower.process.wait(60) == 0


class Client:
    """One podman command with pipes."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    def say(self, text: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text.encode())
        self.process.stdin.flush()

    def hear(self, text: str) -> None:
        """Read exactly this."""
        assert self.process.stdout is not None
        assert self.process.stdout.read(len(text)) == text.encode()

    def end_input(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()


@contextmanager
def client_of(pm: Podman, *words: str) -> Iterator[Client]:
    """Run one podman command, and kill it at the end."""
    process = subprocess.Popen(
        pm.command(*words),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield Client(process)
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()


def connections(bundle: Path) -> int:
    """Return how many connections an attach socket has. Source: proc(5), /proc/net/unix."""
    fields = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()]
    return sum(
        each[5] == "03" and each[-1].endswith("/attach") for each in fields if len(each) == 8
    )


def test_a_kill_during_an_exec_and_during_a_stop_changes_neither(pm: Podman) -> None:
    script = "trap 'echo term' TERM; trap 'exit 4' USR1; echo ready; while :; do sleep 0.05; done"
    container = Container.started(pm, IMAGE, "sh", "-c", script)
    words = ("exec", "-i", "c", "sh", "-c", "echo there; read x; echo got $x; exit 5")
    with client_of(pm, *words) as session:
        session.hear("there\n")
        container.kill()
        session.say("this\n")
        session.hear("got this\n")
        assert session.process.wait(60) == 5
    stop = subprocess.Popen(pm.command("stop", "--time", "60", "c"), stdout=subprocess.DEVNULL)
    waiting.wait_true(lambda: b"term" in container.log.read_bytes())
    container.kill()
    os.kill(container.pid, signal.SIGUSR1)
    assert stop.wait(60) == 0
    assert container.inspect(".State.ExitCode") == "4"
    assert pm.out("logs", "c") == "ready\nterm"


def test_a_terminal_keeps_its_size_and_gets_another_after_a_kill(pm: Podman) -> None:
    script = "read x; stty size; read x; stty size; exit 6"
    container = Container.started(pm, "-it", IMAGE, "sh", "-c", script)
    ctl = Path(container.inspect(".StaticDir")) / "ctl"
    ctl.write_text("1 33 99\n")
    waiting.wait_true(lambda: waiting.window_of(container.pid) == (99, 33))
    container.kill()
    with client_of(pm, "attach", "c") as client:
        waiting.wait_true(lambda: connections(ctl.parent) == 1)
        client.say("\n")
        waiting.wait_true(lambda: b"33 99" in container.log.read_bytes())
        ctl.write_text("1 44 88\n")
        waiting.wait_true(lambda: waiting.window_of(container.pid) == (88, 44))
        client.say("\n")
        assert pm.out("wait", "c") == "6"
    assert b"44 88" in container.log.read_bytes()


def test_a_killed_guardian_is_replaced_and_podman_stops_the_container(pm: Podman) -> None:
    """Fault 3 of the table: this is the pid that podman knows."""
    container = Container.started(pm, IMAGE, "sh", "-c", COUNTS)
    container.kill_guardian()
    container.wait_counted()
    container.kill()
    assert pm.out("exec", "c", "echo", "there") == "there"
    pm.run("stop", "c")
    assert container.inspect(".State.Status") == "exited"
    assert pm.out("wait", "c") == "7"
    check_counted(container)


def test_guardians_may_be_killed_one_after_the_other(pm: Podman) -> None:
    """From the second on the container is a child of init; this test is the subreaper."""
    container = Container.started(pm, IMAGE, "sh", "-c", COUNTS)
    for _ in range(4):
        container.kill_guardian()
        container.wait_counted()
    stop = subprocess.Popen(pm.command("stop", "c"), stdout=subprocess.DEVNULL)
    os.waitpid(container.pid, 0)
    assert stop.wait(60) == 0
    assert pm.out("wait", "c") == "7"
    check_counted(container)


def test_without_successors_log_and_status_are_whole(pm: Podman) -> None:
    pm.set_successors(0)
    container = Container.started(pm, IMAGE, "sh", "-c", COUNTS)
    container.wait_counted()
    container.kill_only()
    container.wait_more("have not lasted", 0)
    container.wait_counted()
    assert pm.out("ps", "--format", "{{.Names}}") == "c"
    pm.run("stop", "c")
    assert pm.out("wait", "c") == "7"
    assert container.inspect(".State.Status") == "exited"
    check_counted(container)


def test_a_reload_replaces_the_version_in_place(pm: Podman) -> None:
    """Fault 10 of the table: SIGHUP ends conmon without a word."""
    container = Container.started(pm, IMAGE, "sh", "-c", COUNTS)
    supervisor = container.supervisor()
    for _ in range(3):
        container.reload()
        container.wait_counted()
    assert container.supervisors() == [supervisor]
    container.kill()
    pm.run("stop", "c")
    assert pm.out("wait", "c") == "7"
    check_counted(container)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("fault", ["kill", "reload"])
def test_a_stream_under_faults_is_complete(pm: Podman, fault: str) -> None:
    """Faults 2 and 10 of the table: the client's stream and the log, each whole."""
    pm.set_successors(1000)
    sent, got, is_over = list[bytes](), list[bytes](), threading.Event()
    with client_of(pm, "run", "-i", "--name", "c", IMAGE, "cat") as client:
        process = client.process
        threads = _copy(process, sent, got, is_over)
        waiting.wait_true(lambda: pm.run("inspect", "c", check=False).returncode == 0)
        waiting.wait_true(lambda: pm.inspect("c", ".State.Running") == "true")
        container = Container(pm, pm.inspect("c", ".Id"))
        for each in threads:
            each.start()
        for _ in range(_FAULTS):
            (container.kill if fault == "kill" else container.reload)()
            container.wait_counted(_MIB)
        is_over.set()
        for each in threads:
            each.join()
        assert process.wait(60) == 0
    wanted, heard = b"".join(sent), b"".join(got)
    assert len(wanted) > _FAULTS * _MIB
    if len(heard) == len(wanted):
        assert heard == wanted
    else:  # a packet between its send(2) and its commit: at most one for each fault
        assert 0 < len(heard) - len(wanted) <= 8192 * _FAULTS
    lines = [line.split(b" ", 3)[2:] for line in container.log.read_bytes().split(b"\n") if line]
    logged = b"".join(text + (b"\n" if mark == b"F" else b"") for mark, text in lines)
    assert hashlib.sha256(logged).digest() == hashlib.sha256(wanted).digest()


def _copy(
    process: subprocess.Popen[bytes], sent: list[bytes], got: list[bytes], is_over: threading.Event
) -> list[threading.Thread]:
    """Return threads that write to the process until it is over, and read from it to its end."""
    block = random.Random(3).randbytes(_MIB)
    stdin, stdout = process.stdin, process.stdout
    assert stdin is not None
    assert stdout is not None

    def write() -> None:
        while not is_over.is_set():
            part = len(sent).to_bytes(4, "big") + block[4:]
            sent.append(part)
            stdin.write(part)
        stdin.close()

    def read() -> None:
        while part := stdout.read(_MIB):
            got.append(part)

    return [threading.Thread(target=each) for each in (write, read)]
