"""Debian's own containerd and dockerd, under systemd, with the shim that is installed.

Debian 12 has containerd 1.6.20 and dockerd 20.10, Debian 13 has 1.7.24 and 26.1. The images and
containers are on a tmpfs: the bed's root is an overlay, which can be no layer of another one.

The README's section on engines is typed here, line by line; `test_readme` watches that.
"""

from __future__ import annotations

import json
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.beds.nspawn import Bed
from tests.engines.containerd import OURS, STOCK
from tests.engines.cri import NAMESPACE, Cri
from tests.engines.image import IMAGE, write_archive
from tests.harness import waiting
from tests.systemd import debs

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

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
BUSYBOX = "docker.io/library/busybox:latest"
PAUSE = "docker.io/library/fst-pause:latest"
NEWER = "99.0rc1"
SHIM = "containerd-shim-forkshim-v2"

RUN_BY_CTR = (
    "ctr run --rm --runtime io.containerd.runc.forkshim.v2 "
    "docker.io/library/busybox:latest web echo hello"
)
RUN_BY_DOCKER = "docker run --rm --runtime io.containerd.runc.forkshim.v2 busybox echo hello"
HUP = "pkill -HUP -f '^containerd-shim-forkshim-v2 -namespace '"
HANDLER = """\
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.forkshim]
runtime_type = "io.containerd.runc.forkshim.v2"
"""
RUNTIME_CLASS = """\
apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata:
  name: forkshim
handler: forkshim
"""
BY_NAME = '{"runtimes": {"forkshim": {"runtimeType": "io.containerd.runc.forkshim.v2"}}}'
RUN_BY_NAME = ["systemctl reload docker", "docker run --rm --runtime forkshim busybox echo hello"]
SHADOW = [
    "mkdir -p /etc/systemd/system/containerd.service.d",
    "cp /usr/share/doc/forkshim/examples/containerd.service.d/docker-20.10.conf "
    "/etc/systemd/system/containerd.service.d/",
    "systemctl daemon-reload",
    "systemctl restart containerd",
]
RUN_SHADOWED = "docker run --rm busybox echo hello"
UNSHADOW = [
    "rm /etc/systemd/system/containerd.service.d/docker-20.10.conf",
    "systemctl daemon-reload",
    "systemctl restart containerd",
]
REMOVE = "apt remove forkshim"

IN_A_BED = {
    # Without controllers in the bed's cgroups, runc can set no share of the processor.
    "ctr run ": "ctr run --cpu-shares 0 ",
    # There is no bridge.
    "docker run ": "docker run --network none ",
    "apt ": "apt --yes ",
}
"""What is typed otherwise than in the README, and why."""


def test_readme() -> None:
    """Every line of the section that is typed or written somewhere is one of those above."""
    text = (debs.ROOT / "README.md").read_text()
    section = text.partition("\n## Under containerd, Docker, Kubernetes\n")[2].partition("\n## ")[0]
    said = [line[4:] for line in section.splitlines() if line.startswith("    ")]
    typed = [RUN_BY_CTR, HUP, *HANDLER.splitlines(), "systemctl restart containerd"]
    typed += [*RUNTIME_CLASS.splitlines(), RUN_BY_DOCKER, BY_NAME, *RUN_BY_NAME]
    typed += [*SHADOW, RUN_SHADOWED, *UNSHADOW, REMOVE]
    assert said == typed


@pytest.fixture(scope="module")
def job(suite: str, tmp_path_factory: pytest.TempPathFactory, rootfs: Path) -> Path:
    path = tmp_path_factory.mktemp("job")
    write_archive(path / "image.tar", rootfs)
    write_archive(path / "busybox.tar", rootfs, BUSYBOX)
    write_archive(path / "pause.tar", rootfs, PAUSE, "sleep", "100000")
    for name, version in (("dist", None), ("newer", NEWER)):
        (path / name).mkdir()
        shutil.copy(debs.package(suite, version), path / name / f"forkshim_{name}.deb")
    return path


