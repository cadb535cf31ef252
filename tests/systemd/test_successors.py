"""`systemctl reload`, and a supervisor that is killed, in a booted systemd."""

from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING

import pytest

from tests.harness import waiting

if TYPE_CHECKING:
    from tests.systemd.conftest import Services

pytestmark = pytest.mark.booted

EXAMPLES = "/usr/share/doc/forkshim/examples/forkshim@.service.d"
ADOPT = f"{EXAMPLES}/adopt.conf"
NEWER = f"{EXAMPLES}/newer-systemd.conf"
CRASHES = int(os.environ.get("FORKSHIM_ADOPTIONS", "4"))
COUNTS = """
trap 'echo bye; exit 37' TERM
n=0; while :; do n=$((n+1)); echo line $n; sleep 0.02; done
"""


def _adoptable(services: Services) -> str:
    """Return the shipped settings, with quicker and more restarts."""
    settings = services.bed.read(ADOPT).split("[Service]\n")[1]
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


@pytest.mark.parametrize("drop_ins", [[ADOPT], [ADOPT, NEWER]], ids=["adopt", "adopt and newer"])
def test_the_shipped_drop_in_is_all_that_adoption_needs(
    services: Services, drop_ins: list[str]
) -> None:
    """As README has it: copy adopt.conf, start, and whoever kills the supervisor ends nothing."""
    unit = services.add("shipped", COUNTS)
    name = unit.removeprefix("forkshim@").removesuffix(".service")
    directory = f"/etc/systemd/system/{unit}.d"
    services.bed.ctl("install", "-D", "-m644", "-t", directory, *drop_ins, check=True)
    services.bed.ctl("systemctl", "daemon-reload", check=True)
    services.bed.ctl("systemctl", "start", unit, check=True)
    _wait_for_more(services, unit)
    main, payload = _pids(services, unit)
    services.bed.ctl("kill", "-KILL", main, check=True)
    waiting.wait_true(lambda: services.bed.show(unit, "NRestarts")["NRestarts"] == "1")
    services.bed.wait_until_active(unit)
    after = _pids(services, unit)
    assert after[0] != main
    assert after[1] == payload
    _wait_for_more(services, unit)
    failed = services.bed.ctl("systemctl", "list-units", "--failed", "--plain", "--no-legend")
    assert failed.stdout == ""
    services.bed.ctl("systemctl", "stop", unit, check=True)
    assert services.bed.show(unit, "ExecMainStatus") == {"ExecMainStatus": "37"}
    numbers = _numbers(services, unit)
    assert numbers == list(range(1, numbers[-1] + 1))
    record = json.loads(services.bed.read(f"/run/forkshim-exits/{name}.json"))
    assert (record["exitCode"], record["signal"], record["error"]) == (37, None, None)


@pytest.mark.parametrize("sink", ["passthrough", "journal"])
def test_a_killed_supervisor_is_followed_by_another(services: Services, sink: str) -> None:
    drop_in = f"{_adoptable(services)}Environment=FORKSHIM_OPTIONS=--log={sink}"
    unit = services.start("crash", COUNTS, drop_in)
    name = unit.removeprefix("forkshim@").removesuffix(".service")
    _main, payload = _pids(services, unit)
    for crash in range(1, CRASHES + 1):
        _wait_for_more(services, unit)
        signame = "ABRT" if crash % 2 else "KILL"  # the first is the watchdog's
        services.bed.ctl("systemctl", "kill", "-s", signame, "--kill-who=main", unit, check=True)
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
    unit = services.start("all", COUNTS, _adoptable(services) + "Restart=on-abnormal")
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
    unit = services.start(
        "twice", "echo ready; sleep 0.3; exit 3", _adoptable(services), check=False
    )
    waiting.wait_true(
        lambda: int(services.bed.show(unit, "NRestarts")["NRestarts"]) >= 2, limit_s=30
    )
    services.bed.ctl("systemctl", "stop", unit)
    ready = [line for line in _said(services, unit) if line == "ready"]
    assert len(ready) >= 2, "each restart is a run of its own"
    assert not any("adopting" in line for line in _said(services, unit))


def test_a_killed_daemon_of_the_package_comes_back_by_itself(services: Services) -> None:
    """README: the fd holder of `forkshim run --detach` starts a successor itself."""
    bed = services.bed
    name = services.add("daemon", COUNTS).removeprefix("forkshim@").removesuffix(".service")
    log, home = f"/root/{name}.log", f"/run/forkshim/{name}"
    command = ("run", "--detach", "--log", f"file:{log}", "--bundle", f"/var/lib/forkshim/{name}")
    bed.ctl("forkshim", *command, name, check=True)

    def supervisor() -> str:
        path = bed.path(f"{home}/supervisor.pid")
        return path.read_text().strip() if path.exists() else ""

    def titles() -> str:
        return bed.ctl("pgrep", "--list-full", "--full", f"^forkshim: {name}").stdout

    first, container = supervisor(), bed.read(f"{home}/init/pid")
    waiting.wait_true(lambda: f"forkshim: {name} [fds]" in titles())
    bed.ctl("kill", "-KILL", first, check=True)
    waiting.wait_true(lambda: supervisor() not in ("", first))
    lines = len(bed.read(log).splitlines())
    waiting.wait_true(lambda: len(bed.read(log).splitlines()) > lines)
    assert bed.read(f"{home}/init/pid") == container
    bed.ctl("kill", "-TERM", supervisor(), check=True)
    waiting.wait_true(bed.path(f"{home}/init/exitStatus").exists)
    assert bed.read(f"{home}/init/exitStatus") == "37"
    said = bed.read(log).splitlines()
    assert said == [*(f"line {n}" for n in range(1, len(said))), "bye"]
    waiting.wait_true(lambda: titles() == "")
