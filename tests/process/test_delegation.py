"""Our place in a unit's control group, in directories that look like one; the real ones are in the
booted beds (tests/systemd).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from supervisor.linux.errors import ShimError
from supervisor.systemd import delegation

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.process

UNIT = "/system.slice/web.service"
OURS = {"SYSTEMD_EXEC_PID": str(os.getpid())}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hierarchy of cgroup v2 with one delegated unit, in which we are."""
    (tmp_path / "cgroup.controllers").write_text("cpu memory\n")
    unit = tmp_path / UNIT.lstrip("/")
    unit.mkdir(parents=True)
    (unit / "cgroup.controllers").write_text("memory\n")
    os.setxattr(unit, "user.delegate", b"1")
    monkeypatch.setattr(delegation, "ROOT", str(tmp_path))
    monkeypatch.setattr(delegation, "membership", lambda _pid: {"": UNIT})
    return unit


def test_the_supervisor_leaves_the_unit_for_a_part_of_it(root: Path) -> None:
    assert delegation.enter_unit(OURS) == f"{UNIT}/payload"
    assert (root / "supervisor" / "cgroup.procs").read_text() == "0"


def test_who_is_there_already_stays(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delegation, "membership", lambda _pid: {"": f"{UNIT}/supervisor"})
    assert delegation.enter_unit(OURS) == f"{UNIT}/payload"
    assert not (root / "supervisor").exists()
    assert delegation.scope_beside_unit(OURS, "web") == ""


def test_a_refusal_is_said(root: Path) -> None:
    (root / "supervisor").write_text("")
    with pytest.raises(ShimError, match=r"^move to cgroup .*/supervisor: file exists$"):
        delegation.enter_unit(OURS)


@pytest.mark.parametrize("environment", [{}, {"SYSTEMD_EXEC_PID": "1"}])
def test_a_units_script_has_nothing_to_divide(root: Path, environment: dict[str, str]) -> None:
    assert delegation.enter_unit(environment) == ""
    assert delegation.scope_beside_unit(environment, "web") == ""


def test_a_unit_that_is_not_delegated_is_left_alone(root: Path) -> None:
    os.removexattr(root, "user.delegate")
    assert delegation.enter_unit(OURS) == ""


def test_a_scope_is_in_the_units_slice(root: Path) -> None:
    assert delegation.scope_beside_unit(OURS, "a+b") == r"system.slice:forkshim:a\x2bb"
    (root / "cgroup.controllers").write_text("\n")
    assert delegation.scope_beside_unit(OURS, "web") == ""
