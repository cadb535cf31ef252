"""A group's socket: one daemon serves it, those who come later find it, a dead one is replaced."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import stat
import threading
from typing import TYPE_CHECKING

import pytest

from supervisor.frontends.containerd import group_socket
from supervisor.frontends.containerd.group_socket import GroupSocket, address_of, claim, group_of
from supervisor.linux.errors import BundleError, ShimError
from supervisor.linux.event_loop import Loop
from supervisor.wire.server import Server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import Any

pytestmark = pytest.mark.process


@pytest.mark.parametrize(
    ("annotations", "group"),
    [
        (None, "c1"),
        ({}, "c1"),
        ({"io.kubernetes.cri.sandbox-id": "pod"}, "pod"),
        ({"io.kubernetes.cri.sandbox-id": "pod", "io.containerd.runc.v2.group": "g"}, "g"),
        ({"io.kubernetes.cri.sandbox-id": "", "io.containerd.runc.v2.group": 7}, "c1"),
    ],
)
def test_the_group_is_an_annotation_or_the_container(
    tmp_path: Path, annotations: dict[str, Any] | None, group: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"annotations": annotations}))
    assert group_of(str(tmp_path), "c1") == group


def test_a_bundle_without_a_config_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"config\.json: no such file or directory"):
        group_of(str(tmp_path), "c1")


def test_the_address_is_the_hash_that_every_shim_computes() -> None:
    wanted = hashlib.sha256(b"/run/containerd/containerd.sock/k8s.io/pod").hexdigest()
    given = {"containerd_address": "/run/containerd/containerd.sock", "namespace": "k8s.io"}
    assert address_of("pod", **given) == f"unix:///run/containerd/s/{wanted}"
    assert address_of("pod", **given, directory="/x") == f"unix:///x/{wanted}"
    with pytest.raises(ShimError, match="longer than 106 bytes"):
        address_of("pod", **given, directory="/" + "x" * 50)


class Daemon:
    """Serves a group's socket in a thread until `leave`."""

    def __init__(self, found: GroupSocket) -> None:
        self.found = found
        self.loop = Loop()
        self.asked: list[str] = []
        self._over_rfd, self._over_wfd = os.pipe()
        self._is_over = False
        self.loop.watch(self._over_rfd, self._end)
        self.server = Server(
            self.loop,
            socket.socket(fileno=os.dup(found.listener.fileno())),
            on_request=self._answer,
            on_closed=lambda _connection, _why: None,
            log=self.asked.append,
        )
        self._thread = threading.Thread(
            target=lambda: self.loop.run_until(lambda: self._is_over), daemon=True
        )
        self._thread.start()

    def _answer(self, connection: Any, stream_id: int, service: str, method: str, *_: Any) -> None:
        self.asked.append(f"{service}/{method}")
        connection.respond(stream_id, b"")

    def _end(self) -> None:
        os.read(self._over_rfd, 1)
        self._is_over = True

    def leave(self) -> None:
        os.write(self._over_wfd, b"x")
        self._thread.join(30)
        self.server.close()
        self.loop.forget(self._over_rfd)
        self.loop.close()
        os.close(self._over_rfd)
        os.close(self._over_wfd)


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    made = tmp_path / "s" / "name"
    yield f"unix://{made}"
    assert sorted(path.name for path in made.parent.iterdir()) in ([], ["name"])  # none temporary


def _claim(address: str) -> GroupSocket:
    found = claim(address, "c1")
    assert found is not None
    return found


def test_a_second_claim_finds_the_daemon_that_answers(address: str) -> None:
    found = _claim(address)
    mode = os.stat(found.path).st_mode
    assert (stat.S_ISSOCK(mode), stat.S_IMODE(mode)) == (True, 0o600)
    assert stat.S_IMODE(os.stat(os.path.dirname(found.path)).st_mode) == 0o700
    daemon = Daemon(found)
    assert claim(address, "c2") is None
    assert daemon.asked == ["containerd.task.v2.Task/Connect"]
    daemon.leave()
    found.release()
    assert not os.path.exists(found.path)


def test_the_socket_of_a_dead_daemon_is_replaced(address: str) -> None:
    dead = _claim(address)
    dead.listener.close()
    assert os.path.exists(dead.path)
    found = _claim(address)
    client = socket.socket(socket.AF_UNIX)
    client.connect(found.path)
    client.close()
    found.release()
    found.release()
    assert not os.path.exists(found.path)


def test_a_daemon_that_leaves_while_a_start_waits_is_replaced(address: str) -> None:
    """The `start` holds the lock, so the leaving daemon waits for it with its name."""
    leaving = _claim(address)
    taken: list[GroupSocket] = []
    starter = threading.Thread(target=lambda: taken.append(_claim(address)), daemon=True)
    starter.start()
    connection, _peer = leaving.listener.accept()  # the `start` waits for an answer now
    releaser = threading.Thread(target=leaving.release, daemon=True)
    releaser.start()
    connection.close()
    for thread in (starter, releaser):
        thread.join(30)
    assert os.path.exists(taken[0].path)
    taken[0].release()


def test_a_daemon_that_never_answers_counts_as_dead(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_socket, "ANSWER_LIMIT_S", 0.05)
    stuck = _claim(address)
    found = _claim(address)
    stuck.release()  # its name is another's: it stays
    assert os.path.exists(found.path)
    found.release()


def test_of_many_claims_at_once_one_serves(address: str) -> None:
    daemons: list[Daemon] = []
    joined: list[bool] = []

    def start() -> None:
        found = claim(address, "c1")
        if found is None:
            joined.append(True)
        else:
            daemons.append(Daemon(found))

    threads = [threading.Thread(target=start, daemon=True) for _each in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert (len(daemons), len(joined)) == (1, 7)
    daemons[0].leave()
    daemons[0].found.release()


def test_a_name_that_a_shim_without_the_lock_takes_is_not_replaced(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes between the look and the link."""
    path = address.removeprefix("unix://")
    others: list[socket.socket] = []
    answerers: list[threading.Thread] = []
    listen = socket.socket.listen

    def listen_late(self: socket.socket, *backlog: int) -> None:
        listen(self, *backlog)
        if not others:
            other = socket.socket(socket.AF_UNIX)
            others.append(other)
            other.bind(path)
            listen(other)
            answerers.append(threading.Thread(target=_answer_once, args=(other,), daemon=True))
            answerers[0].start()

    monkeypatch.setattr(socket.socket, "listen", listen_late)
    assert claim(address, "c1") is None
    answerers[0].join(30)
    others[0].close()


def _answer_once(listener: socket.socket) -> None:
    client, _peer = listener.accept()
    client.recv(4096)
    client.sendall(b"\0\0\0\0\0\0\0\1\2\0")
    client.close()
