"""A supervisor that follows hears a container that speaks sd_notify, from any cgroup of it."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.harness import bundles, fd_stores, waiting
from tests.harness.engine import FORKSHIM
from tests.runtime.test_notify_proxy import PRELUDE, PROXIED
from tests.runtime.test_service import Manager

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.runc

SPEAKS = """
say("READY=1")
for count in range(1, 100):
    wait()
    say(f"ERRNO={count}")
"""
MOVES = """
name = b"a\\r\\v\\f\\xe2\\x80\\xa8\\xff\\x1e: 0::b"
moved = 0
for mounted in os.listdir(b"/sys/fs/cgroup"):
    directory = b"/sys/fs/cgroup/" + mounted + b"/" + name
    if not os.path.islink(b"/sys/fs/cgroup/" + mounted) and mounted != b"cpuset":
        os.mkdir(directory)
        with open(directory + b"/cgroup.procs", "w") as file:
            file.write("0")
        moved += 1
assert moved > 3, moved
with open("/proc/self/cgroup", "rb") as file:
    assert file.read().count(name) >= moved
"""
"""A container with a writable cgroup mount makes such a name. A new cpuset takes no process."""
CGROUPS = {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["rw"]}


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    made = Manager(tmp_path)
    yield made
    made.close()


@pytest.fixture(params=["in its cgroup", "in one with a strange name"])
def bundle(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    is_strange = request.param != "in its cgroup"
    rootfs, mounts = bundles.make_host_rootfs(tmp_path / "rootfs")
    (rootfs / "sys").mkdir()
    if is_strange:
        mounts = [*mounts, {"destination": "/sys", "type": "sysfs", "source": "sysfs"}, CGROUPS]
    args = ["/usr/bin/python3", "-c", PRELUDE + MOVES * is_strange + SPEAKS]
    return bundles.make_bundle(tmp_path / "bundle", bundles.config(rootfs, args, mounts=mounts))


def _notify_worker(pid: int) -> int | None:
    for child in waiting.children_of(pid):
        if waiting.title_of(child).endswith("[notify]") and waiting.is_alive(child):
            return child
    return None


def _payload_pid(manager: Manager) -> int:
    return int((manager.root / manager.id / "init/pid").read_text())


def _says(manager: Manager, count: int) -> None:
    """Have the container say its next word, and hear that."""
    os.kill(_payload_pid(manager), signal.SIGUSR1)
    assert "READY=1" not in manager.hear(f"ERRNO={count}")


def _adopt(manager: Manager) -> subprocess.Popen[bytes]:
    manager.process = subprocess.Popen(
        [FORKSHIM, "adopt", "--root", manager.root, manager.id],
        env=manager.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    return manager.process


@pytest.mark.parametrize("killed", ["the supervisor", "the worker first", "the worker then"])
def test_it_is_heard_by_the_one_who_adopts_it(
    manager: Manager, bundle: Path, killed: str, tmp_path: Path
) -> None:
    process = manager.start(bundle, PROXIED, "--log", f"file:{tmp_path}/log")
    manager.hear("READY=1")
    fd_stores.wait_published(manager.root / manager.id / "init")
    _says(manager, 1)
    if killed == "the worker first":
        worker = _notify_worker(process.pid)
        assert worker is not None
        os.kill(worker, signal.SIGKILL)
    process.kill()
    process.communicate()
    os.kill(_payload_pid(manager), signal.SIGUSR1)  # while there is nobody
    process = _adopt(manager)
    manager.hear("ERRNO=2")
    if killed == "the worker then":
        waiting.wait_true(lambda: _notify_worker(process.pid) is not None)
        worker = _notify_worker(process.pid)
        assert worker is not None
        os.kill(worker, signal.SIGKILL)
    _says(manager, 3)
    waiting.wait_true(lambda: _notify_worker(process.pid) is not None)
    pid = _payload_pid(manager)
    process.terminate()
    waiting.wait_process(pid)
    os.waitid(os.P_PID, pid, os.WEXITED)
    status, _out, err = manager.ended()
    assert (status, "Traceback" in err) == (0, False), err
    assert not (manager.root / manager.id).exists()


def test_it_is_heard_through_a_reload(manager: Manager, bundle: Path, tmp_path: Path) -> None:
    process = manager.start(bundle, PROXIED, "--log", f"file:{tmp_path}/log")
    manager.hear("READY=1")
    for count in range(1, 3):
        _says(manager, count)
        process.send_signal(signal.SIGHUP)
        manager.hear("RELOADING=1")
        manager.hear("READY=1")
    _says(manager, 3)
    process.terminate()
    status, _out, err = manager.ended()
    assert status == 0, err
    assert not [line for line in err.splitlines() if "refused" in line or "Traceback" in line], err
