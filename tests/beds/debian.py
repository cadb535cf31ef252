"""Root file systems of Debian releases: the machine's own `/`, and those made from its mirror."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import subprocess
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.beds import apt, cache
from tests.beds.apt import output_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

PACKAGES = ("debian-archive-keyring", "mmdebstrap", "util-linux")

_CHROOT = Path(__file__).with_name("chroot.sh")
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
# systemd and a user's session; what forkshim's package needs; what a developer builds it with; the
# engines that its shims serve.
_IN_TREE = (
    *("systemd", "systemd-sysv", "dbus", "dbus-user-session", "libpam-systemd", "util-linux"),
    *("python3", "runc", "crun", "procps", "iproute2", "logrotate"),
    *("busybox-static", "git", "make", "python3-venv"),
    *("containerd", "docker.io", "docker-cli", "podman", "uidmap"),
)
_FETCH = ("/usr/lib/apt/apt-helper", "-oAPT::Sandbox::User=root", "download-file")
_FETCH_S = 60.0
_CHROOT_S = 600.0


def own() -> str:
    """The code name of the release that this machine runs."""
    return platform.freedesktop_os_release()["VERSION_CODENAME"]


@contextmanager
def tree(suite: str) -> Iterator[Path]:
    """A release's root file system, for reading: lay something over it to write.

    `/` for the machine's own release. Another one's is made on first use, in half a minute, and
    made anew when the release has changed.

    Raises:
        BedError: it cannot be had.
    """
    if suite == own():
        yield Path("/")
        return
    apt.ensure(PACKAGES)
    release = _fetch_release(suite)
    with ExitStack() as claim:
        with cache.build_lock():
            folder = _ensure(suite, release)
            claim.enter_context(cache.in_use(folder))
        yield folder / "root"


@functools.cache
def _fetch_release(suite: str) -> bytes:
    """The mirror's description of a suite, which changes with every package of it.

    Empty without network: what the cache has is then taken for the newest.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "InRelease")
        address = f"{apt.mirror()}/dists/{suite}/InRelease".replace("//dists", "/dists")
        subprocess.run(
            [*_FETCH, address, file],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_FETCH_S,
            check=False,
        )
        return file.read_bytes() if file.exists() else b""


def _ensure(suite: str, release: bytes) -> Path:
    """The tree's folder in the cache; the caller holds the build lock."""
    recipe = hashlib.sha256(json.dumps([suite, apt.mirror(), _IN_TREE]).encode()).hexdigest()[:12]
    prefix = f"debian-{suite}-"
    final = cache.directory() / f"{prefix}{recipe}-{hashlib.sha256(release).hexdigest()[:12]}"
    if not release and (cached := sorted(cache.directory().glob(f"{prefix}{recipe}-*"))):
        return cached[-1]
    if final.is_dir():
        return final
    with cache.building(final) as made:
        output_of(
            *("mmdebstrap", "--quiet", "--variant=minbase", "--mode=root"),
            *(f"--include={','.join(_IN_TREE)}", '--aptopt=Acquire::Languages "none"'),
            *(suite, str(made / "root")),
            f"deb [signed-by={_KEYRING}] {apt.mirror()} {suite} main",
        )
    for old in cache.directory().glob(f"{prefix}*"):
        if old != final:
            cache.discard(old)
    return final


def run_in(
    root: Path, argv: Sequence[str], *, job: Path, env: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run a command in a release, in the folder `job`, which it finds at /job.

    What it writes elsewhere is gone at its end. It has this machine's kernel and devices.
    """
    with cache.run_folder() as folder:
        return subprocess.run(
            [
                *("unshare", "--mount", "--propagation", "private"),
                *(str(_CHROOT), str(folder), str(root), str(job), *argv),
            ],
            env={"PATH": os.environ["PATH"], **env},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_CHROOT_S,
            check=False,
        )
