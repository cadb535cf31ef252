"""Who is killed at the end of a container that shares its cgroup, by real runc.

`cgroupsPath: "/"` is tried in the VM alone: see tests/systemd/test_root_cgroup.py.
"""

from __future__ import annotations

import subprocess
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.harness import bundles, runtime_calls, waiting
from tests.harness.engine import FORKSHIM

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.runc


class Pair:
    """Two containers with one `linux.cgroupsPath`."""

    def __init__(self, directory: Path, rootfs: Path, *, host_pid: bool = False) -> None:
        self._directory = directory
        self._rootfs = rootfs
        self._host_pid = host_pid
        self._cgroup = "/" + bundles.fresh_id("shared")
        self._stack = ExitStack()

    def __enter__(self) -> Pair:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stack.close()

    def start(self, script: str, *options: str) -> subprocess.Popen[bytes]:
        """Run a container that says `ready`, which has come when this returns."""
        container_id = bundles.fresh_id("reach")
        document = bundles.config(
            self._rootfs,
            bundles.shell(f"echo ready; {script}"),
            host_pid=self._host_pid,
            linux={"cgroupsPath": self._cgroup},
        )
        bundle = bundles.make_bundle(self._directory / container_id, document)
        process = subprocess.Popen(
            [FORKSHIM, "run", "--root", self._directory / "root", "--bundle", bundle, *options,
             container_id],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        self._stack.callback(_end, process, container_id)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        return process


def _end(process: subprocess.Popen[bytes], container_id: str) -> None:
    if process.poll() is None:
        process.kill()
    process.communicate()
    runtime_calls.delete(container_id)


@pytest.fixture
def pair(tmp_path: Path, rootfs: Path) -> Iterator[Pair]:
    with Pair(tmp_path, rootfs) as made:
        yield made


def test_one_that_shares_its_cgroup_outlives_the_end_of_the_other(pair: Pair) -> None:
    second = pair.start("read line; exit 7", "-i")
    first = pair.start("exit 3")
    assert first.wait(waiting.LIMIT_S) == 3
    assert second.poll() is None
    assert second.communicate(b"\n", timeout=waiting.LIMIT_S) == (b"", b"")
    assert second.returncode == 7


def test_one_that_shares_its_cgroup_outlives_the_killing_of_the_other(pair: Pair) -> None:
    second = pair.start("read line; exit 7", "-i")
    first = pair.start("trap '' TERM; while :; do sleep 1000; done", "--stop-timeout", "0.1")
    first.terminate()
    assert first.wait(waiting.LIMIT_S) == 137
    assert second.communicate(b"\n", timeout=waiting.LIMIT_S)[0] == b""
    assert second.returncode == 7


def test_without_pid_namespaces_the_end_of_one_is_the_end_of_both(
    tmp_path: Path, rootfs: Path
) -> None:
    """As README says: runc's own `delete` does it, too."""
    with Pair(tmp_path, rootfs, host_pid=True) as pair:
        second = pair.start("read line; exit 7", "-i")
        first = pair.start("exit 3")
        assert first.wait(waiting.LIMIT_S) == 3
        assert second.wait(waiting.LIMIT_S) == 137
