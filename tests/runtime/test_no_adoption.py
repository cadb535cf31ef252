"""What cannot be adopted: the reasons, and what `forkshim run` does then."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from supervisor.handover import discover
from supervisor.state import fd_store
from tests.harness import bundles, runtimes, waiting
from tests.harness.daemon import Daemon, reap
from tests.harness.engine import FORKSHIM

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.runc, pytest.mark.timeout(300)]

LOST = (
    "its fd holder was killed, too, and systemd has kept nothing: the descriptors of its streams "
    "and of its exit status are lost"
)


def test_without_anybody_who_holds_it_there_is_nothing_to_adopt(
    make_bundle: Callable[..., Path], start: Callable[..., Daemon]
) -> None:
    daemon = start(make_bundle("echo ready; sleep 1000"))
    daemon.kill()
    kill_fd_holder(daemon)
    done = daemon.command("adopt", "--detach")
    assert done.returncode == 1
    assert done.stderr == f"forkshim: {daemon.id}: {LOST}\n"
    (worker,) = daemon.workers()
    assert waiting.title_of(worker) == f"forkshim: {daemon.id} [stdout]"


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
    assert f"`forkshim adopt {daemon.id}` adopts it" in done.stderr
    assert daemon.workers(), "they go on"
    daemon.succeed_in("run", "--bundle", bundle, "--detach", "--log", "null", "--adopt")
    os.kill(daemon.payload_pid, signal.SIGKILL)
    assert daemon.wait_end() == "137"


def test_a_run_clears_away_a_dead_container_and_its_waiting_worker(
    make_bundle: Callable[..., Path], start: Callable[..., Daemon]
) -> None:
    daemon = start(make_bundle("echo ready; sleep 1000"))
    daemon.kill()
    os.kill(daemon.payload_pid, signal.SIGKILL)
    reap(daemon.payload_pid)
    waiting.wait_true(lambda: len(daemon.workers()) == 1)  # the fd holder keeps the true status
    bundle = make_bundle("exit 3")
    daemon.succeed_in("run", "--bundle", bundle, "--detach", "--log", "null")
    assert daemon.wait_end() == "3"
    assert daemon.workers() == []


def run_command(tmp_path: Path, bundle: Path) -> list[str | Path]:
    return [FORKSHIM, "run", "--root", tmp_path / "root", "--bundle", bundle, "--log", "null"]


def killed_in_create(tmp_path: Path, bundle: Path, runtime: Path, is_there: Path) -> None:
    """Kill a supervisor when its runtime, which hangs in `create`, has made `is_there`."""
    command = run_command(tmp_path, bundle)
    with subprocess.Popen(
        [*command, "--runtime", runtime, is_there.parent.name], stderr=subprocess.DEVNULL
    ) as supervisor:
        waiting.wait_true(is_there.exists)
        supervisor.kill()


@pytest.mark.parametrize("how", ["a directory without a state", "created and not started"])
def test_a_run_clears_away_what_was_killed_during_create(
    tmp_path: Path, make_bundle: Callable[..., Path], how: str
) -> None:
    """A runtime makes its directory first, its state last; PR_SET_PDEATHSIG kills it between."""
    container_id = bundles.fresh_id("unborn")
    directory = Path("/run/runc") / container_id
    bundle = make_bundle("exit 3")
    if how == "created and not started":
        runtime, _fifo = runtimes.lingering(tmp_path)
        killed_in_create(tmp_path, bundle, runtime, directory / "state.json")
    else:
        begins = f"mkdir -m 711 {directory}; mkfifo {directory}/exec.fifo; exec sleep 1000"
        text = f"if [ $verb = create ]; then {begins}; fi"
        runtime = runtimes.script(tmp_path / "begins", text)
        killed_in_create(tmp_path, bundle, runtime, directory / "exec.fifo")
    command = run_command(tmp_path, bundle)
    done = subprocess.run(
        [*command, container_id], capture_output=True, text=True, timeout=waiting.LIMIT_S
    )
    assert (done.returncode, done.stderr) == (3, "")
    assert not directory.exists()


def test_a_run_leaves_everything_where_the_state_cannot_be_told(
    tmp_path: Path, make_bundle: Callable[..., Path], start: Callable[..., Daemon]
) -> None:
    bundle = make_bundle("trap 'exit 8' TERM; echo ready; while :; do sleep 0.1; done")
    daemon = start(bundle)
    waiting.wait_worker(daemon.pid, "stdout")
    daemon.kill()
    pid, workers = daemon.payload_pid, daemon.workers()
    fails = "if [ $verb = state ]; then echo no idea >&2; exit 1; fi"
    runtime = runtimes.script(tmp_path / "fails", fails)
    path = daemon.state_dir.parent / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "runtime": str(runtime)}))
    files = sorted(os.listdir(daemon.state_dir))
    done = daemon.command("run", "--bundle", bundle, "--detach", "--log", "null")
    assert done.returncode == 75
    assert done.stderr == (
        f"forkshim: {daemon.id}: its supervisor has died and its container is in an unknown state: "
        f"`{runtime} state {daemon.id}` fails: no idea (pid {pid}); `forkshim adopt {daemon.id}` "
        f"adopts it, `{runtime} delete --force {daemon.id}` ends it\n"
    )
    assert daemon.workers() == workers
    assert sorted(os.listdir(daemon.state_dir)) == files
    daemon.adopt()
    os.kill(daemon.pid, signal.SIGTERM)
    reap(pid)
    assert daemon.wait_end() == "8"
    failed = daemon.command("run", "--bundle", bundle, "--detach", "--log", "null")
    assert failed.returncode == 0, "its process has ended, whatever the runtime can tell"
    os.kill(daemon.pid, signal.SIGTERM)
    daemon.wait_end()


def kill_fd_holder(daemon: Daemon) -> None:
    for pid in daemon.workers():
        if waiting.title_of(pid).endswith("[fds]"):
            os.kill(pid, signal.SIGKILL)
            waiting.wait_process(pid)


@pytest.mark.parametrize("left", ["nothing", "a garbled file", "another version", "another's"])
def test_a_run_that_would_adopt_begins_anew_when_the_container_is_dead(
    tmp_path: Path,
    make_bundle: Callable[..., Path],
    start: Callable[..., Daemon],
    monkeypatch: pytest.MonkeyPatch,
    left: str,
) -> None:
    daemon = start(make_bundle("echo ready; sleep 1000"))
    daemon.kill()
    os.kill(daemon.payload_pid, signal.SIGKILL)
    reap(daemon.payload_pid)
    if left == "nothing":
        kill_fd_holder(daemon)
        said = LOST
    elif left == "a garbled file":
        (daemon.state_dir / "handover").write_text("garbled")
        said = "handover: not written by a supervisor"
    elif left == "another version":
        publish(daemon, version=99, monkeypatch=monkeypatch)
        said = f"handover: state version 99, this forkshim reads {fd_store.VERSION}"
    else:
        publish(daemon, origin={"path": str(tmp_path)}, request={}, container={})
        said = "handover: of another container"
    assert daemon.command("adopt").returncode == 1
    bundle = make_bundle("exit 3")
    done = daemon.command("run", "--adopt", "--bundle", bundle, "--detach", "--log", "null")
    assert (done.returncode, done.stderr) == (
        0,
        f"forkshim: {daemon.id}: {said}; the container has ended, a new one starts\n",
    )
    assert daemon.wait_end() == "3"
    waiting.wait_true(lambda: not daemon.workers())  # the old fd holder ends by itself


def publish(
    daemon: Daemon,
    version: int = fd_store.VERSION,
    monkeypatch: pytest.MonkeyPatch | None = None,
    **document: Any,
) -> None:
    """Put another document in the place of what the killed supervisor has laid down."""
    place = discover.find(str(daemon.state_dir))
    if monkeypatch is not None:
        monkeypatch.setattr(fd_store, "VERSION", version)
    place.put(document, fd_store.FdWriter())
    if monkeypatch is not None:
        monkeypatch.undo()
    place.close()


def test_a_run_that_cannot_adopt_says_that_the_container_lives(
    make_bundle: Callable[..., Path], start: Callable[..., Daemon]
) -> None:
    bundle = make_bundle("echo ready; sleep 1000")
    daemon = start(bundle)
    daemon.kill()
    kill_fd_holder(daemon)
    done = daemon.command("run", "--adopt", "--bundle", bundle, "--detach", "--log", "null")
    assert done.returncode == 75
    assert done.stderr.startswith(
        f"forkshim: {daemon.id}: its supervisor has died and its container is running "
        f"(pid {daemon.payload_pid}); it cannot be adopted from here "
        f"({LOST}), `runc "
    )
    assert done.stderr.endswith(f" delete --force {daemon.id}` ends it\n")
    assert waiting.is_alive(daemon.payload_pid)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "handover: not written by a supervisor"),
        (b"1 2", "its fd holder was killed, too"),
        (b"1 2 3", "handover: of another boot of the machine"),
        (b"1 2 3 4", "handover: of another boot of the machine"),
        (b"1 2 3 4 5", "handover: of another boot of the machine"),
        (b"1 2 3 4 five", "handover: not written by a supervisor"),
        (b"1 2 3 4 5 6", "handover: not written by a supervisor"),
        (b"../x y", "handover: not written by a supervisor"),
        (b"\xff\xfe 1", "handover: not written by a supervisor"),
        ("\N{SUPERSCRIPT TWO} 1".encode(), "handover: not written by a supervisor"),
        (bytes(1 << 20), "handover: not written by a supervisor"),
        ("fifo", "handover: not written by a supervisor"),
        ("directory", "handover: is a directory"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_file_that_leads_nowhere_is_told(
    tmp_path: Path,
    make_bundle: Callable[..., Path],
    start: Callable[..., Daemon],
    content: bytes | str,
    said: str,
) -> None:
    daemon = start(make_bundle("echo ready; sleep 1000"))
    daemon.kill()
    path = daemon.state_dir / "handover"
    kept = tmp_path / "kept"
    kept.hardlink_to(path)
    new = tmp_path / "new"
    if isinstance(content, bytes):
        new.write_bytes(content)
    elif content == "fifo":
        os.mkfifo(new)
    else:
        path.unlink()
        new.mkdir()
    new.rename(path)
    done = daemon.command("adopt", "--detach")
    assert done.returncode == 1
    assert done.stderr.startswith(f"forkshim: {daemon.id}: {said}")
    assert done.stderr.count("\n") == 1
    if content == "directory":
        path.rmdir()
    kept.rename(path)
    daemon.adopt()
    assert daemon.log()[-1].endswith(f"goes on, process {daemon.payload_pid}")


def test_what_an_earlier_boot_has_left_is_run_anew(
    make_bundle: Callable[..., Path], start: Callable[..., Daemon]
) -> None:
    """Its numbers are other sockets' by now; here they still are its own."""
    daemon = start(make_bundle("echo ready; sleep 1000"))
    daemon.kill()
    os.kill(daemon.payload_pid, signal.SIGKILL)
    reap(daemon.payload_pid)
    path = daemon.state_dir / "handover"
    *inodes, boot_id, nonce, counters = path.read_text().split()
    assert boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    path.write_text(" ".join([*inodes, boot_id[::-1], nonce, counters]))
    bundle = make_bundle("exit 3")
    done = daemon.command("run", "--adopt", "--bundle", bundle, "--detach", "--log", "null")
    assert done.returncode == 0
    assert "handover: of another boot of the machine; the container has ended" in done.stderr
    assert daemon.wait_end() == "3"


def test_a_state_directory_that_is_a_link_is_refused_in_words(
    tmp_path: Path, make_bundle: Callable[..., Path], start: Callable[..., Daemon]
) -> None:
    bundle = make_bundle("trap 'exit 0' TERM; while :; do sleep 0.1; done")
    daemon = start(bundle)
    os.kill(daemon.pid, signal.SIGTERM)
    assert daemon.wait_end() == "0"
    kept = (daemon.state_dir).rename(tmp_path / "moved")
    (daemon.state_dir).symlink_to(kept)
    done = daemon.command("run", "--bundle", bundle, "--detach", "--log", "null")
    assert (done.returncode, done.stderr) == (
        71,
        f"forkshim: {daemon.id}: {daemon.state_dir}: not a directory\n",
    )
    assert (kept / "exitStatus").exists()


def test_what_never_ran_and_what_is_unknown_cannot_be_adopted(tmp_path: Path) -> None:
    done = subprocess.run(
        [FORKSHIM, "adopt", "--root", tmp_path / "root", "nobody"], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.startswith("forkshim: nobody: nothing to adopt: ")
    assert not (tmp_path / "root" / "nobody").exists()
