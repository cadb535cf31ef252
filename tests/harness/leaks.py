"""What must be as it was when a test is over: descriptors, children, terminals, files."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36


def become_subreaper() -> None:
    """Inherit what the tests' programs leave behind, so that it can be seen (prctl(2))."""
    assert ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0


@dataclass(frozen=True)
class Snapshot:
    """What is there now, and would be more if something leaked."""

    descriptors: frozenset[str]
    children: frozenset[int]
    ptys: int
    temporary: frozenset[str]
    containers: frozenset[str]

    @staticmethod
    def take(*, with_runtime: bool) -> Snapshot:
        """Look. Children that have ended and were not waited for are reaped and not counted."""
        _reap()
        return Snapshot(
            descriptors=frozenset(_descriptors()),
            children=frozenset(_children()),
            ptys=int(Path("/proc/sys/kernel/pty/nr").read_text()),
            temporary=frozenset(n for n in os.listdir("/tmp") if n.startswith("forkshim-")),
            containers=frozenset(_containers()) if with_runtime else frozenset(),
        )


def _reap() -> None:
    """Reap orphans we have inherited; living ones stay and are seen."""
    while True:
        try:
            if os.waitpid(-1, os.WNOHANG) == (0, 0):
                return
        except ChildProcessError:
            return


def _descriptors() -> list[str]:
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            found.append(f"{fd} -> {os.readlink(f'/proc/self/fd/{fd}')}")
        except FileNotFoundError:
            continue  # the one that listed them
    return found


def _children() -> list[int]:
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return [int(pid) for pid in file.read().split()]


def _containers() -> list[str]:
    if shutil.which("runc") is None or os.geteuid() != 0:
        return []
    done = subprocess.run(["runc", "list", "-f", "json"], capture_output=True, check=True)
    return [container["id"] for container in json.loads(done.stdout or b"[]") or []]
