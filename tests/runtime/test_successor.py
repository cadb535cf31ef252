"""The supervisor of a detached container is killed, outside systemd: its fd holder starts another.

FORKSHIM_KILLS and FORKSHIM_STREAM_MIB make the long run: 50 and 2048.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import supervisor
from tests.harness import bundles, waiting
from tests.harness.big_stream import BigStream
from tests.harness.daemon import Daemon, reap
from tests.harness.engine import FORKSHIM

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [pytest.mark.runc, pytest.mark.timeout(600)]

SEED = int(os.environ.get("FORKSHIM_SEED", "20161109"))
KILLS = int(os.environ.get("FORKSHIM_KILLS", "6"))
STREAM_MIB = int(os.environ.get("FORKSHIM_STREAM_MIB", "256"))
LOOP = "trap 'echo bye; exit 8' TERM; echo ready; while :; do sleep 0.1; done"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    """Return a function that starts a daemon; its log goes to tmp_path/log."""
    with ExitStack() as stack:

        def start(bundle: Path, *options: str | Path, successors: int = 1000) -> Daemon:
            options = options or ("--log", f"file:{tmp_path}/log")
            daemon = Daemon(tmp_path, bundle, *options, successors=successors)
            stack.callback(daemon.close)
            return daemon

        yield start


def fd_holder_of(pid: int) -> int:
    return waiting.wait_worker(pid, "fds")


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    waiting.wait_process(pid)


def wait_successor(daemon: Daemon, killed: int) -> None:
    """Wait until another supervisor serves and has an fd holder of its own."""
    waiting.wait_true(lambda: daemon.pid != killed)
    fd_holder_of(daemon.pid)


def wait_alone(daemon: Daemon, old: int) -> None:
    """Wait until the fd holder of a killed supervisor is gone."""
    waiting.wait_process(old)
    assert daemon.pid in waiting.children_of(os.getpid())


@pytest.mark.parametrize("victim", ["supervisor", "fd holder", "either"])
def test_a_stream_is_unharmed_whoever_is_killed(
    tmp_path: Path, rootfs: Path, start: Callable[..., Daemon], victim: str
) -> None:
    stream = BigStream(tmp_path, rootfs, blocks=STREAM_MIB, status=37, seed=SEED)
    os.mkfifo(tmp_path / "out")
    reader = os.open(tmp_path / "out", os.O_RDONLY | os.O_NONBLOCK)
    daemon = start(stream.bundle, "--log", tmp_path / "out")
    done, supervisors = 0, 0
    while stream.read_bytes < stream.total_bytes:
        waiting.wait_readable(reader)
        chunk = os.read(reader, 1 << 20)
        assert chunk, "a client sees no end before the container's"
        stream.came(chunk)
        if done < KILLS and stream.read_bytes > done * stream.total_bytes // (KILLS + 1):
            done += 1
            pid = daemon.pid
            old = fd_holder_of(pid)
            if victim == "supervisor" or (victim == "either" and done % 2):
                supervisors += 1
                kill(pid)
                wait_successor(daemon, pid)
                wait_alone(daemon, old)
            else:
                kill(old)
                waiting.wait_true(lambda: waiting.worker_of(pid, "fds") not in (None, old))  # noqa: B023
    assert done == KILLS
    stream.check()
    assert daemon.wait_end() == "37"
    waiting.wait_hangup(reader)
    assert os.read(reader, 1) == b""
    os.close(reader)
    assert daemon.workers() == []
    assert sum("adopting" in message for message in daemon.log()) == supervisors


def test_the_successor_is_a_daemon_like_the_one_before(
    make_bundle: Callable[..., Path], start: Callable[..., Daemon], tmp_path: Path
) -> None:
    daemon = start(make_bundle(LOOP))
    first, old = daemon.pid, fd_holder_of(daemon.pid)
    kill(first)
    wait_successor(daemon, first)
    wait_alone(daemon, old)
    proc = Path("/proc") / str(daemon.pid)
    session, terminal = (proc / "stat").read_text().rpartition(")")[2].split()[3:5]
    assert int(session) not in (daemon.pid, os.getsid(0)), "a leader could gain a terminal again"
    assert terminal == "0"
    assert os.readlink(proc / "cwd") == str(daemon.state_dir)
    assert waiting.title_of(daemon.pid) == f"forkshim: {daemon.id}"
    assert "already supervised by process" in daemon.command("adopt", "--detach").stderr
    daemon.reload()
    os.kill(daemon.pid, signal.SIGTERM)
    assert daemon.wait_end() == "8"
    assert (tmp_path / "log").read_text() == "ready\nbye\n"
    record = daemon.record()
    assert (record["exitCode"], record["stopRequested"], record["error"]) == (8, True, None)
    assert daemon.workers() == []


@pytest.mark.parametrize("when", ["an end in order", "a reload"])
def test_no_successor_follows(
    make_bundle: Callable[..., Path], start: Callable[..., Daemon], when: str
) -> None:
    daemon = start(make_bundle("trap '' TERM; " + LOOP.replace("trap", "trap -- 2>&- ; :")))
    pid, fd_holder = daemon.pid, fd_holder_of(daemon.pid)
    if when == "a reload":
        daemon.reload()
        waiting.wait_process(fd_holder)
        fd_holder_of(daemon.pid)
        assert daemon.pid == pid
        os.kill(daemon.payload_pid, signal.SIGKILL)
        assert daemon.wait_end() == "137"
    else:
        os.kill(daemon.payload_pid, signal.SIGKILL)
        assert daemon.wait_end() == "137"
        waiting.wait_process(fd_holder)
    assert not any("successor" in message for message in daemon.log())
    assert daemon.workers() == []


@pytest.mark.parametrize("victim", ["supervisor", "fd holder, then supervisor"])
def test_a_successor_goes_on_with_a_stop(
    make_bundle: Callable[..., Path], start: Callable[..., Daemon], tmp_path: Path, victim: str
) -> None:
    """The container ignores TERM: only the end of the grace period ends it."""
    log = tmp_path / "log"
    script = "trap 'echo term' TERM; echo ready; while :; do sleep 0.1; done"
    daemon = start(make_bundle(script), "--log", f"file:{log}", "--stop-timeout", "5")
    pid, fd_holder = daemon.pid, fd_holder_of(daemon.pid)
    os.kill(pid, signal.SIGTERM)
    waiting.wait_path(log, lambda path: "term" in path.read_text())
    if victim != "supervisor":
        kill(fd_holder)
        waiting.wait_true(lambda: waiting.worker_of(pid, "fds") not in (None, fd_holder))
    kill(pid)
    wait_successor(daemon, pid)
    reap(daemon.payload_pid)
    assert daemon.wait_end() == "137"
    record = daemon.record()
    assert (record["signal"], record["stopRequested"]) == ("SIGKILL", True)
    said = daemon.log()
    assert f"supervisor {pid} was killed during a stop: stopping" in said
    assert "did not stop within 5 s of SIGTERM, killed" in said
    assert log.read_text() == "ready\nterm\nterm\n"
    assert daemon.workers() == []


def test_one_who_adopts_by_hand_is_the_only_one(
    make_bundle: Callable[..., Path], start: Callable[..., Daemon], tmp_path: Path
) -> None:
    """The fd holder is stopped while the supervisor dies, and starts its successor too late."""
    daemon = start(make_bundle(LOOP))
    pid, old = daemon.pid, fd_holder_of(daemon.pid)
    os.kill(old, signal.SIGSTOP)
    kill(pid)
    daemon.succeed_in("adopt", "--detach")
    fd_holder_of(daemon.pid)
    waiting.wait_process(old)
    assert sum("adopting" in message for message in daemon.log()) == 1
    os.kill(daemon.pid, signal.SIGTERM)
    assert daemon.wait_end() == "8"
    assert daemon.workers() == []


def test_supervisor_and_fd_holder_killed_at_once_are_said(
    make_bundle: Callable[..., Path], start: Callable[..., Daemon]
) -> None:
    daemon = start(make_bundle("echo ready; sleep 1000"))
    pid, fd_holder = daemon.pid, fd_holder_of(daemon.pid)
    waiting.wait_worker(pid, "stdout")
    os.kill(pid, signal.SIGSTOP)
    kill(fd_holder)
    kill(pid)
    done = daemon.command("adopt", "--detach")
    assert done.returncode == 1
    assert "its fd holder was killed, too" in done.stderr
    assert done.stderr.count("\n") == 1
    assert waiting.is_alive(daemon.payload_pid)
    assert [waiting.title_of(each) for each in daemon.workers()] == [
        f"forkshim: {daemon.id} [stdout]"
    ]


def test_a_stream_without_a_worker_ends_with_supervisor_and_fd_holder(
    tmp_path: Path, rootfs: Path, start: Callable[..., Daemon]
) -> None:
    """README: the container's first write to it gets SIGPIPE, which this container ignores."""
    os.mkfifo(tmp_path / "go")
    (tmp_path / "told").touch()
    mounts = [bundles.bind(tmp_path / name, f"/tmp/{name}") for name in ("go", "told")]
    script = "trap '' PIPE; read go < /tmp/go; echo late; echo $? > /tmp/told; sleep 1000"
    document = bundles.config(rootfs, bundles.shell(script), mounts=mounts)
    daemon = start(bundles.make_bundle(tmp_path / "bundle", document))
    pid, fd_holder = daemon.pid, fd_holder_of(daemon.pid)
    os.kill(pid, signal.SIGSTOP)
    kill(fd_holder)
    kill(pid)
    assert daemon.workers() == []
    refused = daemon.command("run", "--bundle", tmp_path / "bundle", "--detach", "--log", "null")
    assert refused.returncode == 75
    assert f"`runc delete --force {daemon.id}` ends it" in refused.stderr
    (tmp_path / "go").write_text("go\n")
    waiting.wait_path(tmp_path / "told", lambda path: path.read_text() == "1\n")
    assert (tmp_path / "log").read_text() == ""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A copy of the program that a test may take away."""
    for name in ("supervisor", "workers"):
        shutil.copytree(Path(supervisor.__file__).parent.parent / name, tmp_path / "copy" / name)
    path = tmp_path / "copy" / "forkshim"
    path.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(tmp_path / 'copy')!r})\n"
        "from supervisor.cli.main import main\nmain()\n"
    )
    path.chmod(0o755)
    return path


def test_a_program_that_cannot_start_is_said_and_the_container_goes_on(
    make_bundle: Callable[..., Path],
    start: Callable[..., Daemon],
    program: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("tests.harness.daemon.FORKSHIM", program)
        daemon = start(make_bundle(LOOP), successors=2)
    pid, fd_holder = daemon.pid, fd_holder_of(daemon.pid)
    program.unlink()
    kill(pid)
    advice = f"`forkshim adopt {daemon.id}` adopts it"
    waiting.wait_true(lambda: any(advice in message for message in daemon.log("warn")))
    killed, failed, failed_again, limit = daemon.log("warn")
    assert killed == f"supervisor {pid} was killed; starting a successor"
    assert failed == failed_again
    assert failed.startswith("successor: exit status 2: ")
    assert failed.endswith("No such file or directory; 2 are tried in 60 s")
    assert str(program) in failed
    assert limit.startswith("2 successors in 60 s have not lasted; no more are started. ")
    assert waiting.is_alive(fd_holder)
    daemon.adopt()
    waiting.wait_process(fd_holder)
    os.kill(daemon.pid, signal.SIGTERM)
    assert daemon.wait_end() == "8"
    assert (tmp_path / "log").read_text() == "ready\nbye\n"


def test_the_limit_counts_successors_that_were_killed_as_well(
    make_bundle: Callable[..., Path], start: Callable[..., Daemon]
) -> None:
    daemon = start(make_bundle(LOOP), successors=2)
    for _each in range(2):
        pid = daemon.pid
        kill(pid)
        wait_successor(daemon, pid)
    kill(daemon.pid)
    waiting.wait_true(lambda: any("no more are started" in each for each in daemon.log("warn")))
    daemon.adopt()
    os.kill(daemon.pid, signal.SIGTERM)
    assert daemon.wait_end() == "8"


@pytest.mark.parametrize("text", ["many", "-1", "", "\N{SUPERSCRIPT TWO}"])
def test_a_limit_that_is_no_number_is_refused(
    make_bundle: Callable[..., Path], tmp_path: Path, text: str
) -> None:
    bundle, root = make_bundle(LOOP), tmp_path / "root"
    words = ("--root", root, "--bundle", bundle, "--detach", "--log", "null")
    done = subprocess.run(
        [FORKSHIM, "run", *words, bundles.fresh_id("limit")],
        capture_output=True,
        text=True,
        env={**os.environ, "FORKSHIM_SUCCESSORS": text},
    )
    assert done.returncode == 2
    assert "FORKSHIM_SUCCESSORS: not a number of starts: " in done.stderr
    assert done.stderr.count("\n") == 1
