"""What an operator types on a booted machine, and the one line that answers a mistake."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import readme, waiting

if TYPE_CHECKING:
    import subprocess

    from tests.beds.nspawn import Bed
    from tests.systemd.conftest import Services

pytestmark = pytest.mark.booted

ORDINARY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
SYSTEMD = Path(__file__).parents[2] / "systemd"


def _said(done: subprocess.CompletedProcess[str]) -> tuple[int, list[str]]:
    return done.returncode, (done.stdout + done.stderr).splitlines()


@pytest.mark.parametrize(
    ("sink", "line"),
    [
        (
            "jornal",
            "no kind is called jornal (did you mean journal?); there are null, path, file, cri, "
            "journal, journal-stream, passthrough; a path has a slash in it, as in ./jornal",
        ),
        (
            "cri:/run/x,max-size=1m",
            "max-size=1m follows the path; options come before the colon: cri,max-size=1m:/run/x",
        ),
        ("cri,max-size=1q:/run/x", "option max-size: '1q' is not a size from 64K to 1T, as in 10M"),
    ],
)
def test_a_mistyped_sink_is_one_line_and_status_2(bed: Bed, sink: str, line: str) -> None:
    done = bed.ctl("forkshim", "run", "--log", sink, "--bundle", "/nowhere", "typo")
    assert _said(done) == (2, [f"forkshim: typo: sink {sink}: {line}"])
    assert not bed.path("/run/x").exists()


def test_an_ordinary_user_is_told_what_is_missing(services: Services) -> None:
    """/var/lib/forkshim is root's alone, and so is what a run would make."""
    bed = services.bed
    unit = services.add("denied", "true")
    name = unit.removeprefix("forkshim@").removesuffix(".service")
    bundle = f"/var/lib/forkshim/{name}"
    bed.ctl("chmod", "700", "/var/lib/forkshim", check=True)
    why = "permission denied, forkshim needs root or rootless runc"
    done = bed.ctl(*ORDINARY, "forkshim", "run", "--bundle", bundle, "denied")
    assert _said(done) == (6, [f"forkshim: denied: bundle {bundle}: {why}"])
    bed.ctl("mkdir", "-p", "/run/open/bundle", check=True)
    bed.write("/run/open/bundle/config.json", '{"ociVersion": "1.0.2"}', 0o600)
    run = ("forkshim", "run", "--bundle", "/run/open/bundle")
    done = bed.ctl(*ORDINARY, *run, "denied")
    assert _said(done) == (6, [f"forkshim: denied: open /run/open/bundle/config.json: {why}"])
    bed.ctl("chmod", "644", "/run/open/bundle/config.json", check=True)
    bed.ctl("rm", "-rf", "/run/forkshim", check=True)
    done = bed.ctl(*ORDINARY, *run, "denied")
    assert _said(done) == (71, [f"forkshim: denied: /run/forkshim: {why}"])
    done = bed.ctl(*ORDINARY, *run, "--exit-dir", "/run/open/exits", "denied")
    assert _said(done) == (71, [f"forkshim: denied: --exit-dir /run/open/exits: {why}"])
    bed.ctl("mkdir", "-p", f"/run/forkshim/{name}/init", check=True)
    bed.ctl("chmod", "700", f"/run/forkshim/{name}", check=True)
    for command, status in (("attach", 1), ("adopt", 71)):
        done = bed.ctl(*ORDINARY, "forkshim", command, name)
        assert done.returncode == status
        assert done.stderr.endswith(f": {why}\n"), done


# -- the unit


def test_a_start_without_a_bundle_fails_and_is_not_tried_again(bed: Bed) -> None:
    done = bed.ctl("systemctl", "start", "forkshim@typo")
    assert done.returncode == 1
    assert done.stderr.startswith("Assertion failed on job for forkshim@typo.service.\n")
    shown = bed.show("forkshim@typo.service", "ActiveState", "AssertResult", "NRestarts")
    assert shown == {"ActiveState": "inactive", "AssertResult": "no", "NRestarts": "0"}


