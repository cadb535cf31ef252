"""A unit under a cgroup v2 that has its controllers, with both runtimes: in the VM."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.beds.vm import VM
from tests.harness import bundles
from tests.runtime.test_crun import ROOT, make_job

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.vm, pytest.mark.slow, pytest.mark.timeout(600)]

LIMIT_BYTES = 32 << 20
GROWS = 's=0123456789abcdef; while :; do s="$s$s"; done'
PLACE = "own=$(sed -n s/^0:://p /proc/self/cgroup); echo $own; cat /sys/fs/cgroup$own/memory.max"


@pytest.fixture(scope="module")
def vm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VM]:
    with VM(src=make_job(tmp_path_factory.mktemp("job") / "job")) as booted:
        yield booted


def run(
    vm: VM,
    runtime: str,
    name: str,
    script: str,
    *properties: str,
    limit_bytes: int = LIMIT_BYTES,
) -> tuple[int, str, Any]:
    """Run a container as a service with `properties`; returns status, output and record."""
    rootfs = "/run/rootfs"
    made = f"mkdir -p {rootfs}/bin {rootfs}/proc {rootfs}/dev {rootfs}/sys {rootfs}/tmp"
    vm.raw("sh", "-c", f"{made}; cp -n /bin/busybox {rootfs}/bin; "
           f"for w in sh sed cat echo; do ln -sf busybox {rootfs}/bin/$w; done")  # fmt: skip
    sys = {"destination": "/sys", "type": "bind", "source": "/sys", "options": ["rbind", "ro"]}
    memory = {"resources": {"memory": {"limit": limit_bytes, "swap": limit_bytes}}}
    document = bundles.config(
        rootfs, bundles.shell(script), linux=memory, mounts=[sys]  # type: ignore[arg-type] # a path of the guest's
    )  # fmt: skip
    bundle = f"/run/bundles/{name}"
    vm.raw("mkdir", "-p", bundle)
    vm.write(f"{bundle}/config.json", json.dumps(document))
    done = vm.run(
        *("/usr/bin/env", "PYTHONPATH=/job/src/site:/job/src", "PYTHONDONTWRITEBYTECODE=1"),
        *("/job/src/bin/forkshim", "run", "--runtime", runtime, "--exit-dir", "/run/exits"),
        *("--bundle", bundle, name),
        properties=properties,
        timeout_s=120,
    )
    return done.returncode, done.stdout, json.loads(vm.read(f"/run/exits/{name}.json"))


@pytest.mark.parametrize("runtime", ["runc", "crun"])
def test_the_container_is_in_the_unit_and_its_own_limit_holds(vm: VM, runtime: str) -> None:
    name = f"place-{runtime}"
    status, out, record = run(vm, runtime, name, PLACE, "Delegate=yes", "MemoryMax=512M")
    assert (status, record["exitCode"]) == (0, 0), out
    place, limit = out.splitlines()[:2]
    assert place.endswith(".service/payload")
    assert limit == str(LIMIT_BYTES)


@pytest.mark.parametrize("runtime", ["runc", "crun"])
def test_out_of_memory_in_the_unit_is_told(vm: VM, runtime: str) -> None:
    status, out, record = run(vm, runtime, f"oom-{runtime}", GROWS, "Delegate=yes")
    assert (status, record["signal"]) == (137, "SIGKILL"), out
    assert record["oomKills"] >= 1


@pytest.mark.parametrize("runtime", ["runc", "crun"])
def test_the_units_own_limit_is_told_as_well(vm: VM, runtime: str) -> None:
    """The container's limit is higher than what the unit may have."""
    status, out, record = run(
        vm,
        runtime,
        f"unit-{runtime}",
        GROWS,
        "Delegate=yes",
        "MemoryMax=96M",
        "MemorySwapMax=0",
        limit_bytes=300 << 20,
    )
    assert status == 137, out
    assert record["oomKills"] >= 1


UNIT = """
[Service]
Type=notify
Delegate=yes
Environment=PYTHONPATH=/job/src/site:/job/src PYTHONDONTWRITEBYTECODE=1
{drop_in}
ExecStart=
ExecStart=/job/src/bin/forkshim run --adopt --log=file:/run/adopt.log --exit-dir /run/exits \\
    --bundle /run/bundles/adopt adopt
RestartSec=100ms
"""
COUNTS = """
trap 'echo bye; exit 37' TERM
n=0; while :; do n=$((n+1)); echo line $n; sleep 0.01; done
"""


def test_a_killed_supervisor_is_followed_by_another_although_there_are_controllers(vm: VM) -> None:
    """The unit is not divided for that: systemd 252 starts the successor in the unit itself."""
    status, out, _record = run(vm, "runc", "warm-up", "echo made", "Delegate=yes")
    assert status == 0, out
    memory = {"resources": {"memory": {"limit": LIMIT_BYTES}}}
    document = bundles.config("/run/rootfs", bundles.shell(COUNTS), linux=memory)  # type: ignore[arg-type] # a path of the guest's
    vm.raw("mkdir", "-p", "/run/bundles/adopt")
    vm.write("/run/bundles/adopt/config.json", json.dumps(document))
    drop_in = (ROOT / "systemd" / "forkshim@.service.d" / "adopt.conf").read_text()
    settings = drop_in.split("[Service]\n")[1]
    vm.write("/run/systemd/system/adopt.service", UNIT.format(drop_in=settings))
    _shell(vm, "systemctl daemon-reload; systemctl start adopt")
    assert _shell(vm, "cat /sys/fs/cgroup/system.slice/adopt.service/cgroup.subtree_control") == ""
    scope = "/sys/fs/cgroup/system.slice/forkshim-adopt.scope"
    assert _shell(vm, f"cat {scope}/memory.max") == str(LIMIT_BYTES)
    payload = _shell(vm, "cat /run/forkshim/adopt/init/pid")
    show = "systemctl show -P {} adopt"
    _shell(
        vm,
        f'kill -9 $({show.format("MainPID")}); until [ "$({show.format("NRestarts")})'
        f'$({show.format("ActiveState")})" = 1active ]; do sleep 0.1; done',
    )
    assert _shell(vm, "cat /run/forkshim/adopt/init/pid") == payload
    _shell(vm, "systemctl stop adopt")
    *lines, last = vm.read("/run/adopt.log").splitlines()
    assert last == "bye"
    assert lines == [f"line {number}" for number in range(1, len(lines) + 1)]
    record = json.loads(vm.read("/run/exits/adopt.json"))
    # Linux 6.1 tells how a process has ended to nobody but its parent, and we do not make it up.
    assert (record["status"], record["stopRequested"]) == (None, True)
    assert record["error"].startswith("its end is unknown")


def _shell(vm: VM, script: str) -> str:
    return vm.raw("sh", "-c", script).stdout.strip()
