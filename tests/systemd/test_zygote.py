"""Units whose supervisors a zygote forks: systemd sees what it sees without one."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.harness import waiting
from tests.harness.engine import FORKSHIM
from tests.harness.zygotes import make_commands
from tests.systemd.conftest import LAUNCHER, ROOT, Services, make_bed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.beds.nspawn import Bed

pytestmark = pytest.mark.booted

OBEYS = "trap 'echo bye; exit 143' TERM; echo ready; while :; do sleep 0.1; done"
PROGRAMS = "/usr/lib/forkshim/bin"
ZYGOTE = "forkshim-zygote.service"


@pytest.fixture(scope="module")
def bed(bundle_dir: Path, rootfs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    """A booted systemd with forkshim as the package has it, and a zygote."""
    commands = tmp_path_factory.mktemp("commands")
    make_commands(commands, "/run/forkshim-zygote", Path(PROGRAMS))
    programs = {
        f"{PROGRAMS}/forkshim": LAUNCHER.format(root=ROOT, program=FORKSHIM),
        "/usr/bin/forkshim": (commands / "forkshim").read_text(),
    }
    with make_bed(bundle_dir, rootfs) as booted:
        for path, text in programs.items():
            booted.write(path, text)
            booted.path(path).chmod(0o755)
        booted.ctl("systemctl", "start", ZYGOTE, check=True)
        yield booted


def supervisor_of(services: Services, unit: str) -> int:
    name = unit.removeprefix("forkshim@").removesuffix(".service")
    return int(services.bed.read(f"/run/forkshim/{name}/supervisor.pid"))


def main_pid(services: Services, unit: str) -> int:
    return int(services.bed.show(unit, "MainPID")["MainPID"])


def test_it_lives_and_ends_as_any_unit(services: Services) -> None:
    unit = services.start_ready("warm", OBEYS)
    shown = services.bed.show(unit, "ActiveState", "SubState", "StatusText")
    assert (shown["ActiveState"], shown["SubState"]) == ("active", "running")
    assert shown["StatusText"].startswith("running, pid ")
    supervisor, main = supervisor_of(services, unit), main_pid(services, unit)
    assert supervisor != main
    assert services.bed.read(f"/proc/{main}/comm").strip() == "forkshim"
    groups = {services.bed.read(f"/proc/{pid}/cgroup") for pid in (supervisor, main)}
    assert len(groups) == 1
    assert unit in groups.pop()
    services.bed.ctl("systemctl", "stop", unit, check=True)
    assert services.bed.wait_until_inactive(unit) == "inactive"
    assert services.lines(unit) == ["ready", "bye"]
    entry = next(e for e in services.bed.journal(unit) if e["MESSAGE"] == "bye")
    assert entry["_SYSTEMD_UNIT"] == unit


@pytest.mark.parametrize("status", [3, 137])
def test_the_containers_failure_is_the_units(services: Services, status: int) -> None:
    unit = services.start("fails", f"exit {status}", "Restart=no", check=False)
    assert services.bed.wait_until_inactive(unit) == "failed"
    shown = services.bed.show(unit, "Result", "ExecMainStatus")
    assert shown == {"Result": "exit-code", "ExecMainStatus": str(status)}


def test_a_killed_supervisor_is_a_killed_main_process(services: Services) -> None:
    unit = services.start_ready("killed", OBEYS, "Restart=no")
    services.bed.ctl("kill", "-KILL", str(supervisor_of(services, unit)), check=True)
    assert services.bed.wait_until_inactive(unit) == "failed"
    shown = services.bed.show(unit, "Result", "ExecMainStatus")
    assert shown == {"Result": "signal", "ExecMainStatus": str(int(signal.SIGKILL))}


def test_a_supervisor_that_hangs_is_noticed_by_the_watchdog(services: Services) -> None:
    unit = services.start_ready("hangs", OBEYS, "Restart=no\nWatchdogSec=2")
    services.bed.ctl("kill", "-STOP", str(supervisor_of(services, unit)), check=True)
    assert services.bed.wait_until_inactive(unit) == "failed"
    assert services.bed.show(unit, "Result") == {"Result": "watchdog"}


def test_it_is_reloaded_and_outlives_its_zygote(services: Services) -> None:
    unit = services.start_ready("lives", OBEYS)
    before = (main_pid(services, unit), supervisor_of(services, unit))
    waiting.wait_true(lambda: services.lines(unit) == ["ready"])
    services.bed.ctl("systemctl", "reload", unit, check=True)
    home = f"/run/forkshim/{unit.removeprefix('forkshim@').removesuffix('.service')}"
    waiting.wait_true(lambda: "goes on, process" in services.bed.read(f"{home}/init/shim-log.json"))
    services.bed.ctl("systemctl", "restart", ZYGOTE, check=True)
    assert (main_pid(services, unit), supervisor_of(services, unit)) == before
    services.bed.ctl("systemctl", "stop", unit, check=True)
    assert services.bed.wait_until_inactive(unit) == "inactive"
    assert services.lines(unit) == ["ready", "bye"]


def test_without_a_zygote_it_is_started_as_always(services: Services) -> None:
    services.bed.ctl("systemctl", "stop", ZYGOTE, check=True)
    try:
        unit = services.start_ready("cold", OBEYS)
        assert supervisor_of(services, unit) == main_pid(services, unit)
        services.bed.ctl("systemctl", "stop", unit, check=True)
        assert services.lines(unit) == ["ready", "bye"]
    finally:
        services.bed.ctl("systemctl", "start", ZYGOTE, check=True)


def test_a_unit_with_a_sandbox_has_a_supervisor_of_its_own(services: Services) -> None:
    unit = services.start_ready("boxed", OBEYS, "NoNewPrivileges=yes")
    assert supervisor_of(services, unit) == main_pid(services, unit)
    services.bed.ctl("systemctl", "stop", unit, check=True)
    assert services.lines(unit) == ["ready", "bye"]
