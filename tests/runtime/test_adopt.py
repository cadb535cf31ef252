"""The supervisor is killed; another one goes on with its container, and knows the true end.

FORKSHIM_ADOPTIONS and FORKSHIM_STREAM_MIB make the long run: 50 and 2048.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import random
import signal
import struct
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.harness import bundles, deposits, waiting
from tests.harness.big_stream import BigStream
from tests.harness.engine import FORKSHIM

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = [pytest.mark.runc, pytest.mark.timeout(300)]

SEED = int(os.environ.get("FORKSHIM_SEED", "20161109"))
ADOPTIONS = int(os.environ.get("FORKSHIM_ADOPTIONS", "8"))
STREAM_MIB = int(os.environ.get("FORKSHIM_STREAM_MIB", "256"))


class Daemon:
    """One container under `forkshim run`, and under those who adopt it. Owns them all.

    With `stdin` it is run in a session of its own, else as a daemon.
    """

    def __init__(
        self, root: Path, bundle: Path, *options: str | Path, stdin: int | None = None
    ) -> None:
        self.root = root
        self.id = bundles.fresh_id("adopt")
        self.home = root / self.id
        self._first: subprocess.Popen[bytes] | None = None
        if stdin is None:
            done = self.command("run", "--bundle", bundle, "--detach", *options)
            assert (done.returncode, done.stderr) == (0, "")
        else:
            self._first = subprocess.Popen(
                [FORKSHIM, "run", "-i", "--root", root, "--bundle", bundle, *options, self.id],
                stdin=stdin,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
        deposits.wait_laid_down(self.home / "init")
        self.payload_pid = int((self.home / "init" / "pid").read_text())

    def command(self, verb: str, *options: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [FORKSHIM, verb, "--root", self.root, *options, self.id],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=waiting.LIMIT_S,
        )

    @property
    def pid(self) -> int:
        return int((self.home / "supervisor.pid").read_text())

    def kill(self) -> None:
        """Kill the supervisor, and nobody else."""
        pid = self.pid
        os.kill(pid, signal.SIGKILL)
        waiting.wait_process(pid)
        if self._first is not None:
            self._first.wait()

    def adopt(self, *options: str | Path) -> None:
        done = self.command("adopt", "--detach", *options)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        waiting.wait_true(
            lambda: all(
                waiting.title_of(pid).startswith("forkshim: ")
                for pid in waiting.children_of(self.pid)
            )
        )

    def wait_end(self) -> str:
        """Wait for the end of whoever supervises it; returns what it has written."""
        waiting.wait_process(self.pid)
        return (self.home / "init" / "exitStatus").read_text()

    def log(self) -> list[str]:
        text = (self.home / "init" / "shim-log.json").read_text()
        return [json.loads(line)["msg"] for line in text.splitlines()]

    def workers(self) -> list[int]:
        return [
            pid
            for pid in waiting.children_of(os.getpid())
            if waiting.title_of(pid).startswith(f"forkshim: {self.id} [") and waiting.is_alive(pid)
        ]

    def end(self) -> None:
        # The supervisor first: it would replace its workers.
        for prefix in (f"forkshim: {self.id}", f"forkshim: {self.id} ["):
            for pid in waiting.children_of(os.getpid()):
                if waiting.title_of(pid).startswith(prefix) and waiting.is_alive(pid):
                    os.kill(pid, signal.SIGKILL)
                    waiting.wait_process(pid)
        if self._first is not None:
            self._first.wait()
        subprocess.run(["runc", "delete", "--force", self.id], capture_output=True)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    """Return a function that starts a container as a daemon; its log goes to tmp_path/log."""
    made: list[Daemon] = []

    def make(bundle: Path, *options: str | Path, stdin: int | None = None) -> Daemon:
        options = options or ("--log", f"file:{tmp_path}/log")
        daemon = Daemon(tmp_path / "root", bundle, *options, stdin=stdin)
        made.append(daemon)
        return daemon

    yield make
    for daemon in made:
        daemon.end()


def reap(pid: int) -> None:
    """Be the parent that a container has when its supervisor is gone, as PID 1 would."""
    waiting.wait_process(pid)
    os.waitid(os.P_PID, pid, os.WEXITED)


def test_a_stream_goes_on_under_many_supervisors(
    tmp_path: Path, rootfs: Path, start: Callable[..., Daemon]
) -> None:
    chosen = random.Random(SEED)
    stream = BigStream(tmp_path, rootfs, blocks=STREAM_MIB, status=37, seed=SEED)
    os.mkfifo(tmp_path / "out")
    reader = os.open(tmp_path / "out", os.O_RDONLY | os.O_NONBLOCK)
    daemon = start(stream.bundle, "--log", tmp_path / "out")
    done = 0
    while stream.read_bytes < stream.total_bytes:
        waiting.wait_readable(reader)
        chunk = os.read(reader, 1 << 20)
        assert chunk, "a client sees no end before the container's"
        stream.came(chunk)
        if done < ADOPTIONS and stream.read_bytes > done * stream.total_bytes // (ADOPTIONS + 1):
            done += 1
            daemon.kill()
            if chosen.random() < 0.5:  # the workers are busy alone
                waiting.wait_readable(reader)
                stream.came(os.read(reader, 1 << 16))
            daemon.adopt()
    assert done == ADOPTIONS
    stream.check()
    assert daemon.wait_end() == "37"
    waiting.wait_hangup(reader)  # the kernel closes what was in the deposit a little later
    assert os.read(reader, 1) == b""
    os.close(reader)
    assert daemon.workers() == []
    assert sum("adopting" in message for message in daemon.log()) == ADOPTIONS


ENDS = {
    "0": "exit 0",
    "37": "exit 37",
    "137": "kill -KILL $$",
    "139": "kill -SEGV $$",
}


@pytest.mark.parametrize("status", ENDS)
@pytest.mark.parametrize("when", ["after the adoption", "while nobody watches"])
def test_the_status_is_the_true_one(
    tmp_path: Path, rootfs: Path, start: Callable[..., Daemon], status: str, when: str
) -> None:
    os.mkfifo(tmp_path / "go")
    script = f"echo ready; read word < /tmp/go; {ENDS[status]}"
    mounts = [
        {
            "destination": "/tmp/go",
            "type": "bind",
            "source": str(tmp_path / "go"),
            "options": ["bind"],
        }
    ]
    # In a namespace of its own it would be PID 1, which no signal from inside can kill.
    document = bundles.config(rootfs, bundles.shell(script), host_pid=True, mounts=mounts)
    (tmp_path / "exits").mkdir()
    daemon = start(
        bundles.make_bundle(tmp_path / "b", document),
        *("--log", f"file:{tmp_path}/log", "--exit-dir", tmp_path / "exits"),
    )
    daemon.kill()
    if when == "after the adoption":
        daemon.adopt()
    go = os.open(tmp_path / "go", os.O_RDWR)
    os.write(go, b"word\n")
    reap(daemon.payload_pid)
    os.close(go)
    if when == "while nobody watches":
        daemon.adopt()
    assert daemon.wait_end() == status
    assert (tmp_path / "log").read_text() == "ready\n"
    record = json.loads((tmp_path / "exits" / f"{daemon.id}.json").read_text())
    assert record["status"] == int(status)
    assert record["signal"] == {"137": "SIGKILL", "139": "SIGSEGV"}.get(status)
    assert record["streams"]["stdout"]["bytes"] == len("ready\n")
    assert daemon.workers() == []


def test_out_of_memory_after_an_adoption_is_said(
    tmp_path: Path, rootfs: Path, start: Callable[..., Daemon]
) -> None:
    os.mkfifo(tmp_path / "go")
    mount = {
        "destination": "/tmp/go",
        "type": "bind",
        "source": str(tmp_path / "go"),
        "options": ["bind"],
    }
    grows = 's=0123456789abcdef; while :; do s="$s$s"; done'
    limit = {"resources": {"memory": {"limit": 32 << 20, "swap": 32 << 20}}}
    document = bundles.config(
        rootfs,
        bundles.shell(f"read word < /tmp/go; {grows}"),
        mounts=[mount],
        linux=limit,
    )
    (tmp_path / "exits").mkdir()
    daemon = start(
        bundles.make_bundle(tmp_path / "b", document),
        *("--log", f"file:{tmp_path}/log", "--exit-dir", tmp_path / "exits"),
    )
    daemon.kill()
    daemon.adopt()
    go = os.open(tmp_path / "go", os.O_RDWR)
    os.write(go, b"word\n")
    assert daemon.wait_end() == "137"
    os.close(go)
    record = json.loads((tmp_path / "exits" / f"{daemon.id}.json").read_text())
    assert (record["signal"], record["oomKills"]) == ("SIGKILL", 1)


def test_a_status_that_the_kernel_does_not_tell_is_unknown(
    tmp_path: Path, make_bundle: Callable[..., Path], start: Callable[..., Daemon]
) -> None:
    """As before Linux 6.15: the ioctl is refused, and whoever was the parent has reaped it."""
    (tmp_path / "exits").mkdir()
    daemon = start(
        make_bundle("echo ready; sleep 1000"),
        *("--log", f"file:{tmp_path}/log", "--exit-dir", tmp_path / "exits"),
    )
    daemon.kill()
    os.kill(daemon.payload_pid, signal.SIGKILL)
    reap(daemon.payload_pid)
    done = subprocess.run(
        [FORKSHIM, "adopt", "--root", daemon.root, daemon.id],
        capture_output=True,
        text=True,
        preexec_fn=_deny_pidfd_info,
        timeout=waiting.LIMIT_S,
    )
    assert done.returncode == 69
    assert "ended: unknown (this kernel tells it to nobody but the parent)" in done.stderr
    record = json.loads((tmp_path / "exits" / f"{daemon.id}.json").read_text())
    assert (record["status"], record["exitCode"], record["signal"]) == (None, None, None)
    assert record["error"].startswith("its end is unknown")
    assert not daemon.home.exists()


@pytest.mark.parametrize(("status", "exit_code"), [(7, 7), (137, None)])
def test_a_status_that_was_written_down_stays_the_status(
    tmp_path: Path,
    make_bundle: Callable[..., Path],
    start: Callable[..., Daemon],
    status: int,
    exit_code: int | None,
) -> None:
    """The supervisor is killed in the drain, and nobody else may ask the kernel."""
    (tmp_path / "exits").mkdir()
    os.mkfifo(tmp_path / "out")
    reader = os.open(tmp_path / "out", os.O_RDONLY | os.O_NONBLOCK)
    daemon = start(
        make_bundle(f"dd if=/dev/zero bs=1k count=1500 2> /dev/null; exit {status}"),
        *("--log", tmp_path / "out", "--exit-dir", tmp_path / "exits"),
    )
    written = daemon.home / "init" / "exitStatus"
    waiting.wait_path(written, lambda path: path.exists())
    daemon.kill()
    adopter = subprocess.Popen(
        [FORKSHIM, "adopt", "--root", daemon.root, daemon.id],
        stderr=subprocess.DEVNULL,
        preexec_fn=_deny_pidfd_info,
    )
    assert len(waiting.read_to_end(reader)) == 1500 << 10
    os.close(reader)
    assert adopter.wait(waiting.LIMIT_S) == status
    record = json.loads((tmp_path / "exits" / f"{daemon.id}.json").read_text())
    # Of a number over 128 nobody can say whether it was a signal's.
    assert (record["status"], record["exitCode"], record["signal"]) == (status, exit_code, None)
    assert record["error"] is None


def _deny_pidfd_info() -> None:
    """Let ioctl(2) with PIDFD_GET_INFO fail with ENOTTY, by seccomp(2)."""
    load, equal, ret = 0x20, 0x15, 0x06
    is_arm = os.uname().machine == "aarch64"
    program = [
        (load, 0, 0, 0),  # the system call's number
        (equal, 0, 3, 29 if is_arm else 16),
        (load, 0, 0, 24),  # its second argument
        (equal, 0, 1, 0xC040FF0B),
        (ret, 0, 0, 0x00050000 | 25),
        (ret, 0, 0, 0x7FFF0000),
    ]
    code = b"".join(struct.pack("HBBI", *each) for each in program)
    kept = ctypes.create_string_buffer(code)

    class Filter(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_void_p)]

    libc = ctypes.CDLL(None, use_errno=True)
    fprog = Filter(len(program), ctypes.addressof(kept))
    assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
    assert libc.prctl(22, 2, ctypes.byref(fprog), 0, 0) == 0  # PR_SET_SECCOMP, MODE_FILTER


def test_a_stop_of_an_adopted_container_is_a_stop(
    make_bundle: Callable[..., Path], start: Callable[..., Daemon], tmp_path: Path
) -> None:
    daemon = start(
        make_bundle("trap 'echo bye; exit 8' TERM; echo ready; while :; do sleep 0.1; done")
    )
    daemon.kill()
    daemon.adopt()
    os.kill(daemon.pid, signal.SIGTERM)
    assert daemon.wait_end() == "8"
    assert (tmp_path / "log").read_text() == "ready\nbye\n"


def test_an_adopted_container_can_be_reloaded_and_adopted_again(
    make_bundle: Callable[..., Path], start: Callable[..., Daemon], tmp_path: Path
) -> None:
    daemon = start(
        make_bundle("trap 'echo bye; exit 8' TERM; echo ready; while :; do sleep 0.1; done")
    )
    for round_ in range(3):
        daemon.kill()
        daemon.adopt()
        os.kill(daemon.pid, signal.SIGHUP)
        wanted = 2 * (round_ + 1)
        waiting.wait_path(
            daemon.home / "init" / "shim-log.json",
            lambda _path, wanted=wanted: (  # type: ignore[misc] # the default binds it now
                sum("goes on, process" in message for message in daemon.log()) == wanted
            ),
        )
    os.kill(daemon.pid, signal.SIGTERM)
    assert daemon.wait_end() == "8"


def test_a_console_and_stdin_are_adopted(
    tmp_path: Path, make_bundle: Callable[..., Path], start: Callable[..., Daemon]
) -> None:
    daemon = start(
        make_bundle("echo ready; while :; do sleep 0.1; done", terminal=True),
        *("--log", f"file:{tmp_path}/log"),
    )
    daemon.kill()
    daemon.adopt()
    control = os.open(daemon.home / "init" / "control", os.O_WRONLY)
    os.write(control, b"1 99 33\n")
    os.close(control)
    waiting.wait_true(lambda: waiting.window_of(daemon.payload_pid) == (99, 33))
    os.kill(daemon.payload_pid, signal.SIGKILL)
    assert daemon.wait_end() == "137"


def _stdin_workers(pid: int) -> list[int]:
    return [each for each in waiting.children_of(pid) if waiting.title_of(each).endswith("[stdin]")]


def test_a_file_that_is_stdin_goes_on_under_many_supervisors(
    tmp_path: Path, rootfs: Path, start: Callable[..., Daemon]
) -> None:
    """A worker that nobody has ended races with its successor: for bytes, or into a deadlock."""
    content = random.Random(SEED).randbytes(32 << 20)
    (tmp_path / "in").write_bytes(content)
    os.mkfifo(tmp_path / "go")
    mount = {
        "destination": "/tmp/go",
        "type": "bind",
        "source": str(tmp_path / "go"),
        "options": ["bind"],
    }
    take = "dd bs=64k count=16 iflag=fullblock 2> /dev/null"
    script = f"{{ while read word <&3; do {take}; done 3< /tmp/go; cat; }} | md5sum; exit 5"
    bundle = bundles.make_bundle(
        tmp_path / "b", bundles.config(rootfs, bundles.shell(script), mounts=[mount])
    )
    go = os.open(tmp_path / "go", os.O_RDWR)
    with (tmp_path / "in").open("rb") as file:
        daemon = start(bundle, stdin=file.fileno())
    for round_ in range(8):
        os.write(go, b"take\n")
        (old,) = _stdin_workers(daemon.pid)
        daemon.kill()
        if round_ % 2:  # the worker is busy alone
            os.write(go, b"take\n")
        daemon.adopt()
        waiting.wait_process(old)
        waiting.wait_worker(daemon.pid, "stdin")
        assert len(_stdin_workers(daemon.pid)) == 1
    os.close(go)
    assert daemon.wait_end() == "5"
    wanted = hashlib.md5(content).hexdigest()
    assert (tmp_path / "log").read_text().split() == [wanted, "-"]
    assert daemon.workers() == []


def test_a_worker_of_stdin_is_enough_and_waits_for_nobody_at_its_end(
    tmp_path: Path, make_bundle: Callable[..., Path], start: Callable[..., Daemon]
) -> None:
    rfd, wfd = os.pipe()
    daemon = start(make_bundle("cat > /dev/null; exit 6"), "--log", "null", stdin=rfd)
    os.close(rfd)
    daemon.kill()
    daemon.adopt()
    os.write(wfd, b"some")
    (worker,) = _stdin_workers(daemon.pid)
    daemon.kill()
    os.close(wfd)
    waiting.wait_process(worker)
    reap(daemon.payload_pid)
    assert daemon.workers() == []


def test_one_living_worker_is_enough_for_all_streams(
    tmp_path: Path, make_bundle: Callable[..., Path], start: Callable[..., Daemon]
) -> None:
    """What the dead one has held is in the deposit, and the living one has that open."""
    os.mkfifo(tmp_path / "out")
    reader = os.open(tmp_path / "out", os.O_RDWR | os.O_NONBLOCK)
    script = "n=0; while [ $n -lt 200 ]; do echo $n; echo $n >&2; n=$((n+1)); sleep 0.01; done"
    daemon = start(make_bundle(f"echo ready; {script}; exit 5"), "--log", tmp_path / "out")
    waiting.read_until(reader, b"ready")
    daemon.kill()
    (victim,) = (pid for pid in daemon.workers() if waiting.title_of(pid).endswith("[stderr]"))
    os.kill(victim, signal.SIGKILL)
    waiting.wait_process(victim)
    daemon.adopt()
    said = b""
    while said.count(b"199\n") < 2:
        waiting.wait_readable(reader)
        said = said[-4096:] + os.read(reader, 65536)
    os.close(reader)
    assert daemon.wait_end() == "5"


def test_without_anybody_who_holds_it_there_is_nothing_to_adopt(
    make_bundle: Callable[..., Path], start: Callable[..., Daemon]
) -> None:
    daemon = start(make_bundle("echo ready; sleep 1000"))
    daemon.kill()
    for pid in daemon.workers():
        os.kill(pid, signal.SIGKILL)
        waiting.wait_process(pid)
    done = daemon.command("adopt", "--detach")
    assert done.returncode == 1
    assert done.stderr == (
        f"forkshim: {daemon.id}: no worker of it lives any more, and systemd has kept nothing\n"
    )


def test_a_container_has_one_supervisor_at_a_time(
    make_bundle: Callable[..., Path], start: Callable[..., Daemon]
) -> None:
    daemon = start(make_bundle("echo ready; sleep 1000"))
    done = daemon.command("adopt", "--detach")
    assert done.returncode == 75
    assert f"already supervised by process {daemon.pid}" in done.stderr
    daemon.kill()
    many = [
        subprocess.Popen(
            [FORKSHIM, "adopt", "--root", daemon.root, "--detach", daemon.id],
            stderr=subprocess.PIPE,
        )
        for _ in range(5)
    ]
    statuses = []
    for each in many:
        each.communicate(timeout=waiting.LIMIT_S)
        statuses.append(each.returncode)
    assert sorted(statuses) == [0, 75, 75, 75, 75]


def test_a_run_of_its_id_says_what_can_be_done(
    make_bundle: Callable[..., Path], start: Callable[..., Daemon]
) -> None:
    bundle = make_bundle("echo ready; sleep 1000")
    daemon = start(bundle)
    daemon.kill()
    done = daemon.command("run", "--bundle", bundle, "--detach", "--log", "null")
    assert done.returncode == 75
    assert f"`forkshim adopt {daemon.id}` goes on with it" in done.stderr
    assert daemon.workers(), "they go on"
    done = daemon.command("run", "--bundle", bundle, "--detach", "--log", "null", "--adopt")
    assert (done.returncode, done.stderr) == (0, "")
    os.kill(daemon.payload_pid, signal.SIGKILL)
    assert daemon.wait_end() == "137"


def test_a_run_clears_away_a_dead_container_and_its_waiting_worker(
    make_bundle: Callable[..., Path], start: Callable[..., Daemon]
) -> None:
    daemon = start(make_bundle("echo ready; sleep 1000"))
    daemon.kill()
    os.kill(daemon.payload_pid, signal.SIGKILL)
    reap(daemon.payload_pid)
    assert len(daemon.workers()) == 1, "it keeps the truth for whoever asks"
    bundle = make_bundle("exit 3")
    done = daemon.command("run", "--bundle", bundle, "--detach", "--log", "null")
    assert (done.returncode, done.stderr) == (0, "")
    assert daemon.wait_end() == "3"
    assert daemon.workers() == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "handover: not a supervisor's"),
        ("1 2", "no worker of it lives any more"),
        ("1 2 3", "handover: not a supervisor's"),
        ("../x y", "handover: not a supervisor's"),
    ],
)
def test_a_file_that_leads_nowhere_is_told(
    tmp_path: Path,
    make_bundle: Callable[..., Path],
    start: Callable[..., Daemon],
    content: str,
    said: str,
) -> None:
    daemon = start(make_bundle("echo ready; sleep 1000"))
    daemon.kill()
    path = daemon.home / "init" / "handover"
    kept = path.read_text()
    path.write_text(content)
    done = daemon.command("adopt", "--detach")
    assert done.returncode == 1
    assert done.stderr.startswith(f"forkshim: {daemon.id}: {said}")
    assert done.stderr.count("\n") == 1
    path.write_text(kept)
    daemon.adopt()
    assert daemon.log()[-1].endswith(f"goes on, process {daemon.payload_pid}")


def test_what_never_ran_and_what_is_unknown_cannot_be_adopted(tmp_path: Path) -> None:
    done = subprocess.run(
        [FORKSHIM, "adopt", "--root", tmp_path / "root", "nobody"], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.startswith("forkshim: nobody: nothing to adopt: ")
    assert not (tmp_path / "root" / "nobody").exists()