def test_systemd_has_nothing_to_say_about_the_units_as_they_lie_in_the_checkout(bed: Bed) -> None:
    for path in SYSTEMD.rglob("*"):
        if path.is_file():
            bed.write(f"/run/checkout/systemd/{path.relative_to(SYSTEMD)}", path.read_text())
    verify = "cd /run/checkout && systemd-analyze verify --man=no systemd/*.service"
    assert _said(bed.ctl("sh", "-c", verify)) == (0, [])


def test_a_start_leaves_nothing_to_wonder_about_in_the_journal(services: Services) -> None:
    """It is where systemd complains about settings and variables that it does not understand."""
    unit = services.start_ready("clean", "echo ready; while :; do sleep 1; done")
    said = [entry["MESSAGE"] for entry in services.bed.journal(unit)]
    name = unit.removeprefix("forkshim@").removesuffix(".service")
    title = f"{unit} - Container {name}"
    assert set(said) == {f"Starting {title}...", "ready", f"Started {title}."}


def test_its_documentation_is_installed(bed: Bed) -> None:
    shown = bed.show("forkshim@web.service", "Documentation")["Documentation"]
    assert shown == "file:/usr/share/doc/forkshim/README.md"


def test_an_id_with_a_plus_is_no_instance_and_is_refused(services: Services) -> None:
    """A unit's name has no +: systemctl writes it as an escape, and %i is what it has written."""
    bed = services.bed
    done = bed.ctl("systemctl", "start", "forkshim@a+b")
    assert done.returncode == 1
    assert "Assertion failed on job for forkshim@a\\x2bb.service." in done.stderr
    done = bed.ctl("forkshim", "run", "--bundle", "/nowhere", "a\\x2bb")
    assert _said(done) == (
        2,
        [
            "forkshim: a\\x2bb: container id 'a\\\\x2bb': systemd's escape of a character that a "
            "unit's name cannot have; choose an id of letters, digits, _ . and -"
        ],
    )


def test_stderr_is_an_error_and_stdout_is_not(services: Services) -> None:
    """Typed as an operator does: under the unit's name, and by priority."""
    unit = services.start("both", "echo out; echo oops >&2; echo '<4>careful' >&2")
    assert services.bed.wait_until_inactive(unit) == "inactive"
    services.bed.ctl("journalctl", "--sync", check=True)
    name = unit.removesuffix(".service")

    def journalctl(*words: str) -> list[str]:
        done = services.bed.ctl("journalctl", "-u", name, "-o", "cat", "-q", *words, check=True)
        return done.stdout.splitlines()

    assert journalctl("-p", "err") == ["oops"]
    assert journalctl("-p", "warning") == ["oops", "careful"]
    assert {"out", "oops", "careful"} <= set(journalctl())
    entries = {entry["MESSAGE"]: entry for entry in services.bed.journal(unit)}
    assert entries["out"]["PRIORITY"] == "6"
    assert {entries[line]["_SYSTEMD_UNIT"] for line in ("out", "oops", "careful")} == {unit}
    container = name.removeprefix("forkshim@")
    assert {entries[line]["SYSLOG_IDENTIFIER"] for line in ("out", "oops")} == {container}


@pytest.fixture
def default_journald(bed: Bed) -> None:
    """The limits that journald.conf(5) has where nobody has set others: beds have none."""
    limits = "[Journal]\nRateLimitIntervalSec=30s\nRateLimitBurst=10000\n"
    bed.write("/etc/systemd/journald.conf.d/zzz-default.conf", limits)
    bed.ctl("systemctl", "restart", "systemd-journald.service", check=True)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("default_journald")
