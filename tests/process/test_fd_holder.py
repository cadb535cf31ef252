"""The fd holder: there is one at every instant, and it holds nothing but the fd store."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
from typing import TYPE_CHECKING

import pytest

from supervisor.children.fd_holder import FdHolder
from supervisor.handover.successor import SuccessorStarter
from supervisor.linux import fds, spawn
from supervisor.state.fd_store import FdStore, FdWriter
from tests.harness import waiting
from tests.harness.forked import has_no_children

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.harness.rig import Rig

pytestmark = pytest.mark.process


@pytest.fixture
def store() -> Iterator[FdStore]:
    with contextlib.closing(FdStore()) as made:
        made.put({}, FdWriter())
        yield made


def make(
    rig: Rig, store: FdStore, predecessors: Sequence[fds.Fd] = (), *, limit: int = 0
) -> FdHolder:
    state_dir = os.getcwd()
    command = [sys.executable, "-c", "raise SystemExit(1)"]
    return FdHolder(
        rig.loop,
        rig.reaper,
        rig.log,
        title="forkshim: site",
        null_fd=rig.null.fileno(),
        store_fds=store.fds,
        starter=SuccessorStarter(
            command, "site", state_dir, state_dir, store.fds, rig.log, limit=limit, starts=[]
        ),
        predecessors=predecessors,
    )


@pytest.fixture
def holder(rig: Rig, store: FdStore) -> Iterator[FdHolder]:
    made = make(rig, store)
    yield made
    stop(rig, made)
    assert has_no_children()


def stop(rig: Rig, holder: FdHolder) -> None:
    holder.stop()
    rig.run_until(lambda: not holder.pid)


def wait_title(pid: int) -> None:
    waiting.wait_true(lambda: waiting.title_of(pid) == "forkshim: site [fds]")


def fds_of(pid: int) -> dict[int, str]:
    """Return what each descriptor of a process is; its one pidfd is the supervisor's."""
    directory, found = f"/proc/{pid}/fd", {}
    for name in os.listdir(directory):
        with contextlib.suppress(FileNotFoundError):  # closed just now
            found[int(name)] = os.readlink(f"{directory}/{name}")
    return found


def refused(_work: Callable[[], None]) -> int:
    raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))


def test_it_has_no_descriptor_but_those_of_the_store(holder: FdHolder, store: FdStore) -> None:
    holder.ensure()
    first = holder.pid
    holder.ensure()
    assert holder.pid == first
    waiting.wait_true(lambda: "anon_inode:[pidfd]" in fds_of(first).values())
    others = {fd for fd, target in fds_of(first).items() if target != "anon_inode:[pidfd]"}
    assert others == {0, 1, 2, *store.fds}


def test_what_stops_a_service_does_not_end_it(holder: FdHolder) -> None:
    holder.ensure()
    wait_title(holder.pid)
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        os.kill(holder.pid, signum)
    assert waiting.is_alive(holder.pid)


def test_one_that_is_killed_is_forked_again_and_again(rig: Rig, holder: FdHolder) -> None:
    holder.ensure()
    for _each in range(12):
        killed = holder.pid
        os.kill(killed, signal.SIGKILL)
        rig.run_until(lambda: holder.pid not in (0, killed))  # noqa: B023 -- called now
        assert waiting.is_alive(holder.pid)
    said = rig.messages("warn")
    assert said[0] == "fd holder: killed by SIGKILL, forked again; deaths: 1"
    assert len(said) == 4, "the deaths 1, 2, 4 and 8"


def test_a_fork_that_is_refused_is_said_once_and_tried_again(
    rig: Rig, holder: FdHolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(spawn, "fork_worker", refused)
        holder.ensure()
        holder.ensure()
        assert not holder.pid
    rig.run_until(lambda: bool(holder.pid))
    assert rig.messages("warn") == [
        "fd holder: fork: Resource temporarily unavailable; trying again in 0.5 s; failures: 1"
    ]


def test_an_earlier_one_ends_when_the_new_one_is_there(
    rig: Rig, store: FdStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = make(rig, store)
    earlier.ensure()
    wait_title(earlier.pid)
    old = earlier.pid
    rig.reaper.expect(old, lambda _termination: None)
    new = make(rig, store, [fds.Fd(os.pidfd_open(old))])
    with monkeypatch.context() as patch:
        patch.setattr(spawn, "fork_worker", refused)
        new.ensure()
        assert waiting.is_alive(old)
    rig.run_until(lambda: bool(new.pid))
    waiting.wait_process(old)
    stop(rig, new)
    waiting.wait_reaped(old)
