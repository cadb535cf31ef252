"""The package of `make deb`: what is in it, and its life on a booted system."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.beds.nspawn import Bed
from tests.harness import bundles, waiting

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.booted

ROOT = Path(__file__).parents[2]
UNIT = "forkshim@demo.service"
SCRIPT = "trap 'echo bye; exit 143' TERM; echo ready; while :; do sleep 0.1; done"


def _build(directory: Path) -> Path:
    done = subprocess.run(
        [ROOT / "systemd/deb/build", directory], check=True, capture_output=True, text=True
    )
    return Path(done.stdout.strip().splitlines()[-1])


@pytest.fixture(scope="module")
def deb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _build(tmp_path_factory.mktemp("deb"))


@pytest.fixture(scope="module")
def newer_deb(deb: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same files as a version to come."""
    directory = tmp_path_factory.mktemp("newer")
    subprocess.run(["dpkg-deb", "-R", deb, directory / "tree"], check=True)
    control = directory / "tree/DEBIAN/control"
    control.write_text(control.read_text().replace("Version: ", "Version: 9:"))
    path = directory / "newer.deb"
    subprocess.run(["dpkg-deb", "-b", directory / "tree", path], check=True, capture_output=True)
    return path


@pytest.fixture
def system(deb: Path, newer_deb: Path, rootfs: Path) -> Iterator[Bed]:
    """A booted system with the bundle `demo`, where forkshim has never been."""
    with Bed(bind_ro=[deb.parent, newer_deb.parent, rootfs]) as bed:
        document = bundles.config(rootfs, bundles.shell(SCRIPT))
        bed.write("/var/lib/forkshim/demo/config.json", json.dumps(document))
        yield bed


def _files(bed: Bed) -> set[str]:
    """Return what is on the system, less what dpkg, runc and systemd keep for themselves."""
    found = bed.ctl("find", "/etc", "/usr", "/lib/systemd", "/var", "/run", "-xdev", check=True)
    theirs = ("/var/lib/dpkg/", "/var/log/", "/var/cache/", "/run/systemd/", "/run/runc",
              "/run/udev/", "/run/user", "/var/tmp/", "/var/lib/systemd/", "/run/log/")  # fmt: skip
    return {path for path in found.stdout.splitlines() if not path.startswith(theirs)}


def test_the_same_commit_gives_the_same_bytes(deb: Path, tmp_path: Path) -> None:
    assert _build(tmp_path).read_bytes() == deb.read_bytes()


def test_it_is_installed_used_upgraded_and_purged_and_nothing_is_left(
    system: Bed, deb: Path, newer_deb: Path
) -> None:
    before = _files(system)
    system.ctl("dpkg", "-i", str(deb), check=True, timeout_s=180)
    assert system.ctl("forkshim", "--version", check=True).stdout.startswith("forkshim ")

    system.ctl("systemctl", "start", UNIT, check=True)
    waiting.wait_true(lambda: "ready" in _messages(system))
    main_pid = system.show(UNIT, "MainPID")
    system.ctl("dpkg", "-i", str(newer_deb), check=True, timeout_s=180)
    assert system.show(UNIT, "MainPID") == main_pid, "an upgrade stops nothing"

    system.ctl("systemctl", "kill", "--signal=TERM", "--kill-who=main", UNIT, check=True)
    assert system.wait_until_inactive(UNIT) == "inactive"
    assert _messages(system) == ["ready", "bye"]
    system.ctl("systemctl", "restart", UNIT, check=True)

    system.ctl("dpkg", "--purge", "forkshim", check=True, timeout_s=180)
    assert system.wait_until_inactive(UNIT) == "inactive", "removal stops what runs"
    assert _messages(system)[-1] == "bye"
    assert _files(system) == before
    assert "demo" in system.ctl("ls", "/var/lib/forkshim", check=True).stdout, "bundles are kept"


def test_purge_without_bundles_leaves_no_directory(system: Bed, deb: Path) -> None:
    shutil.rmtree(system.path("/var/lib/forkshim"))
    before = _files(system)
    system.ctl("dpkg", "-i", str(deb), check=True, timeout_s=180)
    system.ctl("dpkg", "--purge", "forkshim", check=True, timeout_s=180)
    assert _files(system) == before


def _messages(bed: Bed) -> list[str]:
    return [entry["MESSAGE"] for entry in bed.journal(UNIT) if entry["_TRANSPORT"] == "stdout"]
