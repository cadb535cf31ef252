"""Socket activation: what a service manager passes for the container arrives there. Real runc."""

from __future__ import annotations

import fcntl
import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.harness import bundles, runtime_calls, waiting
from tests.harness.engine import FORKSHIM

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Activated = Callable[..., subprocess.CompletedProcess[bytes]]

pytestmark = pytest.mark.runc

SAYS = "echo $LISTEN_FDS $LISTEN_PID ${LISTEN_FDNAMES:-unnamed}; "
READS = SAYS + "read a <&3; read b <&4; echo $a $b; ls -x /proc/self/fd; exit 7"


@pytest.fixture
def activated() -> Iterator[Callable[..., subprocess.CompletedProcess[bytes]]]:
    """Return a function that runs a command as a service manager would, with two pipes."""
    ends: list[int] = []

    def run(
        *argv: str | Path, names: str = "web:api", pid: str = "$$", count: str = "2"
    ) -> subprocess.CompletedProcess[bytes]:
        rfds = []
        for line in (b"first\n", b"second\n"):
            rfd, wfd = os.pipe()
            ends.append(rfd)
            rfds.append(rfd)
            os.write(wfd, line)
            os.close(wfd)
        first, second = (fcntl.fcntl(rfd, fcntl.F_DUPFD_CLOEXEC, 40) for rfd in rfds)
        ends.extend((first, second))
        named = f"LISTEN_FDNAMES={names} " if names else ""
        script = (
            f"exec 3<&{first} 4<&{second} {first}<&- {second}<&-; "
            f'{named}LISTEN_PID={pid} LISTEN_FDS={count} exec "$@"'
        )
        return subprocess.run(
            ["bash", "-c", script, "bash", *argv],
            pass_fds=(first, second), stdin=subprocess.DEVNULL, capture_output=True,
            timeout=waiting.LIMIT_S,
        )  # fmt: skip

    yield run
    for fd in ends:
        os.close(fd)


def command(tmp_path: Path, bundle: Path, *options: str | Path) -> list[str | Path]:
    return [FORKSHIM, "run", "--root", tmp_path / "root", "--bundle", bundle, *options,
            bundles.fresh_id("listening")]  # fmt: skip


def test_they_arrive_in_their_order_with_their_names_and_nothing_else_does(
    activated: Activated, tmp_path: Path, make_bundle: Callable[..., Path]
) -> None:
    done = activated(*command(tmp_path, make_bundle(READS)))
    assert (done.returncode, done.stderr) == (7, b"")
    assert done.stdout.split() == b"2 1 web:api first second 0 1 2 3 4 5".split()


def test_runc_itself_passes_the_same_but_for_the_names(
    activated: Activated, make_bundle: Callable[..., Path]
) -> None:
    done = activated("runc", "run", "--bundle", make_bundle(READS), bundles.fresh_id("listening"))
    assert done.stdout.split() == b"2 1 unnamed first second 0 1 2 3 4 5".split()


def test_without_names_there_are_none(
    activated: Activated, tmp_path: Path, make_bundle: Callable[..., Path]
) -> None:
    done = activated(*command(tmp_path, make_bundle(READS)), names="")
    assert done.stdout.split()[:5] == b"2 1 unnamed first second".split()


def test_a_daemon_passes_them_too(
    activated: Activated, tmp_path: Path, make_bundle: Callable[..., Path]
) -> None:
    log = tmp_path / "log"
    done = activated(*command(tmp_path, make_bundle(READS), "--detach", "--log", f"file:{log}"))
    assert (done.returncode, done.stderr) == (0, b"")
    waiting.wait_true(lambda: log.read_bytes().endswith(b"5\n"))
    assert log.read_bytes().split() == b"2 1 web:api first second 0 1 2 3 4 5".split()
    waiting.wait_true(lambda: not [*tmp_path.glob("root/*/supervisor.pid")])  # it ends by itself


def test_a_terminal_changes_nothing_about_them(
    activated: Activated, tmp_path: Path, make_bundle: Callable[..., Path]
) -> None:
    done = activated(*command(tmp_path, make_bundle(READS), "-t"))
    assert done.stdout.split()[:5] == b"2 1 web:api first second".split()


@pytest.mark.parametrize("pid", ["1", "x", ""])
def test_what_is_meant_for_another_process_is_not_passed(
    activated: Activated, tmp_path: Path, make_bundle: Callable[..., Path], pid: str
) -> None:
    script = "echo ${LISTEN_FDS:-none} ${LISTEN_PID:-none}; ls -x /proc/self/fd"
    done = activated(*command(tmp_path, make_bundle(script)), pid=pid)
    assert done.stdout.split() == b"none none 0 1 2 3".split()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"count": "x"}, b"LISTEN_FDS: not a number of descriptors: 'x'"),
        ({"count": "99999"}, b"LISTEN_FDS: not a number of descriptors: '99999'"),
        ({"count": "3"}, b"LISTEN_FDNAMES: 2 names for 3 descriptors"),
        ({"count": "9", "names": ""}, b"LISTEN_FDS: descriptor "),
    ],
)
def test_what_no_service_manager_says_is_one_line_and_status_2(
    activated: Activated,
    tmp_path: Path,
    make_bundle: Callable[..., Path],
    words: dict[str, str],
    said: bytes,
) -> None:
    done = activated(*command(tmp_path, make_bundle("exit 7")), **words)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count(b"\n") == 1


def test_the_supervisor_keeps_none_of_them(
    activated: Activated, tmp_path: Path, make_bundle: Callable[..., Path]
) -> None:
    script = "exec 3<&- 4<&-; echo ready; while :; do sleep 1; done"
    log = tmp_path / "log"
    words = command(tmp_path, make_bundle(script), "--detach", "--log", f"file:{log}")
    assert activated(*words).returncode == 0
    waiting.wait_true(lambda: log.read_bytes() == b"ready\n")
    (pid_file,) = tmp_path.glob("root/*/supervisor.pid")
    pid = int(pid_file.read_text())
    children = waiting.children_of(pid)
    held = {os.readlink(f"/proc/{each}/fd/{fd}")
            for each in (pid, *children) for fd in os.listdir(f"/proc/{each}/fd")}  # fmt: skip
    theirs = {os.readlink(f"/proc/self/fd/{fd}") for fd in (40, 41)}
    try:
        assert not held & theirs
    finally:
        os.kill(pid, 15)
        waiting.wait_process(pid)
        runtime_calls.delete(str(words[-1]))
