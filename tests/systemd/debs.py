"""Debian packages built from copies of this checkout, as on a fresh machine of a release."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.beds import cache, debian
from tests.beds.apt import output_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ROOT = Path(__file__).parents[2]
DEBIAN_PYTHON = "/usr/bin/python3"
COMMITTED_AT = 1_700_000_000

SUITES = ("bookworm", "trixie")
"""The releases that forkshim's package is for."""

_NOBODY = 65534
_AS_NOBODY = ("setpriv", f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups", "--")
_KEPT = 40  # packages in the cache, of half a megabyte: those of a few versions of the code
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
    nobody: tuple[str, ...] = ()
    if os.geteuid() == 0:
        os.chown(private, _NOBODY, _NOBODY)
        nobody = _AS_NOBODY
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


def package(suite: str, version: str | None = None) -> Path:
    """Return the package of this checkout for a release, built there unless the cache has it."""
    with tempfile.TemporaryDirectory(prefix="forkshim-deb-", dir="/var/tmp") as name:
        work = Path(name)
        copy = copy_checkout(work / "checkout", version)
        folder = cache.directory() / "packages"
        folder.mkdir(exist_ok=True)
        with debian.tree(suite) as tree, cache.locked(folder / f"{suite}.lock"):
            final = folder / f"{_key(copy, tree)}.deb"
            if not final.exists():
                made = build(copy, work) if tree == Path("/") else _build_in(tree, copy, work)
                # Beside the final name first: a reader has all of it, or nothing.
                Path(shutil.copy(made, folder / f"{suite}.unfinished")).rename(final)
            os.utime(final)
            for old in sorted(folder.glob("*.deb"), key=_used_at)[:-_KEPT]:
                old.unlink()
    return final


def _used_at(path: Path) -> float:
    return path.stat().st_mtime


def _key(checkout: Path, tree: Path) -> str:
    """Changes with whatever a package consists of: the code, and the release it is for."""
    digest = hashlib.sha256(os.fsencode(tree))
    for file in sorted(path for path in checkout.rglob("*") if path.is_file()):
        name = file.relative_to(checkout)
        if name.parts[0] != "tests" or name.parts[1] == "setup":
            digest.update(f"{name} {file.stat().st_mode}\n".encode())
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:24]


def _build_in(tree: Path, checkout: Path, work: Path) -> Path:
    """Run `make deb` in a release, as an ordinary user there; its wheels are fetched here."""
    ask = ["python3", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    python = debian.run_in(tree, ask, job=work, env={}).stdout.strip()
    shutil.copytree(_wheels(python), work / "wheels")
    subprocess.run(["chown", "-R", f"{_NOBODY}:{_NOBODY}", checkout], check=True)
    work.chmod(0o755)
    done = debian.run_in(
        tree,
        [*_AS_NOBODY, "make", "-C", "checkout", "deb"],
        job=work,
        env={
            "HOME": "/job/checkout",
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": "/job/wheels",
            "SOURCE_DATE_EPOCH": str(COMMITTED_AT),
        },
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (made,) = (checkout / "dist").glob("*.deb")
    return made


def _wheels(python: str) -> Path:
    """Return a folder with the locked wheels for a version of Python: a tree has no network."""
    lock = ROOT / "tests/setup/requirements.lock"
    name = f"wheels-{python}-"
    final = cache.directory() / f"{name}{hashlib.sha256(lock.read_bytes()).hexdigest()[:12]}"
    with cache.build_lock():
        if final.is_dir():
            return final
        with cache.building(final) as made:
            pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check", "download"]
            wanted = ["--python-version", python, "--only-binary", ":all:", "--require-hashes"]
            output_of(*pip, *wanted, "-r", str(lock), "-d", str(made))
        for old in cache.directory().glob(f"{name}*"):
            if old != final:
                cache.discard(old)
    return final


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


if __name__ == "__main__":  # what every test run needs, before a test asks for it
    for suite in SUITES:
        package(suite)
