"""What an operator types on a booted machine, and the one line that answers a mistake."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

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
            "max-size=1m stands behind the path; options come before the colon: "
            "cri,max-size=1m:/run/x",
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
    assert _said(done) == (1, [f"forkshim: denied: /run/forkshim: {why}"])
    done = bed.ctl(*ORDINARY, *run, "--exit-dir", "/run/open/exits", "denied")
    assert _said(done) == (1, [f"forkshim: denied: --exit-dir /run/open/exits: {why}"])
    bed.ctl("mkdir", "-p", f"/run/forkshim/{name}/init", check=True)
    bed.ctl("chmod", "700", f"/run/forkshim/{name}", check=True)
    for command in ("attach", "adopt"):
        done = bed.ctl(*ORDINARY, "forkshim", command, name)
        assert done.returncode == 1
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
    command = readme.block("Sinks", "a596d6fe").replace("forkshim@web", unit)

    def said() -> list[str]:
        return services.bed.ctl("sh", "-c", command, check=True).stdout.splitlines()

    waiting.wait_true(lambda: bool(said()))
    services.bed.ctl("systemctl", "stop", unit, check=True)
    found = [re.fullmatch(rf"Suppressed (\d+) messages from {unit}", line) for line in said()]
    dropped = [int(line[1]) for line in found if line]
    assert len(dropped) == len(found)
    came = [line for line in services.lines(unit) if line.isdecimal()]
    assert dropped[0] + len(came) >= 20000
