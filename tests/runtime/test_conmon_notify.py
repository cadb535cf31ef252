"""--sdnotify-socket: the container's words reach the engine's service manager."""

from __future__ import annotations

import os
import socket
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.harness import bundles, waiting
from tests.harness.conmon import Engine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = [pytest.mark.runc, pytest.mark.process]

SPEAKS = """
import os, socket, sys
out = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
out.connect(os.environ["NOTIFY_SOCKET"])
for words in ("STATUS=warm\\nMAINPID=1", "READY=1", "STOPPING=1"):
    out.send(words.encode())
sys.exit(3)
"""


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        made.bind(os.fspath(tmp_path / "manager"))
        made.settimeout(waiting.LIMIT_S)
        yield made


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    """A container that speaks: the engine has made the directory and mounts it, as Podman does."""
    bundle = tmp_path / "bundle"
    (bundle / "notify").mkdir(parents=True)
    rootfs, mounts = bundles.make_host_rootfs(tmp_path / "rootfs")
    mounts.append(bundles.bind(bundle / "notify", "/dev/notify"))
    document = bundles.config(rootfs, ["/usr/bin/python3", "-c", SPEAKS], mounts=mounts)
    document["process"]["env"].append("NOTIFY_SOCKET=/dev/notify/notify.sock")
    made = Engine(tmp_path, bundles.make_bundle(bundle, document))
    yield made
    made.close()


def test_the_containers_words_are_passed_on_and_none_of_the_supervisors(
    engine: Engine, manager: socket.socket
) -> None:
    engine.create("--sdnotify-socket", str(manager.getsockname()))
    engine.runc("start", engine.cid)
    assert engine.status() == "3"
    assert [manager.recv(4096) for _ in range(3)] == [b"STATUS=warm", b"READY=1", b"STOPPING=1"]
    waiting.wait_process(engine.monitor)
    manager.setblocking(False)
    with pytest.raises(BlockingIOError):
        manager.recv(4096)


def test_any_user_of_the_container_may_speak(engine: Engine, manager: socket.socket) -> None:
    engine.create("--sdnotify-socket", str(manager.getsockname()))
    assert (engine.bundle / "notify" / "notify.sock").stat().st_mode & 0o777 == 0o666
    engine.runc("start", engine.cid)
    assert engine.status() == "3"
    assert manager.recv(4096) == b"STATUS=warm"


def test_a_directory_that_the_engine_has_not_made_is_named(
    make_conmon: Callable[..., Engine], manager: socket.socket
) -> None:
    engine = make_conmon()
    engine.create("--sdnotify-socket", str(manager.getsockname()))
    assert engine.created is not None
    assert engine.created["data"] == -1
    assert engine.created["message"].startswith(f"notify/ in {engine.bundle}: ")
    state = subprocess.run(["runc", "state", engine.cid], capture_output=True, check=False)
    assert state.returncode != 0
