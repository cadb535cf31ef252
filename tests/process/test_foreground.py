"""What ends a daemon before it supervises: its caller is told, and nothing is left."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from supervisor.cli import foreground
from supervisor.container.request import ContainerSpec, StartRequest
from supervisor.linux.errors import MachineError
from supervisor.state import claim

if TYPE_CHECKING:
    from pathlib import Path

    from supervisor.container.request import Outcome
    from supervisor.state.directory import StateDirectory
    from supervisor.state.log import Log

pytestmark = pytest.mark.process
REQUEST = StartRequest(ContainerSpec("web", "/", "runc"))


@pytest.fixture
def claimed(tmp_path: Path) -> claim.Claim:
    tmp_path.chmod(0o755)
    made = claim.claim(str(tmp_path), "web")
    made.make_state_dir({})
    return made


def refuse(_log: Log, _state_dir: StateDirectory) -> Outcome:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def test_a_refusal_of_the_machine_is_status_71(tmp_path: Path, claimed: claim.Claim) -> None:
    error = foreground.supervise_in_daemon(claimed, REQUEST, refuse)
    assert isinstance(error, MachineError)
    assert (error.exit_status, str(error)) == (71, "test_foreground.refuse: too many open files")
    assert os.listdir(tmp_path) == []


def test_a_log_that_cannot_be_opened_is_told(tmp_path: Path, claimed: claim.Claim) -> None:
    (tmp_path / "web" / "init" / "shim-log.json").mkdir()
    error = foreground.supervise_in_daemon(claimed, REQUEST, refuse)
    assert isinstance(error, MachineError)
    assert str(error) == "open shim-log.json: is a directory"
    assert os.listdir(tmp_path) == []


def test_a_refusal_to_an_adopter_removes_nothing(tmp_path: Path, claimed: claim.Claim) -> None:
    error = foreground.supervise_in_daemon(claimed, REQUEST, refuse, is_restored=True)
    assert isinstance(error, MachineError)
    assert "init" in os.listdir(tmp_path / "web")
