"""What is killed or hangs, and what containerd's clients notice of it: the README's fault table."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.engines.containerd import OURS, containerd
from tests.engines.image import IMAGE
from tests.engines.test_ctr import STAYS, detached
from tests.harness import waiting

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.engines.containerd import Containerd

pytestmark = [pytest.mark.engine, pytest.mark.process, pytest.mark.slow]

GROUP = ("--annotation", "io.containerd.runc.v2.group=g")
KILLS = 8
WORKER = "forkshim: a [stdout]"
HANGS, BEGUN = "hangs", "begun"
"""A container whose creation hangs, and the file that tells of it."""


def write_runtime(directory: Path, seconds: int) -> None:
    """Write a `runc` that says BEGUN and sleeps, in the place of the creation of HANGS."""
    runtime = directory / "runc"
    runtime.write_text(
        f'#!/bin/sh\ncase "$*" in *" create "*" {HANGS}") : >{directory / BEGUN}; '
        f'exec sleep {seconds} ;; esac\nexec {shutil.which("runc")} "$@"\n'
    )
    runtime.chmod(0o755)


@pytest.fixture(scope="module")
def daemon(rootfs: Path) -> Iterator[Containerd]:
    """A containerd whose shims find that `runc` first."""
    with tempfile.TemporaryDirectory(prefix="cd-") as name:
        write_runtime(Path(name), 1000)
        first = f"{name}:{Path(sys.executable).parent}"
        with containerd(Path(name), rootfs, first_on_path=first) as started:
            yield started


@contextmanager
def attached(cd: Containerd, name: str, script: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a container under a client that reads its output to the end."""
    words = cd.words("run", "--rm", "--runtime", OURS, IMAGE, name, "sh", "-c", script)
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as client:
        yield client


def test_killed_workers_cost_no_byte(cd: Containerd) -> None:
    """The next worker is killed as soon as it is there."""
    script = "dd if=/dev/zero bs=1M count=64 2>/dev/null | tr '\\0' x"
    digest, killed = hashlib.sha256(), set[int]()
    with attached(cd, "a", script) as client:
        assert client.stdout is not None
        while chunk := os.read(client.stdout.fileno(), 1 << 20):
            digest.update(chunk)
            workers = cd.sandbox.processes() if len(killed) < KILLS else ()
            for process in workers:
                if process.title == WORKER and process.pid not in killed:
                    os.kill(process.pid, signal.SIGKILL)
                    killed.add(process.pid)
        assert client.wait(waiting.LIMIT_S) == 0
    assert len(killed) == KILLS
    assert digest.hexdigest() == hashlib.sha256(b"x" * (64 << 20)).hexdigest()


def test_a_runtime_that_hangs_hides_no_other_container(cd: Containerd) -> None:
    """The stock shim answers no question about the pod before `runc create` has ended."""
    with detached(cd, OURS, "a", *STAYS, options=GROUP):
        words = cd.words("run", "-d", "--runtime", OURS, *GROUP, IMAGE, HANGS, "true")
        with subprocess.Popen(words, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as client:
            waiting.wait_path(cd.directory / BEGUN, Path.exists)
            assert cd.status("a") == "RUNNING"
            assert cd.ctr("task", "exec", "--exec-id", "e", "a", "echo", "here").stdout == "here\n"
            (hanging,) = (each for each in cd.sandbox.processes() if each.title == "sleep 1000")
            os.kill(hanging.pid, signal.SIGKILL)
            assert client.wait(waiting.LIMIT_S) != 0
        cd.ctr("container", "rm", HANGS, check=False)
