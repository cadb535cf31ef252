"""What systemd gives back to a successor, by sd_listen_fds(3)."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest

from supervisor.handover import discover
from supervisor.linux.exit_status import Exited
from supervisor.state.fd_store import FdStore, FdWriter
from tests.harness.forked import forked

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.process

NAMES = ":".join(discover.KEPT_NAMES)


def _started(ends: list[int], names: str, check: Callable[[dict[str, str]], None]) -> None:
    """Call `check` in a child that has `ends` as systemd gives them: from descriptor 3 on."""

    def work() -> None:
        high = [os.dup2(end, 200 + index) for index, end in enumerate(ends)]
        for index, fd in enumerate(high):
            os.dup2(fd, 3 + index)
        listed = {"LISTEN_FDNAMES": names, "LISTEN_FDS": str(len(ends))}
        check({**listed, "LISTEN_PID": str(os.getpid()), "TERM": "dumb"})

    with forked(work) as child:
        assert child.wait() == Exited(0)


@pytest.fixture
def ends() -> list[int]:
    """The ends of a deposit with something in it; open for as long as this process lives."""
    deposit = FdStore()
    deposit.put({"word": "said"}, FdWriter())
    kept = [os.dup(end) for end in deposit.fds]
    deposit.close()
    return kept


def test_what_was_kept_is_taken_and_the_environment_tells_no_more_of_it(ends: list[int]) -> None:
    def check(environment: dict[str, str]) -> None:
        kept = discover.take_kept(environment)
        assert kept is not None
        assert kept.fds == (3, 4)
        assert not os.get_inheritable(3)
        contents = kept.look()
        assert contents.document["word"] == "said"
        assert environment == {"TERM": "dumb"}

    _started(ends, NAMES, check)
    for end in ends:
        os.close(end)


def test_of_several_the_last_counts_and_others_are_left_to_others(ends: list[int]) -> None:
    rfd, wfd = os.pipe()

    def check(environment: dict[str, str]) -> None:
        kept = discover.take_kept(environment)
        assert kept is not None
        assert kept.fds == (6, 7)
        assert os.path.exists("/proc/self/fd/5")  # somebody else's
        for older in (3, 4):
            assert not os.path.exists(f"/proc/self/fd/{older}")
        assert environment["LISTEN_FDNAMES"] == f"{NAMES}:web:{NAMES}"

    _started([*ends, rfd, *ends], f"{NAMES}:web:{NAMES}", check)
    for end in (*ends, rfd, wfd):
        os.close(end)


def test_what_is_not_ours_is_not_taken(ends: list[int]) -> None:
    def check(environment: dict[str, str]) -> None:
        assert discover.take_kept({**environment, "LISTEN_PID": "1"}) is None
        assert discover.take_kept({**environment, "LISTEN_FDNAMES": "web:api"}) is None
        assert discover.take_kept({"TERM": "dumb"}) is None

    _started(ends, NAMES, check)
    for end in ends:
        os.close(end)


def test_sockets_that_are_no_deposit_are_closed() -> None:
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)

    def check(environment: dict[str, str]) -> None:
        assert discover.take_kept(environment) is None
        assert not os.path.exists("/proc/self/fd/3")

    _started([each.fileno() for each in pair], NAMES, check)
    for each in pair:
        each.close()
