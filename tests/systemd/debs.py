"""Debian packages built from copies of this checkout, as on a fresh machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ROOT = Path(__file__).parents[2]
DEBIAN_PYTHON = "/usr/bin/python3"
COMMITTED_AT = 1_700_000_000

_NOBODY = 65534
_MADE_HERE = {str(ROOT / name) for name in (".git", ".venv", ".cache", "build", "dist")}
_LIMIT_S = 600.0


def copy_checkout(directory: Path, version: str | None = None) -> Path:
    """Copy what is committed here or about to be; with another version if one is given."""
    shutil.copytree(ROOT, directory, ignore=_made_here, dirs_exist_ok=True)
    if version is not None:
        current = current_version()
        for name in ("pyproject.toml", "supervisor/__init__.py"):
            path = directory / name
            path.write_text(path.read_text().replace(f'"{current}"', f'"{version}"', 1))
    return directory


def _made_here(directory: str, names: list[str]) -> set[str]:
    return {
        name
        for name in names
        if name == "__pycache__" or os.path.join(directory, name) in _MADE_HERE
    }


def current_version() -> str:
    """Return the version of this checkout."""
    line = (ROOT / "supervisor" / "__init__.py").read_text().splitlines()[-1]
    return line.partition('"')[2].rstrip('"')


@contextmanager
def clean_checkout() -> Iterator[Path]:
    """A git checkout that nothing has been made in, which belongs to the user `build` builds as."""
    # Not below pytest's own folder, which no other user may enter.
    with tempfile.TemporaryDirectory(prefix="forkshim deb ", dir="/var/tmp") as name:
        checkout = copy_checkout(Path(name))
        when = f"{COMMITTED_AT} +0000"
        env = {**os.environ, "GIT_COMMITTER_DATE": when, "GIT_AUTHOR_DATE": when}
        env |= {"GIT_CONFIG_GLOBAL": "/dev/null"}  # hooks and signatures are a person's
        for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "all"]):
            subprocess.run(
                ["git", "-c", "user.name=t", "-c", "user.email=t@t", *words],
                cwd=checkout,
                env=env,
                check=True,
            )
        if os.geteuid() == 0:
            subprocess.run(["chown", "-R", f"{_NOBODY}:{_NOBODY}", checkout], check=True)
        yield checkout


def make_deb(checkout: Path) -> Path:
    """Run `make deb` as an ordinary user who has Debian's programs alone; returns the package."""
    private = checkout / ".cache"
    private.mkdir()
    nobody: list[str] = []
    if os.geteuid() == 0:
        os.chown(private, _NOBODY, _NOBODY)
        nobody = ["setpriv", f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups", "--"]
    env = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    env |= {"PATH": "/usr/bin:/bin", "HOME": str(private), "TMPDIR": str(private)}
    done = subprocess.run(
        [*nobody, "make", "deb"],
        cwd=checkout,
        env=env,
        umask=0o077,
        capture_output=True,
        text=True,
        timeout=_LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return checkout / done.stdout.splitlines()[-1]


def run_build(
    checkout: Path, out: Path, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the build alone, with this test run's virtual environment."""
    venv = checkout / ".venv"
    if not venv.is_symlink():
        venv.symlink_to(sys.prefix)
    return subprocess.run(
        [checkout / "systemd/deb/build", out],
        env={**os.environ, "SOURCE_DATE_EPOCH": str(COMMITTED_AT), **(env or {})},
        capture_output=True,
        text=True,
        timeout=_LIMIT_S,
        check=False,
    )


def build(checkout: Path, out: Path, env: Mapping[str, str] | None = None) -> Path:
    """Build and return the package."""
    done = run_build(checkout, out, env)
    assert (done.returncode, done.stderr) == (0, "")
    return Path(done.stdout.rstrip("\n"))


def field(package: Path, name: str) -> str:
    """Return a field of the package's control file."""
    return _dpkg_deb("--field", package, name).rstrip("\n")


def listing(package: Path) -> list[list[str]]:
    """Return the package's files: mode, owner, size, date, time, path (and `->` and a target)."""
    return [line.split() for line in _dpkg_deb("--contents", package).splitlines()]


def unpack(package: Path, directory: Path) -> Path:
    """Unpack the package's files into `directory`, and its control files into DEBIAN there."""
    _dpkg_deb("--raw-extract", package, directory)
    return directory


def _dpkg_deb(*words: str | Path) -> str:
    done = subprocess.run(
        ["dpkg-deb", *words], env={**os.environ, "TZ": "UTC"}, check=True, capture_output=True
    )
    return done.stdout.decode()
