"""Pods through containerd's CRI plugin: the stock shim and ours keep the same promises."""

from __future__ import annotations

import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.engines.containerd import OURS, RUNTIMES, STOCK, Containerd, containerd
from tests.engines.cri import NAMESPACE, RUNNING, SETTINGS, Cri, CriError, Pod
from tests.engines.image import IMAGE, write_archive
from tests.harness import waiting

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.engine, pytest.mark.process, pytest.mark.slow]

PAUSE_IMAGE = "docker.io/library/fst-pause:latest"
STAYS = ["sh", "-c", "trap 'exit 3' TERM; echo ready; while :; do sleep 0.05; done"]


@pytest.fixture(scope="module")
def daemon(rootfs: Path) -> Iterator[Containerd]:
    """A containerd with the CRI plugin, and a runtime handler for each shim."""
    with tempfile.TemporaryDirectory(prefix="cd-") as name:
        archive = Path(name) / "pause.tar"
        write_archive(archive, rootfs, PAUSE_IMAGE, "sleep", "100000")
        more = SETTINGS.format(image=PAUSE_IMAGE, stock=STOCK, ours=OURS)
        first = str(Path(sys.executable).parent)
        with containerd(
            Path(name), rootfs, namespace=NAMESPACE, more=more, has_cri=True, first_on_path=first
        ) as started:
            started.ctr("image", "import", archive)
            yield started


@pytest.fixture(scope="module")
def client(daemon: Containerd) -> Iterator[Cri]:
    made = Cri(daemon.address, f"/{daemon.cgroup}")
    yield made
    made.close()


@pytest.fixture
def cri(client: Cri, daemon: Containerd) -> Iterator[Cri]:
    """The module's client; the test fails if it leaves a pod or a part of one."""
    yield client
    try:
        daemon.wait_clean()
    except AssertionError:
        daemon.wipe()
        raise


@pytest.fixture(params=list(RUNTIMES))
def handler(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@contextmanager
def running(cri: Cri, handler: str, logs: Path) -> Iterator[Pod]:
    pod = cri.run_pod("pod", handler, logs)
    try:
        yield pod
    finally:
        pod.remove()


def test_a_pod_has_two_containers_one_shim_and_its_logs(
    cri: Cri, daemon: Containerd, handler: str, tmp_path: Path
) -> None:
    with running(cri, handler, tmp_path) as pod:
        stays = pod.start("stays", IMAGE, STAYS)
        ends = pod.start("ends", IMAGE, ["sh", "-c", "echo out; echo err >&2; exit 9"])
        (_shim,) = daemon.shims()
        status = pod.wait_exit(ends)
        assert (status["exit_code"], status["reason"]) == (9, "Error")
        assert pod.status(stays)["state"] == RUNNING
        lines = [
            line.split(" ", 3)[1:] for line in (tmp_path / "ends.log").read_text().splitlines()
        ]
        assert sorted(lines) == [["stderr", "F", "err"], ["stdout", "F", "out"]]
        cri.call("StopContainer", container_id=stays, timeout=30)
        assert pod.status(stays)["exit_code"] == 3


def test_probes_tell_their_status_and_words(cri: Cri, handler: str, tmp_path: Path) -> None:
    with running(cri, handler, tmp_path) as pod:
        stays = pod.start("stays", IMAGE, STAYS)
        for number in range(5):
            script = f"echo probe {number}; echo no >&2; exit {number}"
            wanted = (number, f"probe {number}\n".encode(), b"no\n")
            assert pod.exec(stays, "sh", "-c", script) == wanted


def test_stats_and_updates_reach_the_container(
    cri: Cri, daemon: Containerd, handler: str, tmp_path: Path
) -> None:
    with running(cri, handler, tmp_path) as pod:
        stays = pod.start("stays", IMAGE, STAYS, memory_bytes=64 << 20)
        stats = cri.call("ContainerStats", container_id=stays)["stats"]
        assert stats["cpu"]["usage_core_nano_seconds"]["value"] > 0
        assert stats["memory"]["working_set_bytes"]["value"] > 0
        cri.call(
            "UpdateContainerResources",
            container_id=stays,
            linux={"memory_limit_in_bytes": 48 << 20},
        )
        limits = [
            (path / name).read_text()
            for path in daemon.cgroups()
            for name in ("memory.limit_in_bytes", "memory.max")
            if (path / name).exists()
        ]
        assert f"{48 << 20}\n" in limits


def test_memory_that_runs_out_is_the_reason(cri: Cri, handler: str, tmp_path: Path) -> None:
    command = ["sh", "-c", "dd if=/dev/zero of=/dev/null bs=64M count=1"]
    with running(cri, handler, tmp_path) as pod:
        status = pod.wait_exit(pod.start("grows", IMAGE, command, memory_bytes=16 << 20))
        assert (status["exit_code"], status["reason"]) == (137, "OOMKilled")


def test_a_container_that_cannot_start_is_an_error(cri: Cri, handler: str, tmp_path: Path) -> None:
    with running(cri, handler, tmp_path) as pod:
        broken = pod.create("broken", IMAGE, ["/no/such"])
        with pytest.raises(CriError, match="no such file or directory"):
            cri.call("StartContainer", container_id=broken)


def test_a_pod_outlives_containerd(
    cri: Cri, daemon: Containerd, handler: str, tmp_path: Path
) -> None:
    with running(cri, handler, tmp_path) as pod:
        stays = pod.start("stays", IMAGE, STAYS)
        daemon.end()
        daemon.start()
        waiting.wait_true(lambda: _answers(cri))
        assert pod.status(stays)["state"] == RUNNING
        assert pod.exec(stays, "echo", "here") == (0, b"here\n", b"")


def _answers(cri: Cri) -> bool:
    try:
        cri.call("Version")
    except CriError:  # not yet
        return False
    return True
