"""The deposit: all or nothing, the newest, for one version, without a leak."""

from __future__ import annotations

import os
import signal
import socket
from typing import TYPE_CHECKING, Any

import pytest

from supervisor import adoption, deposit, fds, upgrade
from supervisor.deposit import Contents, Deposit, DepositError, Parcel
from tests.harness.forked import forked

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.process


@pytest.fixture
def place() -> Iterator[Deposit]:
    made = Deposit()
    yield made
    made.close()


def put(place: Deposit, **document: Any) -> None:
    """Put the document there, with /dev/null as `null`."""
    parcel = Parcel()
    with open(os.devnull) as null:
        index = parcel.add(null.fileno())
        place.put({**document, "null": index}, parcel)


def look(place: Deposit) -> dict[str, Any]:
    contents = place.look()
    contents.close()
    return contents.document


def test_what_was_put_last_is_there_for_everybody(place: Deposit) -> None:
    with pytest.raises(DepositError, match="temporarily unavailable"):
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
    with pytest.raises(DepositError, match="no descriptor 0"):
        contents.take(0)
    with pytest.raises(DepositError, match="no descriptor 7"):
        contents.take(7)
    assert not contents.take(-1).is_open
    contents.close()


def test_a_kill_between_the_new_and_the_old_leaves_the_new(
    place: Deposit, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(place, word="old")

    def put_and_die() -> None:
        monkeypatch.setattr(
            Deposit, "_drop_all_but_the_last", lambda _self: os.kill(os.getpid(), signal.SIGKILL)
        )
        put(place, word="new")

    with forked(put_and_die) as child:
        child.wait()
    assert look(place)["word"] == "new"


def test_it_outlives_its_maker(place: Deposit) -> None:
    copies = (os.dup(place.fds[0]), os.dup(place.fds[1]))
    put(place, word="kept")
    place.close()
    again = Deposit(ends=copies)
    assert look(again)["word"] == "kept"
    again.close()


def test_what_does_not_fit_changes_nothing(place: Deposit) -> None:
    put(place, word="kept")
    parcel = Parcel()
    for _ in range(253):
        parcel.add(0)
    with pytest.raises(DepositError, match="254 descriptors"):
        place.put({}, parcel)
    with pytest.raises(DepositError, match="handover: "):
        place.put({"name": "\udcff"}, Parcel())
    assert look(place)["word"] == "kept"


def test_another_version_is_refused(place: Deposit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deposit, "VERSION", 99)
    put(place)
    monkeypatch.undo()
    with pytest.raises(DepositError, match=r"state version 99, this forkshim reads \d+$"):
        place.look()


def test_somebody_elses_sockets_are_refused() -> None:
    with pytest.raises(DepositError, match="handover: "), open(os.devnull) as null:
        Deposit(ends=(null.fileno(), null.fileno()))
    front, back = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    back.send(b"hello")
    place = Deposit(ends=(front.detach(), back.detach()))
    with pytest.raises(DepositError, match="not a supervisor's"):
        place.look()
    place.close()


def test_a_document_that_could_still_be_changed_is_refused(
    place: Deposit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deposit, "_SEALS", 0)
    put(place)
    monkeypatch.undo()
    with pytest.raises(DepositError, match="not a sealed document"):
        place.look()


@pytest.mark.parametrize("text", ["", "become", "become a b c", "become 1 2", "1 2 3 4 5"])
def test_an_odd_environment_is_one_line(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(upgrade.VARIABLE, text)
    with pytest.raises(DepositError, match="not ours"):
        upgrade.arrive()
    assert upgrade.VARIABLE not in os.environ


def test_a_document_for_another_process_is_refused(
    place: Deposit, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(place, pid=1, front={}, order={}, supervisor={})
    front, back = (os.dup(fd) for fd in place.fds)
    monkeypatch.setenv(upgrade.VARIABLE, f"become {front} {back} -1")
    with pytest.raises(DepositError, match="meant for another process"):
        upgrade.arrive()
    put(place, pid=os.getpid())
    front, back = (os.dup(fd) for fd in place.fds)
    monkeypatch.setenv(upgrade.VARIABLE, f"become {front} {back} -1")
    with pytest.raises(DepositError, match="parts of the document are missing"):
        upgrade.arrive()


def test_what_systemd_has_kept_is_taken_only_by_the_process_it_is_for() -> None:
    for environment in (
        {},
        {"LISTEN_PID": "1", "LISTEN_FDS": "2", "LISTEN_FDNAMES": "forkshim-front:forkshim-back"},
        {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "web.socket"},
    ):
        before = dict(environment)
        assert adoption.take_kept(environment) is None
        assert environment == before


def test_contents_close_what_nobody_has_taken() -> None:
    rfd, wfd = fds.pipe(4096)
    Contents({}, [wfd]).close()
    assert os.read(rfd.fileno(), 1) == b""
    rfd.close()
