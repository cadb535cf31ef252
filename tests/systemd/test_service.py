"""forkshim@.service in a booted systemd: started, read, stopped, killed, failed, restarted."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.harness import bundles, waiting
from tests.systemd.conftest import Services, make_bed

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.booted

# Ends by itself after three seconds of last words, ten a second, as a server that drains does.
LAST_WORDS = """
trap 'echo got TERM; for n in $(seq 1 30); do echo last $n; sleep 0.1; done; exit 0' TERM
echo ready
while :; do sleep 0.1; done
"""
SAID = ["ready", "got TERM", *(f"last {n}" for n in range(1, 31))]
OBEYS = "trap 'echo bye; exit 143' TERM; echo ready; while :; do sleep 0.1; done"


def test_it_is_active_when_its_container_runs_and_its_lines_are_under_its_name(
    services: Services,
) -> None:
    unit = services.start_ready("web", OBEYS)
    shown = services.bed.show(unit, "ActiveState", "SubState", "StatusText", "MainPID", "Type")
    assert (shown["ActiveState"], shown["SubState"], shown["Type"]) == (
        "active",
        "running",
        "notify",
    )
    assert shown["StatusText"].startswith("running, pid ")
    services.bed.ctl("systemctl", "stop", unit, check=True)
    assert services.lines(unit) == ["ready", "bye"]
    entry = next(e for e in services.bed.journal(unit) if e["MESSAGE"] == "bye")
    assert entry["_SYSTEMD_UNIT"] == unit


@pytest.mark.parametrize("how", ["systemctl stop", "systemctl kill", "kill -TERM MAINPID"])
def test_a_stop_is_told_once_and_the_last_words_are_kept(services: Services, how: str) -> None:
    unit = services.start_ready("words", LAST_WORDS)
    match how:
        case "systemctl stop":
            services.bed.ctl("systemctl", "stop", unit, check=True)
        case "systemctl kill":
            services.bed.ctl("systemctl", "kill", "--signal=TERM", "--kill-who=main", unit)
        case _:
            pid = services.bed.show(unit, "MainPID")["MainPID"]
            services.bed.ctl("kill", "-TERM", pid, check=True)
    assert services.bed.wait_until_inactive(unit) == "inactive"
    assert services.bed.show(unit, "Result", "ExecMainStatus") == {
        "Result": "success",
        "ExecMainStatus": "0",
    }
    assert services.lines(unit) == SAID


@pytest.mark.parametrize(
    ("script", "settings"),
    [
        (OBEYS, ""),
        (
            "trap '' TERM; echo ready; while :; do sleep 1; done",
            "Environment=FORKSHIM_OPTIONS=--stop-timeout=0.2",
        ),
    ],
    ids=["dies of it", "has to be killed"],
)
def test_a_stop_that_was_asked_for_is_no_failure(
    services: Services, script: str, settings: str
) -> None:
    unit = services.start_ready("stops", script, settings)
    services.bed.ctl("systemctl", "stop", unit, check=True)
    assert services.bed.wait_until_inactive(unit) == "inactive"


def test_a_grace_period_beyond_the_units_own_limit_is_asked_for(services: Services) -> None:
    script = "trap 'sleep 4; echo done; exit 0' TERM; echo ready; while :; do sleep 0.1; done"
    unit = services.start_ready("slow", script, "TimeoutStopSec=2")
    services.bed.ctl("systemctl", "stop", unit, check=True)
    assert services.bed.wait_until_inactive(unit) == "inactive"
    assert services.lines(unit) == ["ready", "done"]


@pytest.mark.parametrize("status", [1, 3, 137, 143, 255])
def test_the_containers_own_failure_is_the_units(services: Services, status: int) -> None:
    unit = services.start("fails", f"exit {status}", "Restart=no", check=False)
    assert services.bed.wait_until_inactive(unit) == "failed"
    shown = services.bed.show(unit, "Result", "ExecMainStatus")
    assert shown == {"Result": "exit-code", "ExecMainStatus": str(status)}


@pytest.mark.parametrize(
    ("script", "ending"),
    [("exit 137", "exit status 137"), ("kill -KILL $$", "killed by SIGKILL")],
)
def test_a_137_and_a_kill_are_two_reports(services: Services, script: str, ending: str) -> None:
    """For systemd itself both are status 137."""
    # In a namespace of its own it would be PID 1, which no signal from inside can kill.
    unit = services.start("ends", f"echo ready; {script}", "Restart=no", check=False, host_pid=True)
    assert services.bed.wait_until_inactive(unit) == "failed"
    assert ending in services.bed.show(unit, "StatusText")["StatusText"]
    name = unit.removeprefix("forkshim@").removesuffix(".service")
    said = [str(entry["MESSAGE"]) for entry in services.bed.journal(unit)]
    (line,) = (each for each in said if each.startswith("forkshim: "))
    assert line.startswith(f"forkshim: {name}: process ")
    assert line.endswith(f" ended: {ending}")
    record = json.loads(services.bed.read(f"/run/forkshim-exits/{name}.json"))
    assert (record["exitCode"], record["signal"]) in ((137, None), (None, "SIGKILL"))


def test_a_container_that_fails_is_started_again(services: Services) -> None:
    script = "[ -e /tmp/c/1 ] && { trap exit TERM; echo again; sleep 9 & wait; }; "
    script += "touch /tmp/c/1; echo first; exit 9"
    services.bed.ctl("mkdir", "-p", "/run/count", check=True)
    mount = bundles.bind("/run/count", "/tmp/c")
    unit = services.start("again", script, "RestartSec=10ms", check=False, mounts=[mount])
    waiting.wait_true(lambda: "again" in services.lines(unit))
    assert services.bed.show(unit, "NRestarts")["NRestarts"] == "1"
    services.bed.ctl("systemctl", "stop", unit, check=True)
    said = [line for line in services.lines(unit) if not line.startswith("forkshim: ")]
    assert said == ["first", "again"]


def test_containers_that_live_for_a_moment_are_no_failures_and_lose_no_line(
    services: Services,
) -> None:
    for n in range(10):
        unit = services.start("moment", f"echo line {n}")
        assert services.bed.wait_until_inactive(unit) == "inactive"
        assert services.lines(unit) == [f"line {n}"]


def test_a_supervisor_that_hangs_is_noticed_by_the_watchdog(services: Services) -> None:
    unit = services.start_ready("hangs", OBEYS, "Restart=no\nWatchdogSec=2")
    main = services.bed.show(unit, "MainPID")["MainPID"]
    services.bed.ctl("kill", "-STOP", main, check=True)
    assert services.bed.wait_until_inactive(unit) == "failed"
    assert services.bed.show(unit, "Result") == {"Result": "watchdog"}


def test_what_needs_a_container_starts_when_it_runs(services: Services) -> None:
    first = services.add("first", "trap exit TERM; sleep 0.5; echo up; sleep 9 & wait")
    services.bed.write(
        "/etc/systemd/system/after.service",
        f"[Unit]\nRequires={first}\nAfter={first}\n[Service]\nType=oneshot\n"
        f"ExecStart=/bin/sh -c 'systemctl show --property=ActiveState {first}'\n",
    )
    services.bed.ctl("systemctl", "daemon-reload", check=True)
    services.bed.ctl("systemctl", "start", "after.service", check=True)
    assert services.lines("after.service") == ["ActiveState=active"]


def test_ten_containers_keep_their_last_words_at_a_shutdown(
    suite: str, bundle_dir: Path, rootfs: Path
) -> None:
    with make_bed(bundle_dir, rootfs, suite) as bed:
        services = Services(bed, bundle_dir, rootfs)
        units = [services.add(f"many{n}", LAST_WORDS) for n in range(10)]
        bed.ctl("systemctl", "start", *units, check=True)
        # As in `start_ready`: a TERM that comes before the trap is ignored.
        waiting.wait_true(lambda: all("ready" in services.lines(unit) for unit in units))
        bed.poweroff()
        for unit in units:
            assert services.lines(unit) == SAID


SPEAKS = """
import os, socket, signal
out = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
out.connect(os.environ["NOTIFY_SOCKET"])
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGTERM})
out.send(b"STATUS=waits")
signal.sigwait({signal.SIGUSR1})
out.send(b"STATUS=warm\\nREADY=1")
out.send(b"WATCHDOG=1")
out.send(b"EXTEND_TIMEOUT_USEC=30000000")
signal.sigwait({signal.SIGTERM})
out.send(b"EXTEND_TIMEOUT_USEC=30000000\\nSTATUS=saving")
print("bye", flush=True)
"""


def test_a_container_that_speaks_sd_notify_is_ready_when_it_says_so(
    services: Services,
) -> None:
    rootfs, mounts = bundles.make_host_rootfs(services.directory / "rootfs")
    document = bundles.config(rootfs, ["/usr/bin/python3", "-c", SPEAKS], mounts=mounts)
    document["root"]["path"] = "/var/lib/forkshim/rootfs"
    unit = services.add_bundle(
        "speaks", document, "Environment=FORKSHIM_OPTIONS=--sdnotify=container"
    )
    services.bed.ctl("systemctl", "start", "--no-block", unit, check=True)

    def shown() -> dict[str, str]:
        return services.bed.show(unit, "ActiveState", "StatusText")

    waiting.wait_true(lambda: ": waits, stdout " in shown()["StatusText"])
    assert shown()["ActiveState"] == "activating"
    pid = shown()["StatusText"].removeprefix("running, pid ").split(":")[0]
    services.bed.ctl("kill", "-USR1", pid, check=True)
    services.bed.wait_until_active(unit)
    waiting.wait_true(lambda: f"running, pid {pid}: warm, stdout " in shown()["StatusText"])
    services.bed.ctl("systemctl", "stop", unit, check=True)
    assert services.bed.wait_until_inactive(unit) == "inactive"
    assert services.lines(unit) == ["bye"]