@pytest.fixture(scope="module")
def bed(suite: str, job: Path) -> Iterator[Bed]:
    """A booted systemd with both engines, which run already when forkshim is installed."""
    with Bed(suite=suite, bind={job: "/job"}) as booted:
        for folder in ("/var/lib/containerd", "/var/lib/docker"):
            booted.ctl("mkdir", "-p", folder, check=True)
            booted.ctl("mount", "-t", "tmpfs", "tmpfs", folder, check=True)
        booted.write("/etc/docker/daemon.json", json.dumps(NO_NETWORK))
        booted.unmask("containerd.service", "docker.service", "docker.socket")
        booted.ctl("systemctl", "start", "containerd", "docker", check=True)
        for name in ("image", "busybox"):
            booted.ctl("ctr", "image", "import", f"/job/{name}.tar", check=True)
            booted.ctl("docker", "load", "-i", f"/job/{name}.tar", check=True)
        booted.ctl("sh", "-c", "cd /job && apt --yes install ./dist/forkshim_*.deb", check=True)
        yield booted


def typed(bed: Bed, *lines: str) -> str:
    """Type lines of the README into a shell of root's; returns the last one's output."""
    said = ""
    for line in lines:
        for word, instead in IN_A_BED.items():
            line = f"{instead}{line.removeprefix(word)}" if line.startswith(word) else line
        said = bed.ctl("sh", "-c", line, check=True).stdout
    return said


def ctr_run(bed: Bed, runtime: str, *words: str) -> subprocess.CompletedProcess[str]:
    return bed.ctl("ctr", "run", "--cpu-shares", "0", "--runtime", runtime, *words)


def shims(bed: Bed) -> str:
    return bed.ctl("pgrep", "--list-full", "--full", "containerd-shim-.* -namespace").stdout


def wait_docker(bed: Bed) -> None:
    """Wait until dockerd has found a containerd that was started again."""
    waiting.wait_true(lambda: bed.ctl("docker", "ps").returncode == 0)


# -- containerd


