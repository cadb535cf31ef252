"""Our conmon called as CRI-O 1.25 calls it: its words, its environment, its order of steps."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import conmon, waiting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = [pytest.mark.runc, pytest.mark.process]

READS = "echo begun; while read line; do echo got $line; done; echo end; exit 6"
MOST_LOG_BYTES = 16 << 20


class Crio:
    """CRI-O for one container. The runtime's state is in a directory of its own."""

    def __init__(self, directory: Path, bundle: Path) -> None:
        self.directory = directory
        self.bundle = bundle
        self.cid = os.urandom(32).hex()
        self.program = conmon.make_program(directory)
        self.root = f"--root={directory}/runc"
        self.log = directory / "0.log"
        for name in ("exits", "persist", "attach"):
            (directory / name).mkdir()

    def runc(self, *words: str) -> None:
        done = subprocess.run(["runc", self.root, *words], capture_output=True, timeout=60)
        assert done.returncode == 0, done.stderr

    def start(self, words: list[str], *, is_exec: bool = False) -> tuple[Any, int, socket.socket]:
        """Start conmon; return it, the sync pipe and the start pipe.

        The environment has no PATH and no HOME. An exec's sync pipe is a pipe, and the exec stays
        in CRI-O's process group.
        """
        sync_rfd, sync_wfd = os.pipe()
        start, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        pipes = {"_OCI_SYNCPIPE": str(sync_wfd), "_OCI_STARTPIPE": str(theirs.fileno())}
        process = subprocess.Popen(
            [self.program, *words],
            cwd=self.bundle,
            env={"XDG_RUNTIME_DIR": "", "LANG": "C.UTF-8", **pipes},
            pass_fds=[sync_wfd, theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            process_group=None if is_exec else 0,
        )
        os.close(sync_wfd)
        theirs.close()
        return process, sync_rfd, start

    def create(self, *more: str) -> dict[str, Any]:
        words = [
            *("-b", str(self.bundle), "-c", self.cid, "--exit-dir", f"{self.directory}/exits"),
            *("-l", str(self.log), "--log-level", "info", "-n", "k8s_box_pod_ns_uid_0"),
            *("-P", f"{self.bundle}/conmon-pidfile", "-p", f"{self.bundle}/pidfile"),
            *("--persist-dir", f"{self.directory}/persist", "-r", "/usr/sbin/runc"),
            *("--runtime-arg", self.root, "--socket-dir-path", f"{self.directory}/attach"),
            *("--syslog", "-u", self.cid, *more),
        ]
        process, sync_rfd, start = self.start(words)
        start.send(b"\0")
        assert process.communicate(timeout=60) == (b"", b"")
        assert process.returncode == 0
        with os.fdopen(sync_rfd) as sync, start:
            created: dict[str, Any] = json.loads(sync.readline())
        return created

    @property
    def monitor(self) -> int:
        return int((self.bundle / "conmon-pidfile").read_text())

    def exec_sync(self, script: str, *more: str, terminal: bool = False) -> ExecSync:
        return ExecSync(self, script, *more, terminal=terminal)

    def records(self, log: Path) -> list[str]:
        return [line.split(" ", 1)[1] for line in log.read_text().splitlines()]

    def close(self) -> None:
        subprocess.run(["runc", self.root, "delete", "--force", self.cid], check=False)
        with suppress(FileNotFoundError, ProcessLookupError):
            waiting.wait_process(self.monitor)


class ExecSync:
    """One ExecSync of CRI-O: the exit code comes by the sync pipe, the output by a log file."""

    count = 0

    def __init__(self, crio: Crio, script: str, *more: str, terminal: bool) -> None:
        ExecSync.count += 1
        self.crio = crio
        self.log = crio.directory / f"crio-log-{self.count}"
        spec = crio.directory / f"exec-process-{self.count}"
        process = {**conmon.PROCESS, "args": ["sh", "-c", script], "terminal": terminal}
        spec.write_text(json.dumps(process))
        pid_file = crio.directory / f"pidfile{self.count}"
        pid_file.touch()  # CRI-O's CreateTemp makes it
        self.pid_file = pid_file
        words = [
            *("-c", crio.cid, "-n", "k8s_box_pod_ns_uid_0", "-r", "/usr/sbin/runc"),
            *("-p", str(pid_file), "-e", "-l", str(self.log), "--log-level", "info", "--sync"),
            *("--socket-dir-path", f"{crio.directory}/attach"),
            *("--log-global-size-max", str(MOST_LOG_BYTES), *more),
            *("--exec-process-spec", str(spec), "--runtime-arg", crio.root),
        ]
        self.process, self.sync_rfd, self.start_socket = crio.start(words, is_exec=True)
        self.start_socket.send(b"\0")

    def result(self) -> dict[str, Any]:
        """Wait for the process as CRI-O does, and read its word after that."""
        assert self.process.communicate(timeout=60) == (b"", b"")
        with os.fdopen(self.sync_rfd) as sync, self.start_socket:
            told: dict[str, Any] = json.loads(sync.readline())
            assert sync.read() == ""
        return told

    def output(self) -> str:
        """Return what CRI-O's parser makes of the log: records F and P joined."""
        parts = (record.split(" ", 2) for record in self.crio.records(self.log))
        return "".join(text + "\n" * (tag == "F") for _stream, tag, text in parts)


@pytest.fixture
def make_crio(tmp_path: Path, make_bundle: Callable[..., Path]) -> Iterator[Callable[..., Crio]]:
    made: list[Crio] = []

    def make(script: str = conmon.STAYS, **options: bool) -> Crio:
        made.append(Crio(tmp_path, make_bundle(script, **options)))
        return made[-1]

    yield make
    for each in made:
        each.close()


def exit_code(crio: Crio) -> str:
    path = crio.directory / "exits" / crio.cid
    waiting.wait_true(path.exists)
    return path.read_text()


def test_a_container_from_its_creation_to_its_removal(make_crio: Callable[..., Crio]) -> None:
    crio = make_crio(READS)
    created = crio.create("-i", "--leave-stdin-open", "--log-size-max", "16777216")
    assert created == {"pid": int((crio.bundle / "pidfile").read_text())}
    crio.runc("start", crio.cid)
    link = crio.directory / "attach" / crio.cid
    assert link.is_symlink()

    with conmon.Client(link / "attach") as client:  # kubectl attach, and its end
        client.send(b"one\n")
        client.hear(b"got one\n")
        client.socket.shutdown(socket.SHUT_WR)
        with conmon.Client(link / "attach") as second:
            second.send(b"two\n")
            client.hear(b"got two\n")

    old = crio.log.rename(crio.directory / "0.log.20261128")  # kubelet's rotation
    (crio.bundle / "ctl").write_text("2 0 0\n")
    waiting.wait_true(crio.log.exists)
    with conmon.Client(link / "attach") as client:
        client.send(b"three\n")
        client.hear(b"got three\n")
    waiting.wait_true(lambda: crio.records(crio.log) == ["stdout F got three"])
    assert crio.records(old) == ["stdout F begun", "stdout F got one", "stdout F got two"]

    crio.runc("kill", crio.cid, "KILL")
    assert exit_code(crio) == "137"
    assert (crio.directory / "persist" / "exit").read_text() == "137"
    waiting.wait_process(crio.monitor)
    assert not link.is_symlink()
    assert not (crio.bundle / "attach").exists()
    crio.runc("delete", crio.cid)


def test_stdin_once_ends_with_its_client(make_crio: Callable[..., Crio]) -> None:
    crio = make_crio(READS)
    crio.create("-i")
    crio.runc("start", crio.cid)
    with conmon.Client(crio.directory / "attach" / crio.cid / "attach") as client:
        client.send(b"one\n")
        client.socket.shutdown(socket.SHUT_WR)
        client.hear(b"end\n")
    assert exit_code(crio) == "6"


def test_a_failed_creation_is_told_by_the_key_of_the_first_version(
    make_crio: Callable[..., Crio],
) -> None:
    crio = make_crio()
    (crio.bundle / "config.json").write_text("{}")
    created = crio.create()
    assert created["pid"] == -1
    assert created["message"]


@pytest.fixture
def running(make_crio: Callable[..., Crio]) -> Crio:
    crio = make_crio()
    crio.create()
    crio.runc("start", crio.cid)
    waiting.wait_true(lambda: crio.records(crio.log) == ["stdout F ready"])
    return crio


def test_an_exec_sync_has_its_status_and_all_of_its_output(running: Crio) -> None:
    script = "i=0; while [ $i -lt 2000 ]; do i=$((i+1)); echo line $i; done; printf part; exit 5"
    done = running.exec_sync(script)
    assert done.result() == {"exit_code": 5}
    assert done.output() == "".join(f"line {i + 1}\n" for i in range(2000)) + "part"


def test_an_exec_sync_of_a_terminal(running: Crio) -> None:
    done = running.exec_sync("test -t 0 && test -t 1 && echo there", "-t", terminal=True)
    assert done.result() == {"exit_code": 0}
    assert done.log.read_bytes().endswith(b" stdout F there\r\n")


def test_an_exec_sync_out_of_time_is_told_in_the_probers_words(running: Crio) -> None:
    done = running.exec_sync("echo before; sleep 1000", "-T", "1")
    assert done.result() == {"exit_code": -1, "message": "command timed out"}
    assert done.output() == "before\n"


def test_an_exec_sync_that_cannot_be_executed(running: Crio) -> None:
    done = running.exec_sync("exit 0", "--runtime-arg", "--no-such-option")
    assert done.result()["exit_code"] == -1


def test_a_stop_ends_the_execs_that_run(running: Crio) -> None:
    """CRI-O sends TERM to the conmon of each, which is its child."""
    done = running.exec_sync("echo there; exec sleep 1000")
    waiting.wait_true(lambda: done.log.exists() and running.records(done.log) != [])
    done.process.send_signal(signal.SIGTERM)
    assert done.result() == {"exit_code": 128 + signal.SIGTERM}
    assert done.output() == "there\n"


def test_twenty_probes_leave_nothing(running: Crio) -> None:
    before = set(os.listdir("/run/forkshim/conmon")) if os.path.isdir("/run/forkshim") else set()
    for number in range(20):
        assert running.exec_sync(f"exit {number}").result() == {"exit_code": number}
    left = set(os.listdir("/run/forkshim/conmon"))
    assert left - before == set()
