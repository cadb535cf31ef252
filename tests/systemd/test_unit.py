"""The shipped unit, as systemd reads it.

An exception to the rule of this folder: what is verified is the checkout's unit with the checkout's
program, since a mistake in it is to be seen before there is a package. The last test has the
package's.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.harness.engine import FORKSHIM

if TYPE_CHECKING:
    from tests.beds.nspawn import Bed

pytestmark = pytest.mark.systemd

UNIT = Path(__file__).parents[2] / "systemd" / "forkshim@.service"
NEWER = UNIT.parent / "drop-ins" / "newer-systemd.conf"


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The unit with the command where this test run has it."""
    path = tmp_path / UNIT.name
    path.write_text(UNIT.read_text().replace("/usr/bin/forkshim", str(FORKSHIM)))
    return path


def test_systemd_has_nothing_to_say_about_the_unit(installed: Path) -> None:
    """`verify` ends with 0 whatever it finds, so its silence is what counts."""
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", installed], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_a_mistake_in_the_unit_would_be_seen(installed: Path) -> None:
    installed.write_text(installed.read_text().replace("KillMode=", "KillModus="))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", installed], capture_output=True, text=True
    )
    assert "KillModus" in done.stderr


def test_every_setting_has_its_reason() -> None:
    """Each group of settings that are not systemd's default is preceded by a comment."""
    lines = UNIT.read_text().splitlines()
    for name in ("Type", "WatchdogSec", "KillMode", "Delegate"):
        (index,) = [i for i, line in enumerate(lines) if line.startswith(name + "=")]
        assert lines[index - 1].startswith("#"), name


def test_of_the_newer_settings_only_their_names_are_unknown_here(
    installed: Path, tmp_path: Path
) -> None:
    """And with a systemd that knows them there is nothing to say."""
    drop_in = tmp_path / f"{UNIT.name}.d" / NEWER.name
    drop_in.parent.mkdir()
    drop_in.write_text(NEWER.read_text())
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", installed], capture_output=True, text=True
    )
    said = [line for line in done.stderr.splitlines() if "Unknown key" not in line]
    assert (done.returncode, said, done.stdout) == (0, [], "")
    settings = [line for line in NEWER.read_text().splitlines() if "=" in line and line[0] != "#"]
    assert len(done.stderr.splitlines()) in (0, len(settings))


@pytest.mark.booted
def test_systemd_has_nothing_to_say_about_the_installed_unit(bed: Bed) -> None:
    shown = bed.show("forkshim@any.service", "FragmentPath", "LoadState", "UnitFileState")
    assert shown["LoadState"] == "loaded"
    assert shown["FragmentPath"].endswith("/lib/systemd/system/forkshim@.service")
    done = bed.ctl("systemd-analyze", "verify", "--man=no", "forkshim@any.service")
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
