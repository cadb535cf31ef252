"""forkshim in the VM: its commands, a root file system for containers, and a shell."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tests.beds.vm import VM
from tests.harness import bundles
from tests.runtime.test_crun import make_job

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ENVIRONMENT = ("PYTHONPATH=/job/src/site:/job/src", "PYTHONDONTWRITEBYTECODE=1")
FORKSHIM = "/job/src/bin/forkshim"
EXITS = "/run/exits"
_ROOTFS = "/run/rootfs"
_MAKE_ROOTFS = """
set -e
mkdir -p $0/bin $0/proc $0/dev $0/sys $0/tmp
cp /bin/busybox $0/bin
for word in sh sed cat echo; do ln -s busybox $0/bin/$word; done
"""


@contextmanager
def booted(directory: Path) -> Iterator[VM]:
    """Boot a VM with this checkout's forkshim; `directory` is made for what it gets."""
    with VM(src=make_job(directory)) as vm:
        made = vm.raw("sh", "-c", _MAKE_ROOTFS, _ROOTFS)
        assert made.returncode == 0, made.stderr
        yield vm


def shell(vm: VM, script: str) -> str:
    """Run a script in the guest, which has to succeed; returns what it has said, stripped."""
    done = vm.raw("sh", "-c", script)
    assert done.returncode == 0, done
    return done.stdout.strip()


def make_bundle(vm: VM, name: str, script: str, **options: Any) -> str:
    """Make a bundle for a shell script in the guest; options as `bundles.config`."""
    document = bundles.config(_ROOTFS, bundles.shell(script), **options)
    bundle = f"/run/bundles/{name}"
    vm.write(f"{bundle}/config.json", json.dumps(document))
    return bundle


def exit_record(vm: VM, name: str) -> Any:
    """Return the record of a container's end."""
    return json.loads(vm.read(f"{EXITS}/{name}.json"))
