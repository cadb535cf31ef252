"""The beds themselves: whether they give what the tests that stand on them rely on."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.beds.apt import BedError, ensure
from tests.beds.criu import ensure_criu
from tests.beds.nspawn import Bed
from tests.beds.vm import VM
from tests.systemd import debs

if TYPE_CHECKING:
    from collections.abc import Iterator

# The first use installs packages, makes an image and boots it.
pytestmark = pytest.mark.timeout(900)

BUNDLE = "/run/bundle"
MAKE_BUNDLE = """
set -e
mkdir -p "$0/rootfs/bin"
cp /bin/busybox "$0/rootfs/bin/sh"
cd "$0"
mkdir rootfs/proc rootfs/sys rootfs/dev
crun spec
"""


@pytest.fixture(scope="module")
def vm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VM]:
    src = tmp_path_factory.mktemp("src")
    (src / "greeting").write_text("hello\n")
    (src / ".git").mkdir()
    with VM(src=src) as running:
        yield running


def make_bundle(vm: VM, *args: str) -> None:
    made = vm.raw("sh", "-c", MAKE_BUNDLE, BUNDLE)
    assert made.returncode == 0, made.stderr
    config = json.loads(vm.read(f"{BUNDLE}/config.json"))
    config["process"]["args"] = list(args)
    config["process"]["terminal"] = False
    vm.write(f"{BUNDLE}/config.json", json.dumps(config))


@pytest.mark.booted
def test_a_bed_is_heard_for_as_long_as_it_lives() -> None:
    """Of each reload systemd 257 tells twice; PID 1 would sleep when nobody reads what it tells."""
    most = int(Path("/proc/sys/net/unix/max_dgram_qlen").read_text())
    script = "for n in $(seq $0); do systemctl daemon-reload; done; systemctl is-system-running"
    with Bed(suite="trixie") as bed:
        done = bed.ctl("sh", "-c", script, str(min(most, 300) // 2 + 5), timeout_s=600)
        assert (done.stdout, done.stderr) == ("running\n", "")


@pytest.mark.booted
@pytest.mark.parametrize("suite", debs.SUITES)
def test_the_address_of_a_beds_words_is_its_own(
    suite: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody else gets it, not even by chance, and with it what PID 1 would wait for."""
    addresses = []

    class Socket(socket.socket):
        def bind(self, address: Any) -> None:
            super().bind(address)
            addresses.append(self.getsockname())

    monkeypatch.setattr(socket, "socket", Socket)
    with Bed(suite=suite), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        (address,) = addresses
        with pytest.raises(OSError, match="in use"):
            other.bind(address)


@pytest.mark.vm
def test_systemd_runs(vm: VM) -> None:
    done = vm.run("systemctl", "is-system-running")
    assert (done.stdout.strip(), done.returncode) == ("running", 0)


@pytest.mark.vm
def test_cgroup_v2_has_its_controllers(vm: VM) -> None:
    controllers = vm.read("/sys/fs/cgroup/cgroup.controllers").split()
    assert {"memory", "pids", "cpu"} <= set(controllers)


@pytest.mark.vm
def test_a_limit_is_enforced(vm: VM) -> None:
    hungry = "x = bytearray(100 << 20)"
    limited = ("MemoryMax=40M", "MemorySwapMax=0")
    killed = vm.run("/usr/bin/python3", "-c", hungry, properties=limited)
    free = vm.run("/usr/bin/python3", "-c", hungry)
    assert (killed.returncode, free.returncode) == (1, 0)


@pytest.mark.vm
def test_crun_gives_back_the_exit_code(vm: VM) -> None:
    make_bundle(vm, "sh", "-c", "echo inside; exit 7")
    done = vm.run("crun", "run", "--bundle", BUNDLE, "exits")
    assert (done.stdout, done.returncode) == ("inside\n", 7), done.stderr


@pytest.mark.vm
def test_run_uses_a_service_of_its_own(vm: VM) -> None:
    done = vm.run("cat", "/proc/self/cgroup")
    assert done.stdout.startswith("0::/system.slice/bed-run-")


@pytest.mark.vm
def test_arguments_and_stdin_arrive_unchanged(vm: VM) -> None:
    text = "$HOME ${x} %n 'quoted' \\ \n"
    script = 'printf %s "$0"; cat'
    done = vm.run("sh", "-c", script, text, stdin=text)
    assert (done.stdout, done.stderr, done.returncode) == (text * 2, "", 0)


@pytest.mark.vm
def test_large_output_is_whole(vm: VM) -> None:
    done = vm.raw("/usr/bin/python3", "-c", "print('x' * 3_000_000)")
    assert len(done.stdout) == 3_000_001


@pytest.mark.vm
def test_src_is_there_and_read_only(vm: VM) -> None:
    assert vm.read("/job/src/greeting") == "hello\n"
    assert vm.raw("ls", "-A", "/job/src").stdout == "greeting\n"
    with pytest.raises(BedError, match="Read-only"):
        vm.write("/job/src/new", "")


@pytest.mark.vm
def test_written_files_can_be_read(vm: VM) -> None:
    vm.write("/etc/new/folder/file", "text\n")
    assert vm.read("/etc/new/folder/file") == "text\n"


@pytest.mark.vm
def test_a_command_that_hangs_is_killed(vm: VM) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        vm.run("sleep", "infinity", timeout_s=10)  # so that it runs by then, on a busy machine
    # It has been sent its signal: whether it dies of it, is what is waited for.
    assert vm.raw("sh", "-c", "while pgrep -x sleep; do :; done").returncode == 0


@pytest.mark.vm
def test_interpreter_and_runtimes(vm: VM) -> None:
    assert vm.run("/usr/bin/python3", "--version").stdout.startswith("Python 3.11")
    for runtime in ("runc", "crun"):
        assert vm.run(runtime, "--version").returncode == 0


@pytest.mark.vm
def test_two_vms_do_not_meet(vm: VM) -> None:
    with VM() as other:
        other.write("/run/here", "other")
        assert vm.raw("cat", "/run/here").returncode == 1
        assert other.raw("ls", "/job/src").returncode != 0


@pytest.mark.criu
def test_criu_check() -> None:
    criu = ensure_criu()
    own_mounts = ["unshare", "-m", "--propagation", "private"]
    check = subprocess.run(
        [*own_mounts, criu, "check"], capture_output=True, text=True, check=False
    )
    assert check.returncode == 0, check.stdout + check.stderr


@pytest.mark.criu
def test_ensure_criu_unpacks_once() -> None:
    first = ensure_criu()
    made = first.stat()
    assert ensure_criu() == first
    assert first.stat().st_ino == made.st_ino


def test_packages_that_do_not_exist_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FORKSHIM_BED_CACHE", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(BedError, match="no-such-package"):
        ensure(["dpkg", "no-such-package"])
