"""Debian packages that a bed needs on the machine that runs it."""

from __future__ import annotations

import os
import platform
import subprocess
from typing import TYPE_CHECKING

from tests.beds import cache

if TYPE_CHECKING:
    from collections.abc import Iterable


class BedError(RuntimeError):
    """A test bed cannot be made or has broken; says nothing about the code under test."""


def output_of(*argv: str, cwd: str | os.PathLike[str] = "/") -> str:
    """Run a command of the machine and give back its stdout.

    Raises:
        BedError: it did not exit with 0; carries the end of what it wrote.
    """
    done = subprocess.run(
        argv, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        tail = (done.stdout + done.stderr)[-2000:]
        raise BedError(f"{' '.join(argv)}: exit code {done.returncode}\n{tail}")
    return done.stdout


def missing(packages: Iterable[str]) -> list[str]:
    """Those of the packages that are not installed, in the order given."""
    wanted = list(dict.fromkeys(packages))
    # Exits with 1 for a package it has never heard of, and still lists the others.
    listed = subprocess.run(
        ["dpkg-query", "-W", "-f", "${db:Status-Status} ${Package}\n", *wanted],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.splitlines()
    return [name for name in wanted if f"installed {name}" not in listed]


def ensure(packages: Iterable[str]) -> None:
    """Install those of the packages that are missing.

    Raises:
        BedError: packages are missing and this is not root, or apt failed.
    """
    if not (absent := missing(packages)):
        return
    if os.geteuid() != 0:
        raise BedError(f"not installed, and only root can install: {' '.join(absent)}")
    # apt does not wait for another run's lock on its package lists, so two test runs take turns.
    with cache.locked(cache.directory() / "apt.lock"):
        if absent := missing(absent):
            # Rather fail than take away what is in their way, such as Docker's own runc.
            install = ["install", "-q", "-y", "--no-install-recommends", "--no-remove", *absent]
            patient = ["-o", "DPkg::Lock::Timeout=300"]
            silent = ["env", "DEBIAN_FRONTEND=noninteractive"]
            output_of("apt-get", "-q", "update")
            output_of(*silent, "apt-get", *patient, *install)
    if absent := missing(absent):
        raise BedError(f"apt-get install left these out: {' '.join(absent)}")


def mirror() -> str:
    """The address from which this machine's own apt takes its release's main archive.

    Raises:
        BedError: apt has no such source.
    """
    if (address := _known_mirror()) is None:
        with cache.locked(cache.directory() / "apt.lock"):
            output_of("apt-get", "-q", "update")  # it tells of nothing that it has never fetched
        address = _known_mirror()
    if address is None:
        raise BedError("apt has no source for this machine's release")
    return address


def _known_mirror() -> str | None:
    release = platform.freedesktop_os_release()["VERSION_CODENAME"]
    columns = "$(RELEASE) $(COMPONENT) $(REPO_URI)"
    listed = output_of("apt-get", "indextargets", "--format", columns, "Created-By: Packages")
    for line in listed.splitlines():
        suite, component, address = line.split(maxsplit=2)
        if (suite, component) == (release, "main"):
            return address
    return None
