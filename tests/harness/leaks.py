"""What must be as it was when a test is over: descriptors, children, files, containers.

Only what is this test run's own is looked at: others may run on the same machine.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass

from tests.harness import runtime_calls, waiting

_PR_SET_CHILD_SUBREAPER = 36
_ENDS_S = 10.0


def become_subreaper() -> None:
    """Inherit what the tests' programs leave behind, so that it can be seen (prctl(2))."""
    assert ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0


@dataclass(frozen=True)
class Snapshot:
    """What is there now, and would be more if something leaked."""

    descriptors: frozenset[str]
    children: frozenset[int]
    temporary: frozenset[str]
    containers: frozenset[str]

    @staticmethod
    def take(*, with_runtime: bool) -> Snapshot:
        """Look. Children that have ended and were not waited for are reaped and not counted."""
        reap()
        return Snapshot(
            descriptors=frozenset(_descriptors()),
            children=frozenset(_children()),
            temporary=frozenset(os.listdir(tempfile.gettempdir())),
            containers=frozenset(_containers()) if with_runtime else frozenset(),
        )


def wait_for_ends(before: Snapshot) -> None:
    """Wait for those who have said their last word and are about to end; not for who stays."""
    with suppress(TimeoutError):
        waiting.wait_true(lambda: before.children.issuperset(_children()), limit_s=_ENDS_S)


def reap() -> None:
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
    return [pid for pid in waiting.children_of(os.getpid()) if waiting.is_alive(pid)]


def _containers() -> list[str]:
    if shutil.which("runc") is None or os.geteuid() != 0:
        return []
    listed = runtime_calls.list_all()
    ids = [container["id"] for container in json.loads(listed or b"[]") or []]
    return [id_ for id_ in ids if f"-{os.getpid()}-" in id_]  # see bundles.fresh_id
