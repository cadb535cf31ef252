"""forkshim's package in the VM, a root file system for containers, and a shell."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tests.beds import debian
from tests.beds.vm import VM
from tests.harness import bundles
from tests.systemd import debs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FORKSHIM = "/usr/bin/forkshim"
EXITS = "/run/exits"
_ROOTFS = "/run/rootfs"
# There is no dpkg; nor has the package anything that it would do here beyond this.
_INSTALL = """
set -e
cp -a /job/src/usr/. /usr/
cp -a /job/src/lib/. /usr/lib/
mkdir -p /etc/forkshim /var/lib/forkshim
systemctl daemon-reload
"""
_MAKE_ROOTFS = """
set -e
mkdir -p $0/bin $0/proc $0/dev $0/sys $0/tmp
cp /bin/busybox $0/bin
for word in sh sed cat echo; do ln -s busybox $0/bin/$word; done
"""


@contextmanager
def booted(directory: Path) -> Iterator[VM]:
    """Boot a VM with forkshim's package; `directory` is made for what it gets."""
    package = debs.unpack(debs.package(debian.own()), directory)
    with VM(src=package) as vm:
        for words in ((_INSTALL,), (_MAKE_ROOTFS, _ROOTFS)):
            made = vm.raw("sh", "-c", *words)
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
