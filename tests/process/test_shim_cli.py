"""`forkshim-shim`: what it says, and where, when there is nothing to supervise."""

from __future__ import annotations

import errno
import json
import os
import sys
from typing import TYPE_CHECKING, NoReturn

import pytest

from supervisor.container.request import ContainerSpec, Origin, Outcome, StartRequest
from supervisor.frontends import statedir
from supervisor.linux.errors import RuntimeFailedError, ShimError
from supervisor.linux.exit_status import Exited

if TYPE_CHECKING:
    from pathlib import Path

    from supervisor.state.directory import StateDirectory
    from supervisor.state.log import Log
from workers.common.records import replace

pytestmark = pytest.mark.process

WORDS = ["web", "/bundle", "runc"]
USAGE = "usage: forkshim-shim ID BUNDLE RUNTIME  (in the state directory)\n"


@pytest.fixture
def state_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["forkshim-shim", *WORDS])
    return tmp_path


def _logged(state_dir: Path) -> list[tuple[str, str]]:
    records = [json.loads(line) for line in (state_dir / "shim-log.json").read_text().splitlines()]
    return [(record["level"], record["msg"]) for record in records]


def _supervising(
    monkeypatch: pytest.MonkeyPatch, outcome: Outcome | BaseException
) -> list[StartRequest]:
    """Have `outcome` be what supervising brings; returns the orders that it gets."""
    orders: list[StartRequest] = []

    def supervise(order: StartRequest, _log: Log, _state_dir: StateDirectory) -> Outcome:
        orders.append(order)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    monkeypatch.setattr(statedir, "supervise", supervise)
    return orders


@pytest.mark.parametrize("words", [[], WORDS[:1], WORDS[:2], [*WORDS, "more"]], ids=len)
def test_any_number_of_words_but_three_is_told_its_usage_and_begins_nothing(
    state_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
) -> None:
    orders = _supervising(monkeypatch, Outcome(Exited(0), None))
    monkeypatch.setattr(sys, "argv", ["forkshim-shim", *words])
    assert statedir.run_command() == 1
    assert capsys.readouterr() == ("", USAGE)
    assert (orders, os.listdir(state_dir)) == ([], [])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (os.mkdir, "open shim-log.json: is a directory"),
        (lambda path: os.symlink("x", path), "open shim-log.json: too many levels of symbolic"),
    ],
    ids=["directory", "link"],
)
def test_a_log_that_cannot_be_opened_is_told_on_stderr_and_nothing_begins(
    state_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    make: object,
    said: str,
) -> None:
    assert callable(make)
    make(state_dir / "shim-log.json")
    orders = _supervising(monkeypatch, Outcome(Exited(0), None))
    assert statedir.run_command() == 1
    assert orders == []
    assert capsys.readouterr().err.startswith(f"forkshim-shim: {said}")


def test_the_three_words_are_the_order(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["forkshim-shim", "web", "bundle", "./runtime"])
    orders = _supervising(monkeypatch, Outcome(Exited(7), None))
    assert statedir.run_command() == 0  # whatever the process's own status is
    (order,) = orders
    assert order.origin.command[1:] == (*sys.orig_argv[1:],)
    spec = ContainerSpec("web", f"{state_dir}/bundle", f"{state_dir}/runtime")
    assert replace(order, origin=Origin()) == StartRequest(spec)
    assert _logged(state_dir) == []


@pytest.mark.parametrize(
    ("outcome", "status", "level", "said"),
    [
        (Outcome(None, RuntimeFailedError("why")), 0, "info", "why"),
        (Outcome(None, ShimError("why")), 1, "error", "why"),
        (ShimError("why"), 1, "error", "why"),
        (OSError(errno.ENFILE, os.strerror(errno.ENFILE)), 1, "error",
         "test_shim_cli.supervise: too many open files in system"),
    ],
    ids=["runtime", "outcome", "shim", "machine"],
)  # fmt: skip
def test_an_error_is_one_record_and_its_status(
    state_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    outcome: Outcome | BaseException,
    status: int,
    level: str,
    said: str,
) -> None:
    _supervising(monkeypatch, outcome)
    assert statedir.run_command() == status
    assert _logged(state_dir) == [(level, said)]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["", "/b", "runc"], "container id "),
        (["a/b", "/b", "runc"], "container id "),
        (["web", "", "runc"], "bundle and runtime must not be empty"),
        (["web", "/b", ""], "bundle and runtime must not be empty"),
    ],
)
def test_words_that_are_no_names_are_an_error_in_the_log(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    orders = _supervising(monkeypatch, Outcome(Exited(0), None))
    monkeypatch.setattr(sys, "argv", ["forkshim-shim", *words])
    assert statedir.run_command() == 1
    ((level, message),) = _logged(state_dir)
    assert level == "error"
    assert message.startswith(said)
    assert orders == []


def test_a_bug_is_logged_as_one_in_one_line(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def has_a_bug(_order: StartRequest, _log: Log, _state_dir: StateDirectory) -> NoReturn:
        raise ZeroDivisionError("by nothing")

    monkeypatch.setattr(statedir, "supervise", has_a_bug)
    assert statedir.run_command() == 1
    ((level, message),) = _logged(state_dir)
    assert level == "error"
    assert message.startswith("bug: ZeroDivisionError: by nothing (test_shim_cli.has_a_bug, line ")
