"""Podman of Debian 12 (4.3) and 13 (5.4) with the package's conmon, by README's commands.

Containers are on a tmpfs: the bed's root is an overlay, which can be no layer of another one.
"""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.beds.nspawn import Bed
from tests.harness import readme, waiting
from tests.systemd import debs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.systemd, pytest.mark.booted, pytest.mark.slow]

IMAGE = "localhost/bb:latest"
OURS, DEBIANS = "/usr/libexec/forkshim/conmon", "/usr/bin/conmon"
STAYS = ["sh", "-c", "trap 'exit 3' TERM; echo ready; while :; do sleep 0.05; done"]

# A bed has no network and no controllers.
SETTINGS = """\
[containers]
netns = "none"
pids_limit = 0
default_ulimits = ["nofile=16384:16384", "nproc=8192:8192"]
[engine]
runtime = "runc"
"""


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory, rootfs: Path) -> Path:
    path = tmp_path_factory.mktemp("job")
    subprocess.run(["tar", "-C", rootfs, "-cf", path / "image.tar", "."], check=True)
    return path


@pytest.fixture(scope="module")
def bed(suite: str, job: Path) -> Iterator[Bed]:
    """A booted systemd with Podman and an image, and forkshim's package as README installs it."""
    with Bed(suite=suite, bind={job: "/job"}, debs=[debs.package(suite)]) as booted:
        booted.ctl("mkdir", "-p", "/var/lib/containers", check=True)
        booted.ctl("mount", "-t", "tmpfs", "tmpfs", "/var/lib/containers", check=True)
        booted.write("/etc/containers/containers.conf", SETTINGS)
        changes = ("--change", 'CMD ["/bin/sh"]', "--change", "ENV PATH=/bin")
        booted.ctl("podman", "import", *changes, "/job/image.tar", IMAGE, check=True)
        booted.run("sh", "-ec", readme.block("Under Podman and CRI-O", "podman info"), check=True)
        yield booted


def podman(bed: Bed, *words: str) -> subprocess.CompletedProcess[str]:
    """Run one command, as a service of its own: what it starts stays in no session."""
    return bed.run("podman", *words, properties=["Delegate=yes", "KillMode=process"])


def out(bed: Bed, *words: str) -> str:
    done = podman(bed, *words)
    assert done.returncode == 0, (words, done.stderr)
    return done.stdout.strip()


def monitor_of(bed: Bed, name: str) -> str:
    """Return the title of a container's conmon."""
    pid = out(bed, "inspect", "--format", "{{.State.ConmonPid}}", name)
    return bed.read(f"/proc/{pid}/cmdline")


@pytest.fixture(autouse=True)
def clean(bed: Bed) -> Iterator[None]:
    yield
    out(bed, "rm", "--all", "--force", "--time", "0")


def test_podman_takes_the_one_of_the_settings(bed: Bed) -> None:
    assert out(bed, "info", "--format", "{{.Host.Conmon.Path}}") == OURS
    assert "conmon version 2.2.1" in out(bed, "info", "--format", "{{.Host.Conmon.Version}}")


def test_a_container_runs_in_the_foreground(bed: Bed) -> None:
    done = podman(bed, "run", "--rm", IMAGE, "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")


@pytest.mark.parametrize("driver", ["k8s-file", "journald"])
def test_a_container_from_its_start_to_its_removal(bed: Bed, driver: str) -> None:
    out(bed, "run", "-d", "--log-driver", driver, "--name", "a", IMAGE, *STAYS)
    assert "forkshim: " in monitor_of(bed, "a")
    waiting.wait_true(lambda: out(bed, "logs", "a") == "ready")
    done = podman(bed, "exec", "a", "sh", "-c", "echo in; exit 5")
    assert (done.returncode, done.stdout) == (5, "in\n")
    out(bed, "restart", "--time", "5", "a")
    waiting.wait_true(lambda: out(bed, "logs", "a") == "ready\nready")
    out(bed, "stop", "--time", "10", "a")
    assert out(bed, "wait", "a") == "3"
    state = json.loads(out(bed, "inspect", "--format", "{{json .State}}", "a"))
    assert (state["Status"], state["ExitCode"]) == ("exited", 3)
    out(bed, "rm", "a")
    assert out(bed, "ps", "--all", "--quiet") == ""