@pytest.mark.parametrize("sink", ["", "--log=journal", "--log=passthrough"])
def test_journald_drops_none_of_200000_lines(services: Services, sink: str) -> None:
    unit = services.start("lines", "seq 1 200000", f"Environment=FORKSHIM_OPTIONS={sink}")
    assert services.bed.wait_until_inactive(unit, 300) == "inactive"
    lines = [
        entry["MESSAGE"]
        for entry in services.bed.journal_entries(unit, "--output-fields=MESSAGE")
        if entry["MESSAGE"].isdecimal()
    ]
    assert lines == [str(n) for n in range(1, 200001)]


@pytest.mark.usefixtures("default_journald")
def test_what_journald_has_dropped_is_found_by_the_command_of_the_readme(
    services: Services,
) -> None:
    """With journald's own limit, which an operator's drop-in may bring back."""
    limits = "LogRateLimitIntervalSec=2s\nLogRateLimitBurst=1000"
    script = "seq 1 20000; while :; do sleep 0.3; echo again; done"
    unit = services.start("chatty", script, limits)
    command = readme.block("Records of the journal", "a596d6fe").replace("forkshim@web", unit)

    def said() -> list[str]:
        return services.bed.ctl("sh", "-c", command, check=True).stdout.splitlines()

    waiting.wait_true(lambda: bool(said()))
    services.bed.ctl("systemctl", "stop", unit, check=True)
    found = [re.fullmatch(rf"Suppressed (\d+) messages from {unit}", line) for line in said()]
    dropped = [int(line[1]) for line in found if line]
    assert len(dropped) == len(found)
    came = [line for line in services.lines(unit) if line.isdecimal()]
    assert dropped[0] + len(came) >= 20000


# -- the supervisor's own words


STAYS = "trap 'exit 0' TERM; echo ready; while :; do sleep 0.1; done"


def _own(services: Services, *matches: str) -> list[dict[str, Any]]:
    """Return what `journalctl MATCHES` has of the supervisors' own messages."""
    services.bed.ctl("journalctl", "--sync", check=True)
    done = services.bed.ctl("journalctl", "-o", "json", "-q", *matches, check=True)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return [entry for entry in found if str(entry["MESSAGE"]).startswith("forkshim: ")]


@pytest.mark.parametrize("sink", ["", "--log=journal", "--log=passthrough"])
def test_a_stop_that_needed_a_kill_is_a_warning_in_the_journal(
    services: Services, sink: str
) -> None:
    options = f"Environment='FORKSHIM_OPTIONS=--stop-timeout=0.2 {sink}'"
    unit = services.start("deaf", "trap '' TERM; " + STAYS.partition("; ")[2], options)
    waiting.wait_true(lambda: "ready" in [entry["MESSAGE"] for entry in services.bed.journal(unit)])
    services.bed.ctl("systemctl", "stop", unit, check=True)
    name = unit.removeprefix("forkshim@").removesuffix(".service")
    (entry,) = _own(services, "-p", "warning", "-u", unit)
    assert entry["MESSAGE"] == f"forkshim: {name}: did not stop within 0.2 s of SIGTERM, killed"
    assert (entry["PRIORITY"], entry["SYSLOG_IDENTIFIER"]) == ("4", name)
    if sink != "--log=passthrough":
        command = readme.block("What the supervisor itself says", "CONTAINER_NAME")
        (same,) = _own(services, *command.replace("=web", f"={name}").split()[1:])
        assert same == entry
        assert entry["MESSAGE_ID"] == "ea6dc9856c4d41b9aafb4293e8f9b722"
        assert (entry["_TRANSPORT"], entry["CONTAINER_ID_FULL"]) == ("journal", name)


def test_a_reload_is_a_notice_with_both_versions(services: Services) -> None:
    unit = services.start_ready("again", STAYS)
    services.bed.ctl("systemctl", "reload", unit, check=True)
    name = unit.removeprefix("forkshim@").removesuffix(".service")
    matches = (f"CONTAINER_NAME={name}", "MESSAGE_ID=1bd792a443c34d0a92467aa4953493d7")
    waiting.wait_true(lambda: bool(_own(services, *matches)))
    (entry,) = _own(services, *matches)
    assert entry["PRIORITY"] == "5"
    version = r"version [^ ]+"
    wanted = rf"forkshim: {name}: reloaded: {version} is replaced, {version} goes on, process \d+"
    assert re.fullmatch(wanted, entry["MESSAGE"])
    shown = services.bed.show(unit, "StatusText")["StatusText"]
    assert re.search(r", forkshim [^ ,]+$", shown)


