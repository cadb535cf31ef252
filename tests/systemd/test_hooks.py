"""Hooks in a delegated unit on cgroup v2, where config.json is changed for the cgroup."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.systemd import guest
from tests.systemd.guest import shell

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.vm, pytest.mark.slow, pytest.mark.timeout(600)]

HOOK = """\
#!/bin/sh
state=$(cat)
echo "$1 $(pwd) $(cat extra.conf) ${state}" >> /run/seen
"""


def test_hooks_see_the_users_bundle_in_a_delegated_unit(tmp_path: Path) -> None:
    with guest.booted(tmp_path / "job") as vm:
        vm.write("/run/hook", HOOK)
        shell(vm, "chmod 755 /run/hook")
        for runtime in ("crun", "runc"):
            name = f"hooks-{runtime}"
            script = "sed -n s/^0:://p /proc/self/cgroup; exit 7"
            bundle = guest.make_bundle(vm, name, script)
            document = json.loads(vm.read(f"{bundle}/config.json"))
            document["root"]["path"] = "rootfs"
            kinds = ("createRuntime", "poststart", "poststop")
            document["hooks"] = {
                kind: [{"path": "/run/hook", "args": ["hook", kind]}] for kind in kinds
            }
            vm.write(f"{bundle}/config.json", json.dumps(document))
            vm.write(f"{bundle}/extra.conf", "extra\n")
            shell(vm, f"cp -a /run/rootfs {bundle}/rootfs; : > /run/seen")
            done = vm.run(
                *(guest.FORKSHIM, "run", "--runtime", runtime, "--bundle", bundle, name),
                properties=("Delegate=yes",),
                timeout_s=120,
            )
            assert done.returncode == 7, (runtime, done)
            assert done.stdout.strip().endswith(".service/payload"), runtime
            seen = [line.split(" ", 3) for line in vm.read("/run/seen").splitlines()]
            assert [line[:3] for line in seen] == [[kind, bundle, "extra"] for kind in kinds]
            assert [json.loads(line[3])["bundle"] for line in seen] == [bundle] * 3, runtime
            assert json.loads(vm.read(f"{bundle}/config.json")) == document
