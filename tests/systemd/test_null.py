"""A container's null device is never the machine's: crun 1.8 gives it to the container's root."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.systemd import guest
from tests.systemd.guest import shell

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.vm, pytest.mark.slow, pytest.mark.timeout(600)]

USER = 101000
SCRIPT = "cat; echo $?; echo lost >&2; echo x > /dev/null; exit 3"
# Each option is another device for a stream.
OPTIONS: dict[str, list[tuple[str, ...]]] = {
    "crun": [(), ("--log", "null"), ("-i",)],
    "runc": [()],
}


def test_the_owner_of_dev_null_stays_root_with_a_user_namespace(tmp_path: Path) -> None:
    mapping = [{"containerID": 0, "hostID": USER, "size": 65536}]
    kinds = ("mount", "ipc", "uts", "network", "pid", "user")
    linux = {
        "namespaces": [{"type": kind} for kind in kinds],
        "uidMappings": mapping,
        "gidMappings": mapping,
    }
    with guest.booted(tmp_path / "job") as vm:
        for runtime, rows in OPTIONS.items():
            for number, options in enumerate(rows):
                name = f"null-{runtime}-{number}"
                bundle = guest.make_bundle(vm, name, SCRIPT, linux=linux)
                done = vm.run(
                    *(guest.FORKSHIM, "run"),
                    *("--runtime", runtime, "--bundle", bundle, *options, name),
                    timeout_s=120,
                )
                assert done.returncode == 3, (name, done)
                assert done.stdout == ("" if "null" in options else "0\n"), name
                assert shell(vm, "stat -c '%u:%g %t:%T %a' /dev/null") == "0:0 1:3 666", name
