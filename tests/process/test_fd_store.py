"""The deposit: all or nothing, the newest, for one version, without a leak."""

from __future__ import annotations

import os
import signal
import socket
from typing import TYPE_CHECKING, Any

import pytest

from supervisor.handover import discover, reexec
from supervisor.handover.own_command import HANDOVER_VARIABLE
from supervisor.linux import fds
from supervisor.state import fd_store
from supervisor.state.fd_store import FdReader, FdStore, FdStoreError, FdWriter
from tests.harness import waiting
from tests.harness.forked import forked

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.process


@pytest.fixture
def place() -> Iterator[FdStore]:
    made = FdStore()
    yield made
    made.close()


def put(place: FdStore, **document: Any) -> None:
    """Put the document there, with /dev/null as `null`."""
    fd_writer = FdWriter()
    with open(os.devnull) as null:
        index = fd_writer.add(null.fileno())
        place.put({**document, "null": index}, fd_writer)


def look(place: FdStore) -> dict[str, Any]:
    contents = place.look()
    contents.close()
    return contents.document


def test_what_was_put_last_is_there_for_everybody(place: FdStore) -> None:
    with pytest.raises(FdStoreError, match="the fd store is empty"):
        place.look()
    put(place, word="first")
    put(place, word="second")
    for _ in range(2):
        assert look(place)["word"] == "second"
    contents = place.look()
    taken = contents.take(contents.document["null"])
    assert os.readlink(f"/proc/self/fd/{taken.fileno()}") == os.devnull
    assert not os.get_inheritable(taken.fileno())
    taken.close()
    with pytest.raises(FdStoreError, match="no descriptor 0"):
        contents.take(0)
    with pytest.raises(FdStoreError, match="no descriptor 7"):
        contents.take(7)
    assert not contents.take(-1).is_open
    contents.close()