def test_an_error_has_its_priority_and_comes_once(services: Services) -> None:
    """Before there is a sink, and with one."""
    unit = services.start("wrong", "true", "Environment=FORKSHIM_OPTIONS=--log=jornal\nRestart=no",
                          check=False)  # fmt: skip
    assert services.bed.wait_until_inactive(unit) == "failed"
    (entry,) = _own(services, "-p", "err", "-u", unit)
    assert "no kind is called jornal" in entry["MESSAGE"]
    unit = services.add("nothing", "true", "Restart=no")
    name = unit.removeprefix("forkshim@").removesuffix(".service")
    path = services.directory / name / "config.json"
    path.write_text(path.read_text().replace('"sh"', '"/no/such"'))
    services.bed.ctl("systemctl", "start", unit)
    assert services.bed.wait_until_inactive(unit) == "failed"
    waiting.wait_true(lambda: bool(_own(services, "-p", "err", "-u", unit)))
    (entry,) = _own(services, "-p", "err", "-u", unit)
    assert entry["CONTAINER_NAME"] == name


def test_a_worker_that_is_killed_is_in_the_status_at_once(services: Services) -> None:
    """Without a watchdog, whose signs of life would show it as well."""
    unit = services.start_ready("hurt", STAYS, "WatchdogSec=0")
    supervisor = services.bed.show(unit, "MainPID")["MainPID"]
    found = services.bed.ctl("pgrep", "--parent", supervisor, "--full", r"\[stdout\]", check=True)
    services.bed.ctl("kill", "-KILL", found.stdout.strip(), check=True)
    waiting.wait_true(
        lambda: ", respawned 1, " in services.bed.show(unit, "StatusText")["StatusText"]
    )


def test_the_status_follows_the_bytes_without_a_watchdog(services: Services) -> None:
    script = "echo ready; while :; do echo more; sleep 0.2; done"
    unit = services.start_ready("busy", script, "WatchdogSec=0")

    def size() -> str:
        found = re.search(r"stdout (\d+ B)", services.bed.show(unit, "StatusText")["StatusText"])
        return found[1] if found else ""

    first = size()
    waiting.wait_true(lambda: size() != first)
    second = size()
    waiting.wait_true(lambda: size() != second)


# -- a unit of one's own


def _own_unit(services: Services, change: tuple[str, str] = ("no", "no")) -> str:
    """Install README's unit, with a bundle; returns its name."""
    bed = services.bed
    text = readme.block("Your own unit", "[Service]").replace(*change)
    bed.write("/etc/systemd/system/shop.service", text)
    unit = services.add("shop", STAYS)
    bundle = unit.removeprefix("forkshim@").removesuffix(".service")
    bed.ctl("ln", "-sfn", f"/var/lib/forkshim/{bundle}", "/srv/shop", check=True)
    bed.ctl("systemctl", "daemon-reload", check=True)
    return "shop.service"


def test_the_unit_of_the_readme_has_its_container_inside(services: Services) -> None:
    """And a killed supervisor is followed by another one, without a wait for TimeoutStopSec=."""
    bed, unit = services.bed, _own_unit(services)
    verified = bed.ctl("systemd-analyze", "verify", "--man=no", "shop.service")
    assert _said(verified) == (0, [])
    bed.ctl("systemctl", "start", unit, check=True)
    group = bed.show(unit, "ControlGroup")["ControlGroup"]
    assert bed.read(f"/sys/fs/cgroup{group}/payload/cgroup.procs")
    assert _own(services, "-p", "warning", "-u", unit) == []
    first = bed.show(unit, "MainPID")["MainPID"]
    bed.ctl("kill", "-KILL", first, check=True)
    waiting.wait_true(lambda: bed.show(unit, "NRestarts")["NRestarts"] == "1")
    bed.wait_until_active(unit, 30)
    assert bed.show(unit, "MainPID")["MainPID"] != first
    bed.ctl("systemctl", "stop", unit, check=True)
    assert bed.show(unit, "Result")["Result"] == "success"