def test_containerd_runs_containers_and_processes_in_them(bed: Bed) -> None:
    done = ctr_run(bed, OURS, "--rm", IMAGE, "one", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")
    done = ctr_run(bed, OURS, "--detach", IMAGE, "two", *STAYS)
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


def test_containerd_finds_the_shim_by_both_names(bed: Bed) -> None:
    assert typed(bed, RUN_BY_CTR) == "hello\n"
    short = RUN_BY_CTR.replace("io.containerd.runc.forkshim.v2", "io.containerd.forkshim.v2")
    assert typed(bed, short) == "hello\n"
    waiting.wait_true(lambda: shims(bed) == "")


# -- Kubernetes


@pytest.fixture
def cri(bed: Bed) -> Iterator[Cri]:
    """The CRI plugin with the README's handlers, and without what the bed's cgroups do not have."""
    path = "/etc/containerd/config.toml"
    before = bed.read(path)
    plugin = '[plugins."io.containerd.grpc.v1.cri"]\n'
    beds = "disable_cgroup = true\ndisable_apparmor = true\nrestrict_oom_score_adj = true\n"
    beds += f'sandbox_image = "{PAUSE}"\n'
    assert before.count(plugin) == 1
    bed.write(path, before.replace(plugin, plugin + beds) + HANDLER)
    typed(bed, "systemctl restart containerd")
    for name in ("busybox", "pause"):
        bed.ctl("ctr", "-n", NAMESPACE, "image", "import", f"/job/{name}.tar", check=True)
    client = Cri(bed.path("/run/containerd/containerd.sock"), "")
    yield client
    client.close()
    bed.write(path, before)
    bed.ctl("systemctl", "restart", "containerd", check=True)
    wait_docker(bed)


def test_a_pod_of_the_runtime_class_has_one_shim_of_ours(cri: Cri, bed: Bed) -> None:
    handler = RUNTIME_CLASS.rpartition("handler: ")[2].strip()
    for runtime, name in ((handler, SHIM), ("runc", "containerd-shim-runc-v2")):
        pod = cri.run_pod("pod", runtime, Path("/root/logs"))
        stays = pod.start("stays", BUSYBOX, STAYS)
        ends = pod.start("ends", BUSYBOX, ["sh", "-c", "exit 9"])
        assert pod.wait_exit(ends)["exit_code"] == 9
        assert pod.exec(stays, "echo", "here") == (0, b"here\n", b"")
        (shim,) = shims(bed).splitlines()
        assert f"{name} -namespace {NAMESPACE} " in shim
        pod.remove()
        waiting.wait_true(lambda: shims(bed) == "")


# -- Docker


@contextmanager
def docker_can_run(bed: Bed, suite: str) -> Iterator[list[str]]:
    """Yield the options of `docker run` for our shim.

    dockerd 20.10 takes no runtime by its name: a drop-in makes ours its only one.
    """
    network = ["--network", "none"]
    if suite != "bookworm":
        yield [*network, "--runtime", OURS]
    else:
        typed(bed, *SHADOW)
        wait_docker(bed)
        yield network
        typed(bed, *UNSHADOW)
        wait_docker(bed)


def test_dockerd_runs_containers_and_processes_in_them(bed: Bed, suite: str) -> None:
    with docker_can_run(bed, suite) as options:
        line = RUN_SHADOWED if suite == "bookworm" else RUN_BY_DOCKER
        assert typed(bed, line) == "hello\n"
        script = "echo out; echo err >&2; exit 7"
        done = bed.ctl("docker", "run", "--rm", *options, IMAGE, "sh", "-c", script)
        assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")
        bed.ctl("docker", "run", "--detach", "--name", "two", *options, IMAGE, *STAYS, check=True)
        assert f"{SHIM} -namespace moby" in shims(bed)
        done = bed.ctl("docker", "exec", "two", "sh", "-c", "echo in; exit 5")
        assert (done.returncode, done.stdout) == (5, "in\n")
        bed.ctl("docker", "stop", "--time", "10", "two", check=True)
        state = json.loads(
            bed.ctl("docker", "inspect", "--format", "{{json .State}}", "two").stdout
        )
        assert (state["Status"], state["ExitCode"]) == ("exited", 3)
        assert bed.ctl("docker", "logs", "two").stdout == "ready\n"
        bed.ctl("docker", "rm", "two", check=True)
        waiting.wait_true(lambda: shims(bed) == "")


def test_a_runtime_of_dockers_has_a_name_of_ones_own(bed: Bed, suite: str) -> None:
    if suite == "bookworm":
        done = bed.ctl("sh", "-c", RUN_BY_DOCKER)
        assert "Unknown runtime specified" in done.stderr
        return
    bed.write("/etc/docker/daemon.json", json.dumps({**NO_NETWORK, **json.loads(BY_NAME)}))
    assert typed(bed, *RUN_BY_NAME) == "hello\n"
    waiting.wait_true(lambda: shims(bed) == "")


# -- an upgrade, the removal


def test_an_upgrade_and_a_removal_leave_the_containers_alone(bed: Bed) -> None:
    """The last test of the module: forkshim is gone then."""
    assert ctr_run(bed, OURS, "--detach", IMAGE, "two", *STAYS).returncode == 0
    (shim,) = shims(bed).splitlines()
    pid = shim.split()[0]

    def has_old_files() -> bool:
        maps = bed.read(f"/proc/{pid}/maps").splitlines()
        return any("(deleted)" in line for line in maps if "/usr/lib/forkshim/" in line)

    bed.ctl("sh", "-c", "apt --yes install /job/newer/forkshim_*.deb", check=True)
    assert has_old_files()
    typed(bed, HUP)
    waiting.wait_true(lambda: not has_old_files())
    done = bed.ctl("ctr", "task", "exec", "--exec-id", "e", "two", "echo", "in")
    assert (done.returncode, done.stdout) == (0, "in\n")
    assert shims(bed).splitlines() == [shim]

    typed(bed, REMOVE)
    assert not bed.path(f"/usr/bin/{SHIM}").exists()
    bed.ctl("ctr", "task", "kill", "--signal", "TERM", "two", check=True)
    waiting.wait_true(lambda: "STOPPED" in bed.ctl("ctr", "task", "ls").stdout)
    assert "exit code 3" in bed.ctl("ctr", "task", "rm", "two").stderr
    bed.ctl("ctr", "container", "rm", "two", check=True)
    waiting.wait_true(lambda: shims(bed) == "")
    assert ctr_run(bed, STOCK, "--rm", IMAGE, "one", "true").returncode == 0