def test_a_kill_between_the_new_and_the_old_leaves_the_new(
    place: FdStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(place, word="old")

    def put_and_die() -> None:
        monkeypatch.setattr(
            FdStore, "_drop_all_but_the_last", lambda _self: os.kill(os.getpid(), signal.SIGKILL)
        )
        put(place, word="new")

    with forked(put_and_die) as child:
        child.wait()
    assert look(place)["word"] == "new"


def test_it_outlives_its_maker(place: FdStore) -> None:
    copies = (os.dup(place.fds[0]), os.dup(place.fds[1]))
    put(place, word="kept")
    place.close()
    again = FdStore(ends=copies)
    assert look(again)["word"] == "kept"
    again.close()


def test_what_does_not_fit_changes_nothing(place: FdStore) -> None:
    put(place, word="kept")
    fd_writer = FdWriter()
    for _ in range(253):
        fd_writer.add(0)
    with pytest.raises(FdStoreError, match="254 descriptors"):
        place.put({}, fd_writer)
    with pytest.raises(FdStoreError, match="handover: "):
        place.put({"name": "\udcff"}, FdWriter())
    assert look(place)["word"] == "kept"


def test_another_version_is_refused(place: FdStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fd_store, "VERSION", 99)
    put(place)
    monkeypatch.undo()
    with pytest.raises(FdStoreError, match=r"state version 99, this forkshim reads \d+$"):
        place.look()


def test_somebody_elses_sockets_are_refused() -> None:
    """They are closed, since they were given to it, and not read."""
    with pytest.raises(FdStoreError, match="handover: "):
        FdStore(ends=(os.open(os.devnull, os.O_RDONLY), os.open(os.devnull, os.O_RDONLY)))
    front, back = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    back.send(b"hello" * 20)
    with pytest.raises(FdStoreError, match="not written by a supervisor"):
        FdStore(ends=(os.dup(front.fileno()), os.dup(back.fileno())))
    assert front.recv(1000) == b"hello" * 20
    front.close()
    back.close()


@pytest.mark.parametrize("offset", [-1, 7])
def test_somebody_elses_messages_stay_where_they_are(offset: int) -> None:
    front, back = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    front.setsockopt(socket.SOL_SOCKET, fd_store._SO_PEEK_OFF, offset)
    said = [b"message %d" % number + b"x" * 30 for number in range(5)]
    for message in said:
        back.send(message)
    place = FdStore(ends=(os.dup(front.fileno()), os.dup(back.fileno())))
    with pytest.raises(FdStoreError, match="not written by a supervisor"):
        place.look()
    place.close()
    assert front.getsockopt(socket.SOL_SOCKET, fd_store._SO_PEEK_OFF) == offset
    front.setblocking(False)
    assert [front.recv(100) for _ in said] == said
    front.close()
    back.close()


def find_and_look(state_dir: str) -> None:
    found = discover.find(state_dir)
    try:
        discover.look(found, state_dir)
    finally:
        found.close()


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_a_handover_that_leads_to_a_strangers_sockets_is_refused(
    tmp_path: Path, kind: socket.SocketKind
) -> None:
    """As that of a supervisor that ran before the machine was booted anew."""
    front, back = socket.socketpair(socket.AF_UNIX, kind)
    back.send(b"hello")
    back.send(b"world")
    inodes = [os.fstat(each.fileno()).st_ino for each in (front, back)]
    (tmp_path / "handover").write_text("{} {}".format(*inodes))
    with forked(lambda: signal.pause()) as stranger:
        before = os.listdir("/proc/self/fd")
        with pytest.raises(FdStoreError, match="not written by a supervisor"):
            find_and_look(str(tmp_path))
        discover.end_leftovers(str(tmp_path))
        assert waiting.is_alive(stranger.pid)
        assert len(os.listdir("/proc/self/fd")) == len(before)
    assert front.recv(5) + front.recv(5) == b"helloworld"
    front.close()
    back.close()


def test_what_a_supervisor_that_was_killed_left_peeking_is_found(place: FdStore) -> None:
    put(place, word="kept")
    place._front.setsockopt(socket.SOL_SOCKET, fd_store._SO_PEEK_OFF, fd_store._MESSAGE_BYTES)
    assert look(place)["word"] == "kept"


def test_a_document_that_could_still_be_changed_is_refused(
    place: FdStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fd_store, "_SEALS", 0)
    put(place)
    monkeypatch.undo()
    with pytest.raises(FdStoreError, match="not a sealed document"):
        place.look()


@pytest.mark.parametrize("text", ["", "become", "become a b c", "become 1 2", "1 2 3 4 5"])
def test_an_odd_environment_is_one_line(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HANDOVER_VARIABLE, text)
    with pytest.raises(FdStoreError, match="not written by a supervisor"):
        reexec.arrive()
    assert HANDOVER_VARIABLE not in os.environ


def test_a_document_for_another_process_is_refused(
    place: FdStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(place, pid=1, containers=[{}], front_end=None)
    front, back = (os.dup(fd) for fd in place.fds)
    monkeypatch.setenv(HANDOVER_VARIABLE, f"become {front} {back} -1")
    with pytest.raises(FdStoreError, match="meant for another process"):
        reexec.arrive()
    put(place, pid=os.getpid())
    front, back = (os.dup(fd) for fd in place.fds)
    monkeypatch.setenv(HANDOVER_VARIABLE, f"become {front} {back} -1")
    with pytest.raises(FdStoreError, match="parts of the document are missing"):
        reexec.arrive()


def test_what_systemd_has_kept_is_taken_only_by_the_process_it_is_for() -> None:
    for environment in (
        {},
        {"LISTEN_PID": "1", "LISTEN_FDS": "2", "LISTEN_FDNAMES": "forkshim-front:forkshim-back"},
        {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "web.socket"},
    ):
        before = dict(environment)
        assert discover.take_kept(environment) is None
        assert environment == before


def test_contents_close_what_nobody_has_taken() -> None:
    rfd, wfd = fds.pipe(4096)
    FdReader({}, [wfd]).close()
    assert os.read(rfd.fileno(), 1) == b""
    rfd.close()
