"""An init that ends before it executes the container's program: a failure, never a quick container.

Real runc with seccomp profiles that its own init does not survive, and with programs that execve(2)
refuses after the runtime's `start` has returned; a script that runs its container without an exec.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import bundles, runtimes, waiting
from tests.harness.engine import FORKSHIM

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Refuse = Callable[[dict[str, Any], Path], None]

pytestmark = pytest.mark.runc

# With noNewPrivileges runc loads the profile as its last act, without it much sooner.
DEADLY = [("execve", True), ("execve", False), ("openat", True), ("openat", False),
          ("write", True), ("write", False)]  # fmt: skip


class Case:
    """A bundle, and ways to run it."""

    def __init__(self, directory: Path, document: dict[str, Any]) -> None:
        self.root = directory / "root"
        self.exits = directory / "exits"
        self.id = bundles.fresh_id("never")
        self.bundle = bundles.make_bundle(directory / "bundle", document)

    def run(self, *options: str | Path, **environment: str) -> tuple[int, str]:
        """Return the exit status and stderr."""
        done = subprocess.run(
            [FORKSHIM, "run", "--root", self.root, "--bundle", self.bundle, *options, self.id],
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            timeout=waiting.LIMIT_S, text=True,
        )  # fmt: skip
        return done.returncode, done.stderr


def deadly(directory: Path, rootfs: Path, call: str, *, no_new_privileges: bool) -> Case:
    rule = {"names": [call], "action": "SCMP_ACT_KILL_PROCESS"}
    profile = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}
    document = bundles.config(rootfs, bundles.shell("exit 7"), linux={"seccomp": profile})
    document["process"]["noNewPrivileges"] = no_new_privileges
    return Case(directory, document)


@pytest.mark.parametrize(("call", "no_new_privileges"), DEADLY)
@pytest.mark.parametrize("options", [(), ("--detach", "--log", "null")])
def test_a_profile_that_kills_the_runtimes_init_is_a_failure_with_a_line(
    tmp_path: Path, rootfs: Path, call: str, options: tuple[str, ...], *, no_new_privileges: bool
) -> None:
    case = deadly(tmp_path, rootfs, call, no_new_privileges=no_new_privileges)
    status, err = case.run(*options)
    assert status == 1
    (line,) = err.splitlines()
    assert line.startswith(f"forkshim: {case.id}: runc start: ")
    assert "killed by SIGSYS" in line


@pytest.mark.parametrize(("call", "no_new_privileges"), DEADLY[:3])
def test_systemd_is_never_told_that_it_was_ready(
    tmp_path: Path, rootfs: Path, call: str, *, no_new_privileges: bool
) -> None:
    case = deadly(tmp_path, rootfs, call, no_new_privileges=no_new_privileges)
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as manager:
        manager.bind(address)
        status, _err = case.run("--exit-dir", case.exits, NOTIFY_SOCKET=address)
        heard = _words(manager)
    assert status == 1
    assert "STOPPING=1" in heard
    assert "READY=1" not in heard
    record = json.loads((case.exits / f"{case.id}.json").read_text())
    assert "before it executed the container's program" in record["error"]


def test_a_quick_container_is_ready_before_it_stops(tmp_path: Path, rootfs: Path) -> None:
    case = Case(tmp_path, bundles.config(rootfs, bundles.shell("exit 7")))
    address = str(tmp_path / "notify")
    for _ in range(5):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as manager:
            manager.bind(address)
            assert case.run(NOTIFY_SOCKET=address)[0] == 7
            heard = _words(manager)
        os.unlink(address)
        assert heard.index("READY=1") < heard.index("STOPPING=1")


def _random_bytes(document: dict[str, Any], directory: Path) -> None:
    """ENOEXEC."""
    _put_program(document, directory, os.urandom(64))


def _missing_interpreter(document: dict[str, Any], directory: Path) -> None:
    """ENOENT, of a file that is there."""
    _put_program(document, directory, b"#!/bin/no-such-interpreter\n")


def _too_many_words(document: dict[str, Any], _directory: Path) -> None:
    """E2BIG: 20,000 words of 100 bytes are more than the 2 MiB of a stack of 8 MiB."""
    document["process"]["args"] = [*bundles.shell("exit 7"), *["x" * 100] * 20000]
    document["process"]["rlimits"] = [{"type": "RLIMIT_STACK", "soft": 1 << 21, "hard": 1 << 23}]


def _too_long_a_variable(document: dict[str, Any], _directory: Path) -> None:
    """E2BIG: one string has at most 128 KiB (MAX_ARG_STRLEN)."""
    document["process"]["env"].append("LONG=" + "x" * 200_000)


def _put_program(document: dict[str, Any], directory: Path, content: bytes) -> None:
    program = directory / "program"
    program.write_bytes(content)
    program.chmod(0o755)
    document["process"]["args"] = ["/program"]
    document["mounts"].append(bundles.bind(str(program), "/program", "ro"))


REFUSED = pytest.mark.parametrize(
    "refuse", [_random_bytes, _missing_interpreter, _too_many_words, _too_long_a_variable]
)
TIMES = 3


@REFUSED
@pytest.mark.parametrize("options", [(), ("--detach", "--log", "null")])
def test_a_program_that_execve_refuses_is_a_failure_with_a_line(
    tmp_path: Path, rootfs: Path, refuse: Refuse, options: tuple[str, ...]
) -> None:
    document = bundles.config(rootfs, bundles.shell("exit 7"))
    refuse(document, tmp_path)
    case = Case(tmp_path, document)
    for _ in range(TIMES):
        status, err = case.run("--exit-dir", case.exits, *options)
        lines = [line for line in err.splitlines() if line.startswith("forkshim: ")]
        assert (status, len(lines)) == (1, 1), err
        assert lines[0].startswith(f"forkshim: {case.id}: runc start: ")
        assert "before it executed the container's program: exit status 1" in lines[0]
        record = json.loads((case.exits / f"{case.id}.json").read_text())
        assert "before it executed the container's program" in record["error"]


@REFUSED
def test_systemd_is_never_told_that_a_refused_program_was_ready(
    tmp_path: Path, rootfs: Path, refuse: Refuse
) -> None:
    document = bundles.config(rootfs, bundles.shell("exit 7"))
    refuse(document, tmp_path)
    case = Case(tmp_path, document)
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as manager:
        manager.bind(address)
        for _ in range(TIMES):
            assert case.run(NOTIFY_SOCKET=address)[0] == 1
            heard = _words(manager)
            assert "STOPPING=1" in heard
            assert "READY=1" not in heard


@pytest.mark.parametrize(
    ("annotations", "program", "status"),
    [
        ({}, "sandbox", 1),
        ({"run.oci.handler": "wasm"}, "sandbox", 3),
        ({"module.wasm.image/variant": "compat"}, "sandbox", 3),
        ({}, "crun-wasm", 3),
    ],
)
def test_a_runtime_that_runs_a_program_in_its_init_is_believed_where_it_was_asked_to(
    tmp_path: Path, rootfs: Path, annotations: dict[str, str], program: str, status: int
) -> None:
    case = Case(tmp_path, {**bundles.config(rootfs, []), "annotations": annotations})
    runtime = runtimes.without_exec(tmp_path / program, exit_status=3)
    assert case.run("--runtime", runtime)[0] == status


def _words(manager: socket.socket) -> list[str]:
    words: list[str] = []
    while True:
        try:
            words += manager.recv(65536).decode().split("\n")
        except BlockingIOError:
            return words
