"""Debian's own containerd and dockerd, under systemd, with the shims that are installed.

Debian 12 has containerd 1.6.20 and dockerd 20.10, Debian 13 has 1.7.24 and 26.1. The images and
containers are on a tmpfs: the bed's root is an overlay, which can be no layer of another one.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.beds.nspawn import Bed
from tests.engines.containerd import RUNTIMES
from tests.engines.image import IMAGE, write_archive
from tests.harness import waiting

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.systemd, pytest.mark.booted, pytest.mark.slow]

STAYS = ["sh", "-c", "trap 'exit 3' TERM; echo ready; while :; do sleep 0.05; done"]
NO_NETWORK = {
    "bridge": "none",
    "iptables": False,
    "ip6tables": False,
    "ip-forward": False,
    "ip-masq": False,
    "userland-proxy": False,
    "storage-driver": "overlay2",
}
DOCKERS_RUNTIMES = {"bookworm": ["stock"], "trixie": list(RUNTIMES)}
"""dockerd 20.10 takes no runtime by its containerd name; see `test_docker` in tests/engines."""


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory, rootfs: Path) -> Path:
    path = tmp_path_factory.mktemp("job")
    write_archive(path / "image.tar", rootfs)
    return path


@pytest.fixture(scope="module")
def bed(suite: str, job: Path) -> Iterator[Bed]:
    """A booted systemd with both engines."""
    with Bed(suite=suite, bind={job: "/job"}) as booted:
        for folder in ("/var/lib/containerd", "/var/lib/docker"):
            booted.ctl("mkdir", "-p", folder, check=True)
            booted.ctl("mount", "-t", "tmpfs", "tmpfs", folder, check=True)
        booted.write("/etc/docker/daemon.json", json.dumps(NO_NETWORK))
        booted.unmask("containerd.service", "docker.service", "docker.socket")
        booted.ctl("systemctl", "start", "containerd", "docker", check=True)
        booted.ctl("ctr", "image", "import", "/job/image.tar", check=True)
        booted.ctl("docker", "load", "-i", "/job/image.tar", check=True)
        yield booted


def ctr_run(bed: Bed, runtime: str, *words: str) -> subprocess.CompletedProcess[str]:
    # Without controllers in the bed's cgroups, runc can set no share of the processor.
    return bed.ctl("ctr", "run", "--cpu-shares", "0", "--runtime", RUNTIMES[runtime], *words)


def shims(bed: Bed) -> str:
    return bed.ctl("pgrep", "--list-full", "--full", "containerd-shim-.* -namespace").stdout


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_containerd_runs_containers_and_processes_in_them(bed: Bed, runtime: str) -> None:
    done = ctr_run(bed, runtime, "--rm", IMAGE, "one", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")
    done = ctr_run(bed, runtime, "--detach", IMAGE, "two", *STAYS)
    assert done.returncode == 0, done
    done = bed.ctl("ctr", "task", "exec", "--exec-id", "e", "two", "sh", "-c", "echo in; exit 5")
    assert (done.returncode, done.stdout) == (5, "in\n")
    bed.ctl("systemctl", "restart", "containerd", check=True)
    assert "RUNNING" in bed.ctl("ctr", "task", "ls").stdout
    bed.ctl("ctr", "task", "kill", "--signal", "TERM", "two", check=True)
    waiting.wait_true(lambda: "STOPPED" in bed.ctl("ctr", "task", "ls").stdout)
    assert "exit code 3" in bed.ctl("ctr", "task", "rm", "two").stderr
    bed.ctl("ctr", "container", "rm", "two", check=True)
    waiting.wait_true(lambda: shims(bed) == "")


def test_dockerd_runs_containers_and_processes_in_them(bed: Bed, suite: str) -> None:
    for runtime in DOCKERS_RUNTIMES[suite]:
        docker_runs(bed, runtime)


def docker_runs(bed: Bed, runtime: str) -> None:
    options = ("--runtime", RUNTIMES[runtime], "--network", "none")
    script = "echo out; echo err >&2; exit 7"
    done = bed.ctl("docker", "run", "--rm", *options, IMAGE, "sh", "-c", script)
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")
    bed.ctl("docker", "run", "--detach", "--name", "two", *options, IMAGE, *STAYS, check=True)
    done = bed.ctl("docker", "exec", "two", "sh", "-c", "echo in; exit 5")
    assert (done.returncode, done.stdout) == (5, "in\n")
    bed.ctl("docker", "stop", "--time", "10", "two", check=True)
    state = json.loads(bed.ctl("docker", "inspect", "--format", "{{json .State}}", "two").stdout)
    assert (state["Status"], state["ExitCode"]) == ("exited", 3)
    assert bed.ctl("docker", "logs", "two").stdout == "ready\n"
    bed.ctl("docker", "rm", "two", check=True)
    waiting.wait_true(lambda: shims(bed) == "")
