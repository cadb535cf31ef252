"""The supervisor is killed; another one goes on with its container, and knows the true end.

FORKSHIM_ADOPTIONS and FORKSHIM_STREAM_MIB make the long run: 50 and 2048.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import bundles, filters, waiting
from tests.harness.big_stream import BigStream
from tests.harness.daemon import Daemon, reap
from tests.harness.engine import FORKSHIM
from workers.common import cgroup_names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [pytest.mark.runc, pytest.mark.timeout(300)]

SEED = int(os.environ.get("FORKSHIM_SEED", "20161109"))
ADOPTIONS = int(os.environ.get("FORKSHIM_ADOPTIONS", "8"))
STREAM_MIB = int(os.environ.get("FORKSHIM_STREAM_MIB", "256"))


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
    mounts = [bundles.bind(tmp_path / "go", "/tmp/go")]
    # In a namespace of its own it would be PID 1, which no signal from inside can kill.
    document = bundles.config(rootfs, bundles.shell(script), host_pid=True, mounts=mounts)
    daemon = start(bundles.make_bundle(tmp_path / "b", document))
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
    record = daemon.record()
    assert record["status"] == int(status)
    assert record["signal"] == {"137": "SIGKILL", "139": "SIGSEGV"}.get(status)
    assert record["streams"]["stdout"]["bytes"] == len("ready\n")
    assert daemon.workers() == []


def test_a_full_disk_of_state_directories_does_not_decide_about_adoption(
    tmp_path: Path, make_bundle: Callable[..., Path], start: Callable[..., Daemon]
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", root], check=True)
    with ExitStack() as stack:
        stack.callback(lambda: subprocess.run(["umount", "--lazy", root], check=True))
        daemon = start(make_bundle("trap 'exit 7' TERM; echo ready; while :; do sleep 0.1; done"))
        daemon.kill()
        daemon.succeed_in("adopt", "--detach")  # the log has a page now, with room in it
        daemon.kill()
        with pytest.raises(OSError, match="No space left"), open(root / "fill", "wb") as file:
            file.write(bytes(2 << 20))
        for _each in range(2):
            daemon.succeed_in("adopt", "--detach")
            assert waiting.title_of(daemon.pid) == f"forkshim: {daemon.id}"
            daemon.kill()  # it has an fd holder
        daemon.succeed_in("adopt", "--detach")
        failed = "write handover: no space left on device; trying again every 5 s"
        assert daemon.log("warn").count(failed) == 3, "each of the three said it once"
        (root / "fill").unlink()
        done = "write handover: done, after "
        waiting.wait_true(lambda: any(said.startswith(done) for said in daemon.log()))
        supervisor = daemon.pid
        os.kill(supervisor, signal.SIGTERM)
        reap(daemon.payload_pid)
        waiting.wait_process(supervisor)
        assert daemon.wait_end() == "7"


@pytest.mark.parametrize("log", ["null", "file"])
def test_a_container_without_outputs_can_be_followed_as_well(
    tmp_path: Path, rootfs: Path, start: Callable[..., Daemon], log: str
) -> None:
    """It has none to begin with, or has closed them: then there is no worker."""
    os.mkfifo(tmp_path / "go")
    script = "echo said; exec > /dev/null 2>&1 < /dev/null; read word < /tmp/go; exit 37"
    mounts = [bundles.bind(tmp_path / "go", "/tmp/go")]
    document = bundles.config(rootfs, bundles.shell(script), mounts=mounts)
    sink = "null" if log == "null" else f"file:{tmp_path}/log"
    daemon = start(bundles.make_bundle(tmp_path / "b", document), "--log", sink)
    fd_holder = f"forkshim: {daemon.id} [fds]"

    def is_alone() -> bool:
        titles = {*map(waiting.title_of, waiting.children_of(daemon.pid))}
        return {title for title in titles if title.startswith("forkshim")} == {fd_holder}

    for _each in range(2):
        waiting.wait_true(is_alone)
        daemon.kill()
        daemon.adopt()
    os.kill(daemon.pid, signal.SIGHUP)
    waiting.wait_true(lambda: any("reloading" in message for message in daemon.log()))
    (tmp_path / "go").write_text("word\n")
    reap(daemon.payload_pid)
    assert daemon.wait_end() == "37"
    assert daemon.workers() == []
    if log != "null":
        assert (tmp_path / "log").read_text() == "said\n"


def test_a_log_that_was_to_be_opened_anew_is_by_who_follows(
    tmp_path: Path, rootfs: Path, start: Callable[..., Daemon]
) -> None:
    """The supervisor is killed while a second order, right after the first, waits."""
    os.mkfifo(tmp_path / "go")
    mounts = [bundles.bind(tmp_path / "go", "/tmp/go")]
    script = "while read line; do echo $line; done < /tmp/go; exit 5"
    document = bundles.config(rootfs, bundles.shell(script), mounts=mounts)
    daemon = start(bundles.make_bundle(tmp_path / "b", document))
    go = os.open(tmp_path / "go", os.O_WRONLY)
    os.write(go, b"one\n")
    log = tmp_path / "log"
    waiting.wait_path(log, lambda log: log.read_text() == "one\n")
    control = os.open(daemon.state_dir / "control", os.O_RDWR)
    os.write(control, b"reopen\n")
    waiting.wait_true(lambda: not waiting.is_readable(control))
    log.rename(tmp_path / "log.1")
    os.write(control, b"reopen\n")
    waiting.wait_true(lambda: not waiting.is_readable(control))
    waiting.wait_true(lambda: waiting.state_of(daemon.pid) == "S")  # the order is in the store
    os.close(control)
    daemon.kill()
    daemon.adopt()
    os.write(go, b"two\n")
    os.close(go)
    waiting.wait_path(log, lambda log: log.exists() and log.read_text() == "two\n")
    reap(daemon.payload_pid)
    assert daemon.wait_end() == "5"
    assert (tmp_path / "log.1").read_text() == "one\n"


@pytest.fixture
def strange_cgroup() -> Iterator[None]:
    """Have this process, and so what it starts, in a cgroup whose name is no text."""
    hierarchy = b"/sys/fs/cgroup/memory"
    own = cgroup_names.membership("self")[b"memory"]
    directory = hierarchy + b"/fst-%d\v\f\r\xe2\x80\xa8\xff" % os.getpid()
    os.mkdir(directory)
    Path(os.fsdecode(directory + b"/cgroup.procs")).write_text("0")
    yield
    Path(os.fsdecode(hierarchy + own + b"/cgroup.procs")).write_text("0")
    for name in os.listdir(directory):  # runc has noted its cgroup as text, and does not find it
        if name.startswith(b"sub-"):
            os.rmdir(directory + b"/" + name)
    os.rmdir(directory)


@pytest.mark.parametrize("place", ["", "sub"], ids=["its own cgroup", "below a strange one"])
def test_out_of_memory_after_a_reload_and_an_adoption_is_said(
    tmp_path: Path,
    rootfs: Path,
    start: Callable[..., Daemon],
    request: pytest.FixtureRequest,
    place: str,
) -> None:
    if place:
        request.getfixturevalue("strange_cgroup")
    os.mkfifo(tmp_path / "go")
    mount = bundles.bind(tmp_path / "go", "/tmp/go")
    grows = 's=0123456789abcdef; while :; do s="$s$s"; done'
    limit: dict[str, Any] = {"resources": {"memory": {"limit": 32 << 20, "swap": 32 << 20}}}
    if place:
        limit["cgroupsPath"] = f"{place}-{os.getpid()}"  # relative: below ours
    document = bundles.config(
        rootfs,
        bundles.shell(f"read word < /tmp/go; {grows}"),
        mounts=[mount],
        linux=limit,
    )
    daemon = start(bundles.make_bundle(tmp_path / "b", document))
    daemon.reload()
    daemon.kill()
    daemon.adopt()
    go = os.open(tmp_path / "go", os.O_RDWR)
    os.write(go, b"word\n")
    assert daemon.wait_end() == "137"
    os.close(go)
    record = daemon.record()
    assert (record["signal"], record["oomKills"]) == ("SIGKILL", 1)


def test_a_status_that_the_kernel_does_not_tell_is_unknown(
    tmp_path: Path, make_bundle: Callable[..., Path], start: Callable[..., Daemon]
) -> None:
    """As before Linux 6.15: the ioctl is refused, and whoever was the parent has reaped it."""
    daemon = start(make_bundle("echo ready; sleep 1000"))
    daemon.kill()
    os.kill(daemon.payload_pid, signal.SIGKILL)
    reap(daemon.payload_pid)
    done = subprocess.run(
        [FORKSHIM, "adopt", "--root", daemon.root, daemon.id],
        capture_output=True,
        text=True,
        preexec_fn=filters.deny_pidfd_info,
        timeout=waiting.LIMIT_S,
    )
    assert done.returncode == 69
    assert "ended: unknown (this kernel tells it to the parent alone)" in done.stderr
    record = daemon.record()
    assert (record["status"], record["exitCode"], record["signal"]) == (None, None, None)
    assert record["error"].startswith("its end is unknown")
    assert not daemon.state_dir.parent.exists()


@pytest.mark.parametrize(("status", "exit_code"), [(7, 7), (137, None)])
def test_a_status_that_was_written_down_stays_the_status(
    tmp_path: Path,
    rootfs: Path,
    start: Callable[..., Daemon],
    status: int,
    exit_code: int | None,
) -> None:
    """The supervisor is killed in the drain, and nobody else may ask the kernel."""
    (tmp_path / "exits").mkdir()
    os.mkfifo(tmp_path / "out")
    os.mkfifo(tmp_path / "go")
    reader = os.open(tmp_path / "out", os.O_RDONLY | os.O_NONBLOCK)
    script = f"read go < /tmp/go; dd if=/dev/zero bs=1k count=1500 2> /dev/null; exit {status}"
    mount = bundles.bind(tmp_path / "go", "/tmp/go")
    document = bundles.config(rootfs, bundles.shell(script), mounts=[mount])
    daemon = start(bundles.make_bundle(tmp_path / "bundle", document), *("--log", tmp_path / "out"))
    (tmp_path / "go").write_text("\n")  # all is laid down: what ends sooner leaves nothing to adopt
    written = daemon.state_dir / "exitStatus"
    waiting.wait_path(written, lambda path: path.exists())
    daemon.kill()
    adopter = subprocess.Popen(
        [FORKSHIM, "adopt", "--root", daemon.root, daemon.id],
        stderr=subprocess.DEVNULL,
        preexec_fn=filters.deny_pidfd_info,
    )
    assert len(waiting.read_to_end(reader)) == 1500 << 10
    os.close(reader)
    assert adopter.wait(waiting.LIMIT_S) == status
    record = daemon.record()
    # Of a number over 128 nobody can say whether it was a signal's.
    assert (record["status"], record["exitCode"], record["signal"]) == (status, exit_code, None)
    assert record["error"] is None


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


def test_a_stop_under_way_is_carried_on_by_the_adopter(
    make_bundle: Callable[..., Path], start: Callable[..., Daemon], tmp_path: Path
) -> None:
    script = "n=0; trap 'n=$((n+1)); echo term; [ $n = 1 ] || exit 9' TERM; echo ready; "
    daemon = start(
        make_bundle(f"{script} while :; do sleep 0.1; done"),
        *("--log", f"file:{tmp_path / 'log'}", "--stop-timeout", "3600"),
    )
    first = daemon.pid
    os.kill(first, signal.SIGTERM)
    waiting.wait_path(tmp_path / "log", lambda path: "term" in path.read_text())
    daemon.kill()
    daemon.adopt()
    assert daemon.wait_end() == "9"
    assert (tmp_path / "log").read_text() == "ready\nterm\nterm\n"
    assert f"supervisor {first} was killed during a stop: stopping" in daemon.log()


def test_an_adopted_container_can_be_reloaded_and_adopted_again(
    make_bundle: Callable[..., Path], start: Callable[..., Daemon], tmp_path: Path
) -> None:
    daemon = start(
        make_bundle("trap 'echo bye; exit 8' TERM; echo ready; while :; do sleep 0.1; done")
    )
    for _ in range(3):
        daemon.kill()
        daemon.adopt()
        daemon.reload()
    os.kill(daemon.pid, signal.SIGTERM)
    assert daemon.wait_end() == "8"


def test_a_console_and_stdin_are_adopted(
    tmp_path: Path, make_bundle: Callable[..., Path], start: Callable[..., Daemon]
) -> None:
    daemon = start(make_bundle("echo ready; while :; do sleep 0.1; done", terminal=True))
    daemon.kill()
    daemon.adopt()
    control = os.open(daemon.state_dir / "control", os.O_WRONLY)
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


def test_a_stdin_that_has_ended_while_there_was_no_supervisor_ends_with_the_next(
    tmp_path: Path, make_bundle: Callable[..., Path], start: Callable[..., Daemon]
) -> None:
    rfd, wfd = os.pipe()
    daemon = start(make_bundle("cat > /dev/null; exit 6"), "--log", "null", stdin=rfd)
    os.close(rfd)
    daemon.kill()
    daemon.adopt()
    os.write(wfd, b"some")
    worker = waiting.wait_worker(daemon.pid, "stdin")
    daemon.kill()
    os.close(wfd)
    waiting.wait_process(worker)
    (fd_holder,) = daemon.workers()
    assert waiting.title_of(fd_holder) == f"forkshim: {daemon.id} [fds]"
    daemon.adopt()
    assert daemon.wait_end() == "6"


def test_the_fd_holder_alone_is_enough_for_all_streams(
    tmp_path: Path, make_bundle: Callable[..., Path], start: Callable[..., Daemon]
) -> None:
    os.mkfifo(tmp_path / "out")
    reader = os.open(tmp_path / "out", os.O_RDWR | os.O_NONBLOCK)
    script = "n=0; while [ $n -lt 200 ]; do echo $n; echo $n >&2; n=$((n+1)); sleep 0.01; done"
    daemon = start(make_bundle(f"echo ready; {script}; exit 5"), "--log", tmp_path / "out")
    waiting.read_until(reader, b"ready")
    waiting.wait_worker(daemon.pid, "stderr")
    daemon.kill()
    for pid in daemon.workers():
        if not waiting.title_of(pid).endswith("[fds]"):
            os.kill(pid, signal.SIGKILL)
            waiting.wait_process(pid)
    daemon.adopt()
    said = b""
    while said.count(b"199\n") < 2:
        waiting.wait_readable(reader)
        said = said[-4096:] + os.read(reader, 65536)
    os.close(reader)
    assert daemon.wait_end() == "5"
