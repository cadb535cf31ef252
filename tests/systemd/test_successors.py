"""`systemctl reload`, and a supervisor that is killed, in a booted systemd."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.harness import waiting

if TYPE_CHECKING:
    from tests.systemd.conftest import Services

pytestmark = pytest.mark.booted

ROOT = Path(__file__).parents[2]
CRASHES = int(os.environ.get("FORKSHIM_ADOPTIONS", "4"))
COUNTS = """
trap 'echo bye; exit 37' TERM
n=0; while :; do n=$((n+1)); echo line $n; sleep 0.02; done
"""


def _adoptable() -> str:
    text = (ROOT / "systemd" / "forkshim@.service.d" / "adopt.conf").read_text()
    settings = text.split("[Service]\n")[1]
    return f"{settings}RestartSec=100ms\n[Unit]\nStartLimitIntervalSec=0\n[Service]\n"


def _pids(services: Services, unit: str) -> tuple[str, str]:
    """Return the pids of the supervisor and of the container, as the status line has it."""
    shown = services.bed.show(unit, "MainPID", "StatusText")
    found = re.search(r"pid (\d+)", shown["StatusText"])
    return shown["MainPID"], found[1] if found else ""


def _said(services: Services, unit: str) -> list[str]:
    """Return what the unit's processes have said, by whichever way; not systemd's own words."""
    entries = services.bed.journal(unit)
    return [
        entry["MESSAGE"]
        for entry in entries
        if entry.get("_SYSTEMD_UNIT", unit) == unit
        and entry["_TRANSPORT"] in ("stdout", "journal")
        and entry["_PID"] != "1"
    ]


def _numbers(services: Services, unit: str) -> list[int]:
    said = _said(services, unit)
    return [int(line.removeprefix("line ")) for line in said if line.startswith("line ")]


def _wait_for_more(services: Services, unit: str) -> None:
    count = len(_numbers(services, unit))
    waiting.wait_true(lambda: len(_numbers(services, unit)) > count)


@pytest.mark.parametrize("sink", ["passthrough", "journal", "journal-stream"])
def test_a_reload_keeps_the_processes_and_every_line(services: Services, sink: str) -> None:
    unit = services.start("reload", COUNTS, f"Environment=FORKSHIM_OPTIONS=--log={sink}")
    before = _pids(services, unit)
    for _ in range(4):
        _wait_for_more(services, unit)
        services.bed.ctl("systemctl", "reload", unit, check=True)
        waiting.wait_true(lambda: services.bed.show(unit, "ActiveState")["ActiveState"] == "active")
        assert _pids(services, unit) == before
    _wait_for_more(services, unit)
    services.bed.ctl("systemctl", "stop", unit, check=True)
    numbers = _numbers(services, unit)
    # A worker that is killed between its send and its note of it has sent one record twice.
    assert sorted(set(numbers)) == list(range(1, numbers[-1] + 1))
    assert len(numbers) - len(set(numbers)) <= (4 if sink == "journal" else 0)
    assert services.bed.show(unit, "NRestarts")["NRestarts"] == "0"


@pytest.mark.parametrize("sink", ["passthrough", "journal"])
def test_a_killed_supervisor_is_followed_by_another(services: Services, sink: str) -> None:
    drop_in = f"{_adoptable()}Environment=FORKSHIM_OPTIONS=--log={sink}"
    unit = services.start("crash", COUNTS, drop_in)
    name = unit.removeprefix("forkshim@").removesuffix(".service")
    _main, payload = _pids(services, unit)
    for crash in range(1, CRASHES + 1):
        _wait_for_more(services, unit)
        services.bed.ctl("systemctl", "kill", "-s", "KILL", "--kill-who=main", unit, check=True)
        waiting.wait_true(lambda: services.bed.show(unit, "NRestarts")["NRestarts"] == str(crash))  # noqa: B023
        services.bed.wait_until_active(unit)
        assert _pids(services, unit)[1] == payload
    _wait_for_more(services, unit)
    services.bed.ctl("systemctl", "stop", unit, check=True)
    numbers = _numbers(services, unit)
    assert sorted(set(numbers)) == list(range(1, numbers[-1] + 1))
    assert len(numbers) - len(set(numbers)) <= (CRASHES if sink == "journal" else 0)
    assert "bye" in _said(services, unit)
    record = json.loads(services.bed.read(f"/run/forkshim-exits/{name}.json"))
    assert (record["exitCode"], record["stopRequested"]) == (37, True)


def test_an_end_that_nobody_saw_is_the_true_one(services: Services) -> None:
    """Supervisor, workers and container are killed at once: only systemd has anything left."""
    unit = services.start("all", COUNTS, _adoptable() + "Restart=on-abnormal")
    name = unit.removeprefix("forkshim@").removesuffix(".service")
    _wait_for_more(services, unit)
    services.bed.ctl("systemctl", "kill", "-s", "KILL", "--kill-who=all", unit, check=True)
    assert services.bed.wait_until_inactive(unit) == "failed"
    record = json.loads(services.bed.read(f"/run/forkshim-exits/{name}.json"))
    assert (record["signal"], record["status"]) == ("SIGKILL", 137)
    assert services.bed.show(unit, "NRestarts", "ExecMainStatus") == {
        "NRestarts": "1",
        "ExecMainStatus": "137",
    }


def test_what_was_kept_of_an_earlier_run_is_not_adopted_by_the_next(services: Services) -> None:
    unit = services.start("twice", "echo ready; sleep 0.3; exit 3", _adoptable(), check=False)
    waiting.wait_true(
        lambda: int(services.bed.show(unit, "NRestarts")["NRestarts"]) >= 2, limit_s=30
    )
    services.bed.ctl("systemctl", "stop", unit)
    ready = [line for line in _said(services, unit) if line == "ready"]
    assert len(ready) >= 2, "each restart is a run of its own"
    assert not any("adopting" in line for line in _said(services, unit))
