"""A newer CRIU than the machine's release has, unpacked beside it without installing anything."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from tests.beds import apt, cache
from tests.beds.apt import output_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_SUITE = "trixie"
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
# Wanted by criu's dependencies for scripts that criu itself never runs.
_LEFT_OUT = (
    *("python3", "debconf", "cdebconf", "libdebconf", "perl", "dpkg", "tar", "media-types"),
    *("netbase", "tzdata", "readline-common", "gcc-", "libstdc"),
)
# The newer libc comes with its own loader. LD_LIBRARY_PATH would mix the two releases, and would
# also reach the processes that criu starts.
_WRAPPER = """\
#!/bin/sh
root=$(dirname "$(dirname "$(readlink -f "$0")")")/root
exec "$root/{loader}" --library-path "$root/{libraries}" --argv0 criu "$root/usr/sbin/criu" "$@"
"""


def _private_apt(folder: Path) -> list[str]:
    """Options that let apt know the newer suite alone, and keep its state in a folder."""
    for name in ("state/lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True)
    sources = folder / "sources.list"
    sources.write_text(f"deb [signed-by={_KEYRING}] {apt.mirror()} {_SUITE} main\n")
    status = folder / "status"
    status.touch()
    settings = {
        "Dir::State": folder / "state",
        "Dir::State::status": status,
        "Dir::Cache": folder / "cache",
        "Dir::Etc::sourcelist": sources,
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::Etc::preferencesparts": "/dev/null",
        "APT::Sandbox::User": "root",
        "Acquire::Languages": "none",
    }
    return ["-q", *(f"-o{name}={value}" for name, value in settings.items())]


def _needed_packages(options: list[str]) -> Iterator[str]:
    """Name criu and what it depends on, down to libc."""
    unwanted = ("recommends", "suggests", "conflicts", "breaks", "replaces", "enhances")
    flags = ["--recurse", *(f"--no-{relation}" for relation in unwanted)]
    for line in output_of("apt-cache", *options, "depends", *flags, "criu").splitlines():
        # Packages stand at the start of a line, their relations are indented, virtual ones in <>.
        if line[:1].isalnum() and not line.startswith(_LEFT_OUT):
            yield line


def _unpack(made: Path) -> None:
    """Fill a folder with root/, the unpacked packages, and bin/criu, which starts the right one."""
    work = made / "apt"
    packages = work / "packages"
    packages.mkdir(parents=True)
    options = _private_apt(work)
    output_of("apt-get", *options, "update")
    names = sorted(set(_needed_packages(options)))
    output_of("apt-get", *options, "download", *names, cwd=packages)
    root = made / "root"
    for package in sorted(packages.glob("*.deb")):
        output_of("dpkg", "-x", str(package), str(root))
    shutil.rmtree(work)
    libraries = next(root.glob("usr/lib/*/libc.so.6")).parent
    loader = next(libraries.glob("ld-linux-*.so.*"))
    wrapper = made / "bin/criu"
    wrapper.parent.mkdir()
    wrapper.write_text(
        _WRAPPER.format(loader=loader.relative_to(root), libraries=libraries.relative_to(root))
    )
    wrapper.chmod(0o755)
    output_of(str(wrapper), "--version")


def ensure_criu() -> Path:
    """Give back the path of a newer release's criu, unpacking it on first use.

    It can be given to `runc --criu`, or its folder be put first in PATH.

    A restore that is killed leaves all cgroup hierarchies of the machine mounted in its work
    folder. So use it in a mount namespace of its own (unshare -m --propagation private), and remove
    its folders with rm --one-file-system only.

    Raises:
        BedError: it cannot be had.
    """
    apt.ensure(("debian-archive-keyring",))
    final = cache.directory() / f"criu-{_SUITE}"
    if not final.is_dir():
        with cache.build_lock():
            if not final.is_dir():
                with cache.building(final) as made:
                    _unpack(made)
    return final / "bin/criu"
