"""What is said to systemd, word by word, over a real socket."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest

from supervisor.systemd.notify import Notifier

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.process


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.setblocking(False)
        yield listener


def _notifier(manager: socket.socket, **more: str) -> Notifier:
    address = manager.getsockname()
    return Notifier({"NOTIFY_SOCKET": address if isinstance(address, str) else "@x", **more})


def test_each_word_is_a_datagram_of_its_own(manager: socket.socket) -> None:
    notifier = _notifier(manager)
    assert notifier.has_manager
    notifier.status("being created")
    notifier.ready("running, pid 7")
    notifier.status("running, pid 7")  # said already
    notifier.alive()
    notifier.extend_timeout(2.5)
    notifier.stopping()
    assert [manager.recv(4096) for _ in range(5)] == [
        b"STATUS=being created",
        b"READY=1\nSTATUS=running, pid 7",
        b"WATCHDOG=1",
        b"EXTEND_TIMEOUT_USEC=2500000",
        b"STOPPING=1",
    ]
    with pytest.raises(BlockingIOError):
        manager.recv(1)
    notifier.close()


def test_a_status_cannot_smuggle_another_word_in(manager: socket.socket) -> None:
    notifier = _notifier(manager)
    notifier.status("x\nMAINPID=1\udc80" + "y" * 9999)
    message = manager.recv(65536)
    assert message.startswith(b"STATUS=x MAINPID=1\\x80yyy")
    assert len(message) < 600
    notifier.close()


def test_an_abstract_address_is_one_without_a_file() -> None:
    name = f"forkshim-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("\0" + name)
        notifier = Notifier({"NOTIFY_SOCKET": "@" + name})
        notifier.alive()
        assert listener.recv(99) == b"WATCHDOG=1"
        notifier.close()


@pytest.mark.parametrize("address", ["", "relative", "vsock:2:1"])
def test_without_a_manager_nothing_is_said(address: str) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1000"})
    assert not notifier.has_manager
    assert notifier.watchdog_s == 0
    notifier.ready("x")
    notifier.close()


def test_a_manager_that_is_gone_or_does_not_listen_keeps_nobody(
    manager: socket.socket, tmp_path: Path
) -> None:
    notifier = _notifier(manager)
    for n in range(10_000):  # nobody takes them: the queue is full long before
        notifier.status(str(n))
    os.unlink(tmp_path / "notify")
    notifier.alive()
    notifier.close()
    notifier.alive()


@pytest.mark.parametrize(
    ("variables", "seconds"),
    [
        ({}, 0.0),
        ({"WATCHDOG_USEC": "3000000"}, 1.5),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, 0.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}, 1.5),
        ({"WATCHDOG_USEC": "junk"}, 0.0),
        ({"WATCHDOG_USEC": "-1"}, 0.0),
    ],
)
def test_a_sign_of_life_is_due_twice_in_the_watchdogs_time(
    manager: socket.socket, variables: dict[str, str], seconds: float
) -> None:
    notifier = _notifier(manager, **variables)
    assert notifier.watchdog_s == seconds
    notifier.close()


def test_a_service_of_the_engines_hears_the_container_alone(manager: socket.socket) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": str(manager.getsockname())}, only_forwards=True)
    assert not notifier.has_manager
    notifier.ready("running, pid 7")
    notifier.status("running, pid 7")
    notifier.stopping()
    notifier.alive()
    notifier.store_fds({"name": 0})
    notifier.forward(["READY=1"], "warming\nup", lambda: "running, pid 7: warming up")
    notifier.forward([], "warming up", lambda: "")
    notifier.forward([], None, lambda: "")
    assert manager.recv(4096) == b"READY=1\nSTATUS=warming up"
    assert manager.recv(4096) == b"STATUS=warming up"
    with pytest.raises(BlockingIOError):
        manager.recv(1)
    notifier.close()
