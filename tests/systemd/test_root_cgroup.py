"""A container in the root of all cgroups: only in the VM, where a mistake ends no real machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.systemd import guest
from tests.systemd.guest import shell

if TYPE_CHECKING:
    from pathlib import Path

    from tests.beds.vm import VM

pytestmark = [pytest.mark.vm, pytest.mark.slow, pytest.mark.timeout(600)]


def run(vm: VM, runtime: str, name: str, *, host_pid: bool) -> tuple[int, str]:
    bundle = guest.make_bundle(vm, name, "exit 3", host_pid=host_pid, linux={"cgroupsPath": "/"})
    done = vm.run(
        *(guest.FORKSHIM, "run", "--runtime", runtime),
        *("--bundle", bundle, name),
        timeout_s=120,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("runtime", ["runc", "crun"])
def test_the_machine_outlives_a_container_in_the_root_cgroup(tmp_path: Path, runtime: str) -> None:
    with guest.booted(tmp_path / "job") as vm:
        sleeper = shell(vm, "sleep 1000 </dev/null >/dev/null 2>&1 & echo $!")
        status, err = run(vm, runtime, f"own-{runtime}", host_pid=False)
        assert (status, err) == (3, "")
        status, err = run(vm, runtime, f"shared-{runtime}", host_pid=True)
        assert status == 3
        assert f"{runtime} delete is skipped" in err
        shell(vm, f"kill -0 {sleeper}")


def test_nobody_is_told_to_delete_one_that_lives_in_the_root_cgroup(tmp_path: Path) -> None:
    with guest.booted(tmp_path / "job") as vm:
        linux = {"cgroupsPath": "/"}
        bundle = guest.make_bundle(
            vm, "lives", "trap : TERM; while sleep 1; do :; done", host_pid=True, linux=linux
        )
        words = f"{guest.FORKSHIM} run --bundle {bundle}"
        # Without a successor, which would be the living supervisor that the second run meets.
        shell(vm, f"FORKSHIM_SUCCESSORS=0 {words} --log file:/run/lives.log --detach lives")
        pid = shell(vm, "cat /run/forkshim/lives/init/pid")
        shell(vm, "kill -KILL $(cat /run/forkshim/lives/supervisor.pid)")
        done = vm.run(*words.split(), "lives", timeout_s=120)
        assert f"`kill -KILL {pid}` ends it" in done.stderr
        shell(vm, f"kill -KILL {pid}")
