"""Somebody attacks: a worker that has been taken over, another user, a process in a namespace."""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from supervisor import adoption, deposit
from tests.harness import waiting
from tests.harness.daemon import Daemon

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = [pytest.mark.runc, pytest.mark.timeout(300)]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    """Return a function that starts one that can be adopted; its log goes to tmp_path/log."""
    with ExitStack() as stack:

        def start(bundle: Path, *options: str | Path) -> Daemon:
            options = options or ("--log", f"file:{tmp_path}/log")
            daemon = Daemon(tmp_path, bundle, *options)
            stack.callback(daemon.close)
            return daemon

        yield start


@pytest.mark.parametrize("sink", ["file", "file,policy=drop-new", "cri", "path,policy=drop-old"])
def test_memory_that_could_be_resized_is_not_adopted(
    tmp_path: Path, make_bundle: Callable[..., Path], start: Callable[..., Daemon], sink: str
) -> None:
    """A worker has put memory of its own there: its ftruncate(2) would be SIGBUS for us."""
    (tmp_path / "log").touch()
    daemon = start(make_bundle("echo ready; sleep 1000"), "--log", f"{sink}:{tmp_path}/log")
    daemon.kill()
    place = adoption.find(str(daemon.state_dir))
    contents = adoption.look(place, str(daemon.state_dir))
    parcel, owned = deposit.Parcel(), []
    for index in range(contents.document["fds"]):
        owned.append(contents.take(index))
        fd = owned[-1].fileno()
        if "memfd:forkshim" in os.readlink(f"/proc/self/fd/{fd}"):
            evil = os.memfd_create("forkshim:evil", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.truncate(evil, os.fstat(fd).st_size)
            os.dup2(evil, fd)
            os.close(evil)
        parcel.add(fd)
    place.put(contents.document, parcel)
    place.close()
    for each in owned:
        each.close()
    done = daemon.command("adopt")
    assert done.returncode == 1
    *_adopting, said = done.stderr.splitlines()
    assert said.startswith(f"forkshim: {daemon.id}: handover: ValueError: forkshim:ledger: ")
    assert said.endswith(": memory that is not sealed against a change of its size")
    assert waiting.is_alive(daemon.payload_pid)
    os.kill(daemon.payload_pid, signal.SIGKILL)
