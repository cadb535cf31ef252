"""forkshim's package, installed in a booted systemd of each release, and services made of test
containers.

The tests here run what a user has: the installed package, by Debian's Python. What only a checkout
can do is the exception: a module that needs it says so and why.
"""

from __future__ import annotations

import itertools
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from tests.beds.nspawn import Bed
from tests.harness import bundles, waiting
from tests.systemd import debs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_numbers = itertools.count()


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


def make_bed(bundle_dir: Path, rootfs: Path, suite: str = debs.SUITES[0]) -> Bed:
    """Return a bed that has forkshim's package once it is booted."""
    return Bed(
        suite=suite,
        bind_ro=[rootfs],
        bind={bundle_dir: "/var/lib/forkshim"},
        debs=[debs.package(suite)],
    )


@pytest.fixture(scope="module", params=debs.SUITES)
def suite(request: pytest.FixtureRequest) -> str:
    """The Debian release that a bed runs: each test that has a bed is run on all of them."""
    return str(request.param)


@pytest.fixture(scope="module")
def bundle_dir(suite: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the beds of a module see as /var/lib/forkshim; each release has one of its own."""
    return tmp_path_factory.mktemp(f"bundles-{suite}-")


@pytest.fixture(scope="module")
def bed(suite: str, bundle_dir: Path, rootfs: Path) -> Iterator[Bed]:
    """A booted systemd with forkshim's package; one for the tests of a module."""
    with make_bed(bundle_dir, rootfs, suite) as booted:
        yield booted


@pytest.fixture
def services(bed: Bed, bundle_dir: Path, rootfs: Path) -> Iterator[Services]:
    """Services that are stopped and forgotten after the test."""
    made = Services(bed, bundle_dir, rootfs)
    yield made
    made.clear()
