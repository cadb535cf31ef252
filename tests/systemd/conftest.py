"""forkshim installed in a booted systemd, and services made of test containers."""

from __future__ import annotations

import itertools
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.beds.nspawn import Bed
from tests.harness import bundles, waiting
from tests.harness.engine import FORKSHIM

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
_numbers = itertools.count()
LAUNCHER = '#!/bin/sh\nPYTHONPATH={root} exec "{program}" "$@"\n'
"""It runs this checkout, whichever one its environment was made for."""


class Services:
    """Makes services `forkshim@NAME` in a bed."""

    def __init__(self, bed: Bed, bundle_dir: Path, rootfs: Path) -> None:
        self.bed = bed
        self.directory = self._bundle_dir = bundle_dir
        self._rootfs = rootfs
        self._names: list[str] = []

    def add(self, name: str, script: str, drop_in: str = "", **options: Any) -> str:
        """Make the bundle, and a drop-in if there is one; returns the unit's name.

        The journal keeps what earlier units have said, so `name` gets a number.
        """
        document = bundles.config(self._rootfs, bundles.shell(script), **options)
        return self.add_bundle(name, document, drop_in)

    def add_bundle(self, name: str, document: dict[str, Any], drop_in: str = "") -> str:
        """As `add`, with another config.json."""
        name = f"{name}{next(_numbers)}"
        unit = f"forkshim@{name}.service"
        self._names.append(name)
        bundles.make_bundle(self._bundle_dir / name, document)
        if drop_in:
            self.bed.write(f"/etc/systemd/system/{unit}.d/test.conf", f"[Service]\n{drop_in}\n")
            self.bed.ctl("systemctl", "daemon-reload", check=True)
        return unit

    def start(
        self, name: str, script: str, drop_in: str = "", *, check: bool = True, **options: Any
    ) -> str:
        """Make it and start it; its container runs when this returns, or has run.

        Without `check` it may fail, which systemctl tells if it was quick.
        """
        unit = self.add(name, script, drop_in, **options)
        self.bed.ctl("systemctl", "start", unit, check=check)
        return unit

    def start_ready(self, name: str, script: str, drop_in: str = "") -> str:
        """As `start`, and wait until it has said "ready": it obeys from then on.

        A TERM that comes sooner finds a shell without a trap, or a runtime before its exec.
        """
        unit = self.start(name, script, drop_in)
        waiting.wait_true(lambda: "ready" in self.lines(unit))
        return unit

    def lines(self, unit: str) -> list[str]:
        """Return what the unit's processes have written, without systemd's own words."""
        entries = self.bed.journal(unit)
        return [entry["MESSAGE"] for entry in entries if entry["_TRANSPORT"] == "stdout"]

    def clear(self) -> None:
        """Stop them all and forget them."""
        for name in self._names:
            unit = f"forkshim@{name}.service"
            self.bed.ctl("systemctl", "stop", unit)
            self.bed.ctl("systemctl", "reset-failed", unit)
            shutil.rmtree(self._bundle_dir / name)
            shutil.rmtree(self.bed.path(f"/etc/systemd/system/{unit}.d"), ignore_errors=True)
        self.bed.ctl("systemctl", "daemon-reload", check=True)


@pytest.fixture(scope="session")
def bundle_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a bed sees as /var/lib/forkshim."""
    return tmp_path_factory.mktemp("bundles")


def make_bed(bundle_dir: Path, rootfs: Path) -> Bed:
    """Return a bed with this checkout's forkshim and units, not yet booted."""
    files = {
        f"/etc/systemd/system/{path.name}": path.read_text()
        for path in (ROOT / "systemd").glob("*.service")
    }
    files["/usr/bin/forkshim"] = LAUNCHER.format(root=ROOT, program=FORKSHIM)
    return Bed(
        bind_ro=[ROOT, Path(sys.prefix), rootfs],
        bind={bundle_dir: "/var/lib/forkshim"},
        files=files,
    )


@pytest.fixture(scope="module")
def bed(bundle_dir: Path, rootfs: Path) -> Iterator[Bed]:
    """A booted systemd with forkshim; one for the tests of a module."""
    with make_bed(bundle_dir, rootfs) as booted:
        booted.path("/usr/bin/forkshim").chmod(0o755)
        yield booted


@pytest.fixture
def services(bed: Bed, bundle_dir: Path, rootfs: Path) -> Iterator[Services]:
    """Services that are stopped and forgotten after the test."""
    made = Services(bed, bundle_dir, rootfs)
    yield made
    made.clear()