def test_a_container_beside_its_unit_is_a_warning(services: Services) -> None:
    bed, unit = services.bed, _own_unit(services, ("Delegate=yes", "Delegate=no"))
    bed.ctl("systemctl", "start", unit, check=True)
    matches = ("-p", "warning", "-u", unit, "MESSAGE_ID=4f0c0b684b5a44119e49378d2fc9958c")
    waiting.wait_true(lambda: bool(_own(services, *matches)))
    (entry,) = _own(services, *matches)
    assert entry["MESSAGE"] == (
        "forkshim: shop: the container is outside of this unit, in the cgroup /system.slice/shop: "
        "the unit's limits and its stop do not cover it; Delegate=yes in the unit puts it inside "
        "(cgroup v2)"
    )
    bed.ctl("kill", "-KILL", bed.show(unit, "MainPID")["MainPID"], check=True)
    waiting.wait_true(lambda: bed.show(unit, "ExecMainStatus")["ExecMainStatus"] == "75")
    bed.ctl("systemctl", "stop", unit)
    bed.ctl("runc", "delete", "--force", "shop", check=True)


# -- logrotate


class Rotating:
    """A container `web` with the log of README's recipe, and logrotate."""

    def __init__(self, services: Services) -> None:
        self.bed = services.bed
        script = "trap 'exit 0' TERM; n=0; while :; do n=$((n+1)); echo $n; sleep 0.02; done"
        unit = services.add("rotated", script)
        self._bundle = unit.removeprefix("forkshim@").removesuffix(".service")
        self.bed.write("/etc/logrotate.d/web", readme.block("When a sink takes nothing", "reopen"))

    def start(self) -> None:
        self.bed.ctl(
            *("forkshim", "run", "--detach", "--log", "file:/var/log/web.log"),
            *("--bundle", f"/var/lib/forkshim/{self._bundle}", "web"),
            check=True,
        )

    def stop(self) -> None:
        self.bed.ctl("sh", "-c", "kill -TERM $(cat /run/forkshim/web/supervisor.pid)", check=True)
        waiting.wait_true(lambda: bool(self.read("/run/forkshim/web/init/exitStatus")))

    def rotate(self) -> tuple[int, list[str]]:
        """Run logrotate as its timer does, but now."""
        return _said(self.bed.ctl("logrotate", "--force", "/etc/logrotate.d/web"))

    def read(self, path: str) -> str:
        found = self.bed.path(path)
        return found.read_text() if found.exists() else ""


def test_the_logrotate_recipe_loses_nothing_and_succeeds_while_the_container_is_down(
    services: Services,
) -> None:
    rotating = Rotating(services)
    assert rotating.rotate() == (0, []), "there is no log yet, and no container"
    rotating.start()
    for _ in range(2):
        waiting.wait_true(lambda: rotating.read("/var/log/web.log").count("\n") > 5)
        assert rotating.rotate() == (0, [])
    waiting.wait_true(lambda: rotating.read("/var/log/web.log") != "")
    rotating.stop()
    assert rotating.rotate() == (0, []), "its directory is there, and its supervisor has ended"
    rotating.bed.ctl("rm", "-rf", "/run/forkshim/web", check=True)
    assert rotating.rotate() == (0, []), "the log is gone, and so is the directory"
    assert not rotating.bed.path("/run/forkshim/web").exists()
    logs = "for n in 3 2; do zcat /var/log/web.log.$n.gz; done; cat /var/log/web.log.1"
    lines = rotating.bed.ctl("sh", "-c", logs, check=True).stdout.split()
    assert lines == [str(n) for n in range(1, len(lines) + 1)]
