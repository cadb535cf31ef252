"""`start` of the v2 shim: one daemon for a group, with nothing of the process that forked it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from supervisor.wire import frames, messages
from supervisor.wire.protobuf import decode
from tests.harness import waiting

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.process

PROGRAM = Path(__file__).parents[1] / "programs" / "v2_start.py"
ROOT = Path(__file__).parents[2]


class Group:
    """Bundles of one group, and the daemon that serves them."""

    def __init__(self, directory: Path, sockets: Path) -> None:
        self.directory = directory
        self.sockets = sockets
        self.bundles = 0

    def bundle(self, annotations: dict[str, str]) -> Path:
        """Make a bundle with a log fifo."""
        self.bundles += 1
        made = self.directory / f"bundle{self.bundles}"
        made.mkdir()
        (made / "config.json").write_text(json.dumps({"annotations": annotations}))
        os.mkfifo(made / "log", 0o700)
        return made

    def start(
        self, bundle: Path, container_id: str = "c", **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run `start` as containerd does: stdout and stderr are one pipe, read to its end."""
        flags = ["-namespace", "ns", "-address", "/run/c.sock", "-id", container_id, "start"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("env", {})}
        return subprocess.run(
            [sys.executable, PROGRAM, self.sockets, *flags],
            cwd=bundle,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=waiting.LIMIT_S,
            env=environment,
            check=False,
            **options,
        )

    def ask(self, address: str, method: str) -> int:
        """Call a method of the daemon; returns its pid."""
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(waiting.LIMIT_S)
            client.connect(address.removeprefix("unix://"))
            client.sendall(frames.encode_request(1, messages.TASK_SERVICES[0], method, b""))
            parser = frames.FrameParser()
            found: list[frames.Frame] = []
            while not found:
                found = parser.feed(client.recv(4096))
        _code, _words, payload = frames.decode_response(found[0].data)
        pid: int = decode(messages.ConnectResponse, payload)["shim_pid"]
        return pid

    def end(self) -> None:
        """End the daemons that are there."""
        for path in self.sockets.iterdir():
            pid = self.ask(str(path), "Connect")
            self.ask(str(path), "Shutdown")
            waiting.wait_process(pid)
        assert not [*self.sockets.iterdir()]


@pytest.fixture
def group(tmp_path: Path) -> Iterator[Group]:
    with tempfile.TemporaryDirectory() as short:  # a socket's name has 106 bytes at most
        made = Group(tmp_path, Path(short))
        yield made
        made.end()


def test_the_address_is_printed_and_written_when_a_client_can_connect(group: Group) -> None:
    bundle = group.bundle({})
    done = group.start(bundle)
    assert done.returncode == 0, done.stdout
    assert done.stdout.startswith(f"unix://{group.sockets}/")
    assert (bundle / "address").read_text() == done.stdout
    assert group.ask(done.stdout, "Connect") > 1


def test_the_daemon_has_a_session_of_its_own_and_no_descriptor_of_start(group: Group) -> None:
    bundle = group.bundle({})
    log_fd = os.open(bundle / "log", os.O_RDWR)  # as containerd does
    leaked_fd = os.open("/dev/zero", os.O_RDONLY)
    pid = group.ask(group.start(bundle, pass_fds=[leaked_fd]).stdout, "Connect")
    fds = {int(fd): os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
    assert waiting.read_until(log_fd, b"serving\n")
    for fd in (log_fd, leaked_fd):
        os.close(fd)
    assert (fds.pop(0), fds.pop(1), fds.pop(2)) == ("/dev/null", "/dev/null", str(bundle / "log"))
    assert {link.partition(":")[0] for link in fds.values()} <= {"socket", "anon_inode"}
    assert os.getsid(pid) == os.getpgid(pid) == pid
    own = int(Path("/proc/self/oom_score_adj").read_text())
    assert int(Path(f"/proc/{pid}/oom_score_adj").read_text()) == min(own + 1, 1000)


def test_a_full_log_does_not_block_the_daemon(group: Group) -> None:
    bundle = group.bundle({})
    log_fd = os.open(bundle / "log", os.O_RDWR | os.O_NONBLOCK)
    try:
        while True:
            os.write(log_fd, bytes(4096))
    except BlockingIOError:
        pass
    assert group.ask(group.start(bundle).stdout, "Connect") > 1
    os.close(log_fd)


def test_containers_of_a_group_share_a_daemon(group: Group) -> None:
    annotations = {"io.kubernetes.cri.sandbox-id": "pod"}
    first = group.start(group.bundle(annotations), "pod")
    bundle = group.bundle(annotations)
    second = group.start(bundle, "c2")
    assert second.stdout == first.stdout
    assert (bundle / "address").read_text() == first.stdout
    other = group.start(group.bundle({}), "c3")
    assert other.stdout != first.stdout
    assert len({group.ask(each.stdout, "Connect") for each in (first, second, other)}) == 2


def test_a_killed_daemon_is_replaced_by_the_next_start(group: Group) -> None:
    bundle = group.bundle({})
    address = group.start(bundle).stdout
    killed = group.ask(address, "Connect")
    os.kill(killed, signal.SIGKILL)
    waiting.wait_process(killed)
    assert group.start(bundle).stdout == address
    assert group.ask(address, "Connect") != killed


def test_a_bundle_without_a_config_is_said_in_one_line(group: Group, tmp_path: Path) -> None:
    done = group.start(tmp_path)
    words = f"{tmp_path}/config.json: no such file or directory\n"
    assert (done.returncode, done.stdout) == (6, words)


def test_a_cgroup_that_is_not_there_leaves_no_daemon(group: Group) -> None:
    done = group.start(group.bundle({}), env={"SHIM_CGROUP": "/fst-none"})
    assert (done.returncode, done.stdout) == (
        1,
        "shim cgroup /fst-none: no such cgroup below /sys/fs/cgroup\n",
    )
    assert not [*group.sockets.iterdir()]


def test_the_daemon_joins_the_cgroup_and_shares_its_core(group: Group) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can make a cgroup")
    name = f"fst-start-{os.getpid()}"
    top = Path("/sys/fs/cgroup")
    tops = [top] if (top / "cgroup.controllers").exists() else [top / "pids", top / "freezer"]
    for each in tops:
        (each / name).mkdir()
    try:
        done = group.start(group.bundle({}), env={"SHIM_CGROUP": f"/{name}", "SCHED_CORE": "1"})
        pid = group.ask(done.stdout, "Connect")
        for each in tops:
            assert (each / name / "cgroup.procs").read_text() == f"{pid}\n"
        group.end()
    finally:
        for each in tops:
            (each / name).rmdir()
