"""Where supervisor and container sit in the cgroup of a unit, on a booted systemd."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.harness import bundles, waiting

if TYPE_CHECKING:
    from tests.systemd.conftest import Services

pytestmark = pytest.mark.booted

STAYS = "trap 'exit 143' TERM; echo ready; while :; do sleep 0.1; done"
CGROUPS = "/sys/fs/cgroup"
# Both are the unit's main process, but one starts where DelegateSubgroup= (v254) would start it.
RUN = "exec /usr/bin/forkshim run --bundle /var/lib/forkshim/%i %i"
IN_SUBGROUP = (
    'd=/sys/fs/cgroup$(sed -n s/^0:://p /proc/self/cgroup)/supervisor; mkdir "$d"; echo $$ >"$d/'
    'cgroup.procs"; '
)


def exec_start(script: str) -> str:
    """Return the drop-in that starts the unit by a shell script."""
    quoted = script.replace("$", "$$").replace('"', '\\"')
    return f'ExecStart=\nExecStart=/bin/sh -c "{quoted}"'


def control_group(services: Services, unit: str) -> str:
    return services.bed.show(unit, "ControlGroup")["ControlGroup"]


def members(services: Services, group: str) -> set[str]:
    """Return the command lines of the processes in a cgroup, those below it apart."""
    # The kernel gives pids as the reader knows them: this machine's.
    pids = services.bed.read(f"{CGROUPS}{group}/cgroup.procs").split()
    return {Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").rstrip(" ") for pid in pids}


def place_of_container(services: Services, name: str) -> str:
    state = json.loads(services.bed.ctl("runc", "state", name, check=True).stdout)
    # The kernel gives paths as the reader knows them, so the reader is one in the bed.
    shown = services.bed.ctl("cat", f"/proc/{state['pid']}/cgroup", check=True).stdout
    lines = shown.splitlines()
    return next(line.removeprefix("0::") for line in lines if line.startswith("0::"))


def container_name(unit: str) -> str:
    return unit.removeprefix("forkshim@").removesuffix(".service")


def test_supervisor_and_container_are_parts_of_the_unit_and_gone_with_it(
    services: Services, bundle_dir: Path
) -> None:
    unit = services.start("parts", STAYS)
    name = container_name(unit)
    group = control_group(services, unit)
    assert members(services, group) == set()
    titles = {f"forkshim: {name}{worker}" for worker in ("", " [fds]", " [stdout]")}
    waiting.wait_true(lambda: members(services, f"{group}/supervisor") == titles)
    assert place_of_container(services, name) == f"{group}/payload"

    status = services.bed.ctl("systemctl", "status", "--no-pager", "--full", unit).stdout
    assert "payload" in status
    assert "trap 'exit 143' TERM" in status
    top = services.bed.ctl("systemd-cgtop", "--batch", "--iterations=1", "--depth=9", group[1:])
    assert f"{group}/payload" in top.stdout or f"{group[1:]}/payload" in top.stdout

    given = json.loads((bundle_dir / name / "config.json").read_text())
    assert "cgroupsPath" not in given["linux"], "the user's bundle is not written to"
    services.bed.ctl("systemctl", "stop", unit, check=True)
    assert services.bed.wait_until_inactive(unit) == "inactive"
    assert not services.bed.path(CGROUPS + group).exists()


def test_what_both_say_is_the_units_in_the_journal(services: Services) -> None:
    dev_log = bundles.bind("/run/systemd/journal/dev-log", "/dev/log")
    # Its logger lives on: journald asks /proc whose cgroup a sender is in, when it comes to it.
    unit = services.start(
        "says", f"{{ echo from inside; exec sleep 1000; }} | logger & {STAYS}", mounts=[dev_log]
    )
    group = control_group(services, unit)

    def entries_by_message() -> dict[str, dict[str, str]]:
        return {entry["MESSAGE"]: entry for entry in services.bed.journal(unit)}

    waiting.wait_true(lambda: {"from inside", "ready"} <= entries_by_message().keys())
    entries = entries_by_message()
    assert entries["from inside"]["_SYSTEMD_CGROUP"] == f"{group}/payload"
    assert entries["ready"]["_SYSTEMD_CGROUP"] == f"{group}/supervisor"
    assert {entries[line]["_SYSTEMD_UNIT"] for line in ("from inside", "ready")} == {unit}


def test_a_bundles_own_cgroup_is_kept(services: Services) -> None:
    unit = services.start("own", STAYS, linux={"cgroupsPath": "/elsewhere/own"})
    assert place_of_container(services, container_name(unit)) == "/elsewhere/own"
    services.bed.ctl("systemctl", "stop", unit, check=True)
    services.bed.ctl("rmdir", f"{CGROUPS}/elsewhere", check=True)


def test_a_scope_of_systemds_is_the_runtimes_choice(services: Services) -> None:
    options = "Environment='FORKSHIM_OPTIONS=--runtime-arg=--systemd-cgroup'"
    unit = services.start("scope", STAYS, options)
    name = container_name(unit)
    assert place_of_container(services, name).endswith(f"/runc-{name}.scope")


@pytest.mark.parametrize(
    ("settings", "of_supervisor"),
    [
        ("Delegate=no", ""),
        # Not the main process: what is beside it in the unit is not ours to move away from.
        (exec_start(RUN.removeprefix("exec ") + "; exit 0"), ""),
        (exec_start("unset SYSTEMD_EXEC_PID; " + RUN), ""),
    ],
    ids=["not delegated", "a script's child", "a systemd before v248"],
)
def test_elsewhere_the_runtime_chooses(
    services: Services, settings: str, of_supervisor: str
) -> None:
    unit = services.start("plain", STAYS, f"NotifyAccess=all\nType=exec\n{settings}")
    name = container_name(unit)
    waiting.wait_true(lambda: services.lines(unit) == ["ready"])
    group = control_group(services, unit)
    assert f"forkshim: {name}" in members(services, group + of_supervisor)
    parent = group.rpartition("/")[0]
    assert place_of_container(services, name) == f"{parent}/{name}", "runc's own choice"


def test_who_is_in_the_supervisors_part_already_stays_there(services: Services) -> None:
    unit = services.start("sub", STAYS, exec_start(IN_SUBGROUP + RUN))
    group = control_group(services, unit)
    name = container_name(unit)
    assert f"forkshim: {name}" in members(services, f"{group}/supervisor")
    assert place_of_container(services, name) == f"{group}/payload"


def test_where_the_kernel_refuses_it_is_said_and_the_container_runs(services: Services) -> None:
    forbid = 'echo 0 >"/sys/fs/cgroup$(sed -n s/^0:://p /proc/self/cgroup)/cgroup.max.descendants"'
    unit = services.start("full", STAYS, exec_start(f"{forbid}; {RUN}"))
    group = control_group(services, unit)
    waiting.wait_true(lambda: "ready" in services.lines(unit))
    assert services.lines(unit) == [
        f"forkshim: move to cgroup {CGROUPS}{group}/supervisor: resource temporarily unavailable; "
        "the runtime chooses the container's cgroup",
        "ready",
    ]


def test_a_killed_supervisor_takes_its_container_along_and_is_started_again(
    services: Services,
) -> None:
    unit = services.start("again", STAYS, "RestartSec=10ms")
    name = container_name(unit)
    group = control_group(services, unit)
    first = services.bed.show(unit, "MainPID")["MainPID"]
    services.bed.ctl("kill", "-KILL", first, check=True)
    waiting.wait_true(lambda: services.lines(unit) == ["ready", "ready"])
    assert services.bed.show(unit, "MainPID")["MainPID"] != first
    assert len(members(services, f"{group}/payload")) in (1, 2), "sh, and its sleep"
    assert place_of_container(services, name) == f"{group}/payload"
