"""The fd holder of a containerd group: it holds what it is told, and starts successors."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from supervisor.frontends.containerd.handover.holder_link import HolderLink, fork_shim
from supervisor.linux import procfs, spawn
from tests.harness import waiting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "tests/programs/group_successor.py"
FAILS = [sys.executable, "-ISc", "raise SystemExit(1)"]


class Group:
    """A fd holder, its shim, and what comes after. Owns the processes until `close`."""

    def __init__(self, directory: Path) -> None:
        """Start nothing yet."""
        self.told = directory / "told"
        self.log = directory / "log"
        self.holder_pid = 0
        self.command = [sys.executable, str(PROGRAM), str(self.told)]

    def start(self, kept: dict[str, tuple[int, ...]], shim: Callable[[HolderLink], None]) -> None:
        """Fork an fd holder, whose shim calls `shim` and dies then."""

        def die(link: HolderLink) -> None:
            try:
                shim(link)
            finally:
                os.kill(os.getpid(), signal.SIGKILL)

        def hold() -> None:
            os.environ["PYTHONPATH"] = str(ROOT)
            os.dup2(os.open(self.log, os.O_CREAT | os.O_WRONLY | os.O_APPEND), 2)
            null_fd = os.open(os.devnull, os.O_RDWR)
            fork_shim(self.command, kept, title="forkshim: g", null_fd=null_fd, serve=die)

        self.holder_pid = spawn.fork_worker(hold)

    def successor(self, *others: int) -> dict[str, Any]:
        """Wait for a successor that is none of `others`; return what it was told."""
        found: dict[str, Any] = {}

        def is_there() -> bool:
            with suppress(FileNotFoundError):
                found.update(json.loads(self.told.read_text()))
            return bool(found) and found["pid"] not in others

        waiting.wait_true(is_there)
        return found

    def close(self) -> None:
        """Kill the fd holder, then its children."""
        children = waiting.children_of(self.holder_pid)
        with suppress(ProcessLookupError):
            os.kill(self.holder_pid, signal.SIGKILL)
        os.waitpid(self.holder_pid, 0)
        for pid in children:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            waiting.wait_process(pid)


@pytest.fixture
def group(tmp_path: Path) -> Iterator[Group]:
    """A group whose fd holder is not started yet."""
    made = Group(tmp_path)
    yield made
    made.close()


def test_a_successor_gets_what_was_kept_and_not_dropped(group: Group) -> None:
    dropped, end = socket.socketpair()
    kept, other = socket.socketpair()
    given = tuple(each.fileno() for each in (kept, end))

    def shim(link: HolderLink) -> None:
        link.keep("both", given)
        link.keep("one", given[:1])
        link.keep("both", given[:1])
        link.keep("gone", given[1:])
        link.drop("gone")
        link.drop("never there")

    group.start({"first": given[:1]}, shim)
    kept.close()
    end.close()
    assert group.successor()["names"] == {"first": 1, "both": 1, "one": 1}
    dropped.settimeout(waiting.LIMIT_S)
    assert dropped.recv(1) == b"", "the other end is closed everywhere"
    assert not waiting.is_readable(other.fileno())
    dropped.close()
    other.close()


def test_one_successor_follows_the_other(group: Group) -> None:
    group.start({}, lambda _link: None)
    pids = [group.successor()["pid"]]
    for _each in range(12):
        os.kill(pids[-1], signal.SIGKILL)
        pids.append(group.successor(*pids)["pid"])
    assert group.log.read_text().count("starting a successor") == 4, "the deaths 1, 2, 4 and 8"


def test_after_five_that_never_served_the_connections_are_closed(group: Group) -> None:
    mine, theirs = socket.socketpair()
    group.command = FAILS
    group.start({"connection 0": (theirs.fileno(),)}, lambda _link: None)
    theirs.close()
    mine.settimeout(waiting.LIMIT_S)
    assert mine.recv(1) == b"", "the last who had it is gone"
    waiting.wait_process(group.holder_pid)
    assert "5 successors have failed" in group.log.read_text()
    mine.close()


def test_what_the_dead_shim_had_is_reaped_when_its_status_was_there_to_see(group: Group) -> None:
    rfd, wfd = os.pipe()
    named = group.told.with_name("pid")

    def child() -> None:
        os.close(wfd)
        os.read(rfd, 1)
        os._exit(7)

    def shim(_link: HolderLink) -> None:
        named.write_text(str(spawn.fork_worker(child)))

    group.start({}, shim)
    os.close(rfd)
    group.successor()
    pid = int(named.read_text())
    assert pid in waiting.children_of(group.holder_pid)
    os.close(wfd)
    seen: list[int] = []

    def is_reaped() -> bool:
        with suppress(FileNotFoundError, ProcessLookupError):
            seen.append(procfs.zombie_wait_status(pid) or 0)
        return not Path(f"/proc/{pid}").exists()

    waiting.wait_true(is_reaped)
    assert 7 << 8 in seen
