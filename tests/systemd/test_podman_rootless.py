"""Podman without root: a user's namespace, manager and XDG_RUNTIME_DIR, on Debian 12 and 13."""

from __future__ import annotations

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
STAYS = ["sh", "-c", "trap 'exit 3' TERM; echo ready; while :; do sleep 0.05; done"]
SETTINGS = """\
[containers]
netns = "none"
pids_limit = 0
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[engine]
runtime = "runc"
"""


class User:
    """A user of a bed, whose manager runs."""

    def __init__(self, bed: Bed) -> None:
        self.bed = bed
        bed.ctl("useradd", "--create-home", "--shell", "/bin/sh", "tester", check=True)
        self.uid = bed.ctl("id", "-u", "tester", check=True).stdout.strip()
        bed.run("systemctl", "start", f"user@{self.uid}.service", check=True)
        self._as_user = (
            *("setpriv", f"--reuid={self.uid}", f"--regid={self.uid}", "--init-groups"),
            *("env", "-C", "/home/tester", "HOME=/home/tester", "USER=tester"),
            f"XDG_RUNTIME_DIR=/run/user/{self.uid}",
            f"DBUS_SESSION_BUS_ADDRESS=unix:path=/run/user/{self.uid}/bus",
        )

    def podman(self, *words: str) -> subprocess.CompletedProcess[str]:
        properties = ["Delegate=yes", "KillMode=process"]
        return self.bed.run(*self.words("podman", *words), properties=properties)

    def words(self, *words: str) -> tuple[str, ...]:
        """Return the words that run a command as the user."""
        return (*self._as_user, *words)

    def out(self, *words: str) -> str:
        done = self.podman(*words)
        assert done.returncode == 0, (words, done.stderr)
        return done.stdout.strip()


@pytest.fixture(scope="module")
def user(suite: str, rootfs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[User]:
    job = tmp_path_factory.mktemp("job")
    job.chmod(0o755)
    subprocess.run(["tar", "-C", rootfs, "-cf", job / "image.tar", "."], check=True)
    with Bed(suite=suite, bind={job: "/job"}, debs=[debs.package(suite)]) as bed:
        bed.write("/etc/containers/containers.conf", SETTINGS)
        bed.run("sh", "-ec", readme.block("Under Podman and CRI-O", "podman info"), check=True)
        made = User(bed)
        # The bed's root is an overlay, which can be no layer of another one.
        bed.write("/home/tester/.config/containers/storage.conf", '[storage]\ndriver = "vfs"\n')
        bed.ctl("chown", "-R", f"{made.uid}:{made.uid}", "/home/tester", check=True)
        changes = ("--change", 'CMD ["/bin/sh"]', "--change", "ENV PATH=/bin")
        made.out("import", *changes, "/job/image.tar", IMAGE)
        yield made


@pytest.fixture(autouse=True)
def clean(user: User) -> Iterator[None]:
    yield
    user.out("rm", "--all", "--force", "--time", "0")


def test_a_container_runs_in_the_foreground(user: User) -> None:
    done = user.podman("run", "--rm", IMAGE, "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")


def test_a_container_from_its_start_to_its_removal(user: User) -> None:
    user.out("run", "-d", "--log-driver", "k8s-file", "--name", "a", IMAGE, *STAYS)
    pid = user.out("inspect", "--format", "{{.State.ConmonPid}}", "a")
    assert "forkshim: " in user.bed.read(f"/proc/{pid}/cmdline")
    assert user.bed.path(f"/proc/{pid}").stat().st_uid == int(user.uid)
    waiting.wait_true(lambda: user.out("logs", "a") == "ready")
    done = user.podman("exec", "a", "sh", "-c", "echo in; exit 5")
    assert (done.returncode, done.stdout) == (5, "in\n")
    user.out("restart", "--time", "5", "a")
    waiting.wait_true(lambda: user.out("logs", "a") == "ready\nready")
    user.out("stop", "--time", "10", "a")
    assert user.out("wait", "a") == "3"
    user.out("rm", "a")


def test_a_user_of_the_image_may_open_its_stdout(user: User) -> None:
    """The pipe belongs to the container's root, which is no root of this machine."""
    script = "echo there >/dev/stdout; echo err >/dev/stderr"
    done = user.podman("run", "--rm", "--user", "1000", IMAGE, "sh", "-c", script)
    assert (done.returncode, done.stdout, done.stderr) == (0, "there\n", "err\n")


HOLDER = """
import fcntl, os, signal
pipes = [os.pipe()[1]]
try:
    while True:
        fcntl.fcntl(pipes[-1], fcntl.F_SETPIPE_SZ, 1 << 20)
        pipes.append(os.pipe()[1])
except PermissionError:
    open("held", "x").close()
    signal.pause()
"""


def test_a_user_whose_pipes_are_used_up_loses_nothing(user: User) -> None:
    """Beyond fs.pipe-user-pages-soft, 64 MiB, a new pipe has a page or two."""
    holder = "holder.service"
    command = user.words("python3", "-c", HOLDER)
    user.bed.ctl("systemd-run", "--quiet", f"--unit={holder}", *command, check=True)
    try:
        waiting.wait_true(user.bed.path("/home/tester/held").exists)
        script = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); echo line $i; done; exit 7"
        wanted = "".join(f"line {number + 1}\n" for number in range(20000))
        done = user.podman(
            "run", "--log-driver", "k8s-file", "--name", "a", IMAGE, "sh", "-c", script
        )
        assert (done.returncode, done.stdout == wanted) == (7, True)
        assert user.out("logs", "a") == wanted.strip()
    finally:
        user.bed.ctl("systemctl", "stop", holder, check=True)
