"""OCI bundles with a busybox root file system, made of this machine's own busybox-static."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


def make_rootfs(directory: Path) -> Path:
    """Make a root file system with busybox and its usual names; one serves every bundle."""
    rootfs = directory / "rootfs"
    for name in ("bin", "dev", "proc", "sys", "tmp"):
        (rootfs / name).mkdir(parents=True)
    busybox = shutil.which("busybox")
    assert busybox is not None, "busybox-static is not installed: make setup"
    shutil.copy(busybox, rootfs / "bin" / "busybox")
    applets = subprocess.run([busybox, "--list"], check=True, capture_output=True, text=True)
    for applet in set(applets.stdout.split()) - {"busybox"}:
        (rootfs / "bin" / applet).symlink_to("busybox")
    return rootfs


def config(
    rootfs: Path | str,
    args: Sequence[str],
    *,
    terminal: bool = False,
    host_pid: bool = False,
    mounts: Sequence[dict[str, Any]] = (),
    linux: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return a config.json, all its own except what a test asks for."""
    capabilities = ["CAP_KILL", "CAP_AUDIT_WRITE", "CAP_NET_BIND_SERVICE", "CAP_SETUID"]
    namespaces = ["mount", "ipc", "uts", "network"] + ([] if host_pid else ["pid"])
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": terminal,
            "user": {"uid": 0, "gid": 0},
            "args": list(args),
            "env": ["PATH=/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), capabilities),
            "noNewPrivileges": True,
        },
        "root": {"path": str(rootfs), "readonly": True},
        "hostname": "box",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]},
            {
                "destination": "/dev/pts",
                "type": "devpts",
                "source": "devpts",
                "options": ["newinstance", "ptmxmode=0666", "mode=0620"],
            },
            {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"},
            *mounts,
        ],
        "linux": {"namespaces": [{"type": kind} for kind in namespaces], **(linux or {})},
    }


def bind(source: Path | str, destination: str, *options: str) -> dict[str, Any]:
    """Return the mount of a file or directory of the machine's, at `destination` in a container."""
    return {
        "destination": destination,
        "type": "bind",
        "source": str(source),
        "options": ["bind", *options],
    }


def make_bundle(directory: Path, document: dict[str, Any]) -> Path:
    """Write `document` as the config.json of a new bundle in `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(document))
    return directory


def make_host_rootfs(directory: Path) -> tuple[Path, list[dict[str, Any]]]:
    """Make a root file system with this machine's programs; returns it and the mounts it needs."""
    for name in ("usr", "dev", "proc", "tmp"):
        (directory / name).mkdir(parents=True)
    for name in ("bin", "lib", "lib64"):
        (directory / name).symlink_to(f"usr/{name}")
    return directory, [bind("/usr", "/usr", "ro")]


def shell(script: str) -> list[str]:
    """Return the arguments that run `script` in the container's sh."""
    return ["sh", "-c", script]


def fresh_id(name: str) -> str:
    """Return a container id that no other test, and no other run of this one, has."""
    return f"fst-{name}-{os.getpid()}-{os.urandom(3).hex()}"