def test_a_client_attaches(bed: Bed) -> None:
    out(bed, "run", "-d", "-i", "--name", "a", IMAGE, "sh", "-c", "read x; echo got $x; exit 4")
    done = bed.run("podman", "attach", "a", stdin="word\n")
    assert done.stdout.splitlines()[0] == "got word"
    assert out(bed, "wait", "a") == "4"


def test_a_health_check_runs_by_systemds_timer(bed: Bed) -> None:
    words = ("--health-cmd", "test -e /healthy", "--health-interval", "1s")
    out(bed, "run", "-d", *words, "--name", "a", IMAGE, *STAYS)
    out(bed, "exec", "a", "touch", "/healthy")
    field = "{{.State.Health.Status}}"
    waiting.wait_true(lambda: out(bed, "inspect", "--format", field, "a") == "healthy")
    assert podman(bed, "healthcheck", "run", "a").returncode == 0


def test_a_restart_policy_starts_the_next_one_under_ours(bed: Bed) -> None:
    script = "echo run; test -e /twice && exec sleep 1000; touch /twice; exit 3"
    out(bed, "run", "-d", "--restart", "on-failure", "--name", "a", IMAGE, "sh", "-c", script)
    waiting.wait_true(lambda: out(bed, "logs", "a") == "run\nrun")
    assert "forkshim: " in monitor_of(bed, "a")


@pytest.mark.parametrize("driver", ["k8s-file", "journald"])
def test_a_killed_supervisor_is_replaced_by_the_installed_one(bed: Bed, driver: str) -> None:
    script = "trap 'exit 3' TERM; echo ready; until test -e /go; do sleep 0.05; done; echo gone on"
    stays = f"{script}; while :; do sleep 0.05; done"
    out(bed, "run", "-d", "--log-driver", driver, "--name", "a", IMAGE, "sh", "-c", stays)
    guardian = out(bed, "inspect", "--format", "{{.State.ConmonPid}}", "a")
    killed = bed.ctl("pgrep", "--parent", guardian, check=True).stdout.strip()
    bed.ctl("kill", "-KILL", killed, check=True)
    children = ("pgrep", "--parent", guardian, "--full", "^forkshim: [^ ]*$")
    waiting.wait_true(lambda: bed.ctl(*children).stdout.strip() not in ("", killed))
    out(bed, "exec", "a", "touch", "/go")
    waiting.wait_true(lambda: out(bed, "logs", "a") == "ready\ngone on")
    assert podman(bed, "logs", "a").stderr == ""  # a record of the supervisor's would be one of `a`
    out(bed, "stop", "--time", "10", "a")
    assert out(bed, "wait", "a") == "3"


def test_what_the_monitor_warns_of_is_in_the_system_log(bed: Bed) -> None:
    """CRI-O asks for it. The engine that calls here is a line of shell: no pipes, no container."""
    words = ("-c", "syslog-test", "-u", "x", "-r", "/usr/sbin/runc", "--syslog")
    done = bed.ctl(OURS, *words, "-l", "k8s-file:/no/such/log")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    entries = bed.journal(None, "--identifier=conmon")  # Podman 5 asks for it, too
    (entry,) = (each for each in entries if each["MESSAGE"].startswith("conmon syslog-test "))
    assert "<error>: [conmon:e]: Failed to open log" in entry["MESSAGE"]
    assert (entry["PRIORITY"], entry["SYSLOG_FACILITY"]) == ("3", "3")


def test_a_removed_package_gives_podman_its_own_back_and_harms_no_container(bed: Bed) -> None:
    out(bed, "run", "-d", "--name", "a", IMAGE, *STAYS)
    waiting.wait_true(lambda: out(bed, "logs", "a") == "ready")
    bed.run("dpkg", "--remove", "forkshim", check=True)
    assert out(bed, "info", "--format", "{{.Host.Conmon.Path}}") == DEBIANS
    assert out(bed, "run", "--rm", IMAGE, "echo", "stock") == "stock"
    assert "forkshim: " in monitor_of(bed, "a")
    out(bed, "stop", "--time", "10", "a")
    assert out(bed, "wait", "a") == "3"
    out(bed, "start", "a")
    assert monitor_of(bed, "a").startswith(DEBIANS)
