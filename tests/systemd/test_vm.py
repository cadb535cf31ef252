"""A unit under a cgroup v2 that has its controllers, with both runtimes: in the VM."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.systemd import guest
from tests.systemd.guest import shell

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.beds.vm import VM

pytestmark = [pytest.mark.vm, pytest.mark.slow, pytest.mark.timeout(600)]

LIMIT_BYTES = 32 << 20
GROWS = 's=0123456789abcdef; while :; do s="$s$s"; done'
PLACE = "own=$(sed -n s/^0:://p /proc/self/cgroup); echo $own; cat /sys/fs/cgroup$own/memory.max"

METRICS = """
import json, sys
sys.path.append("/usr/lib/forkshim")
from supervisor.frontends.containerd import metrics
from supervisor.systemd import delegation
from supervisor.wire import cgroup_metrics, protobuf
pressed = [b"x" * (1 << 20) for _ in range(8)]
packed = metrics.read(delegation.membership("self"))
print(json.dumps(protobuf.unpack_any(packed, cgroup_metrics.V2Metrics)))
"""

OOM_EVENTS = Path(__file__).parents[1] / "programs" / "oom_events.py"


@pytest.fixture(scope="module")
def vm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VM]:
    with guest.booted(tmp_path_factory.mktemp("job") / "job") as vm:
        yield vm


def run(
    vm: VM,
    runtime: str,
    name: str,
    script: str,
    *properties: str,
    limit_bytes: int = LIMIT_BYTES,
) -> tuple[int, str, Any]:
    """Run a container as a service with `properties`; returns status, output and record."""
    sys = {"destination": "/sys", "type": "bind", "source": "/sys", "options": ["rbind", "ro"]}
    memory = {"resources": {"memory": {"limit": limit_bytes, "swap": limit_bytes}}}
    bundle = guest.make_bundle(vm, name, script, linux=memory, mounts=[sys])
    done = vm.run(
        *(guest.FORKSHIM, "run", "--runtime", runtime),
        *("--exit-dir", guest.EXITS, "--bundle", bundle, name),
        properties=properties,
        timeout_s=120,
    )
    return done.returncode, done.stdout, guest.exit_record(vm, name)


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


EXAMPLES = "/usr/share/doc/forkshim/examples/forkshim@.service.d"
SETTINGS = """
[Service]
Environment=FORKSHIM_OPTIONS=--log=file:/run/adopt.log
RestartSec=100ms
"""
COUNTS = """
trap 'echo bye; exit 37' TERM
n=0; while :; do n=$((n+1)); echo line $n; sleep 0.01; done
"""


def test_a_killed_supervisor_is_followed_by_another_although_there_are_controllers(vm: VM) -> None:
    """The unit is not divided for that: systemd 252 starts the successor in the unit itself."""
    memory = {"resources": {"memory": {"limit": LIMIT_BYTES}}}
    bundle = guest.make_bundle(vm, "adopt", COUNTS, linux=memory)
    drop_ins = "/etc/systemd/system/forkshim@adopt.service.d"
    vm.write(f"{drop_ins}/zz-test.conf", SETTINGS)
    shell(vm, f"cp {EXAMPLES}/adopt.conf {drop_ins}; ln -s {bundle} /var/lib/forkshim/adopt")
    shell(vm, "systemctl daemon-reload; systemctl start forkshim@adopt")
    unit = shell(vm, "systemctl show -P ControlGroup forkshim@adopt")
    assert shell(vm, f"cat /sys/fs/cgroup{unit}/cgroup.subtree_control") == ""
    scope = f"/sys/fs/cgroup{unit.rpartition('/')[0]}/forkshim-adopt.scope"
    assert shell(vm, f"cat {scope}/memory.max") == str(LIMIT_BYTES)
    payload = shell(vm, "cat /run/forkshim/adopt/init/pid")
    show = "systemctl show -P {} forkshim@adopt"
    shell(
        vm,
        f'kill -9 $({show.format("MainPID")}); until [ "$({show.format("NRestarts")})'
        f'$({show.format("ActiveState")})" = 1active ]; do sleep 0.1; done',
    )
    assert shell(vm, "cat /run/forkshim/adopt/init/pid") == payload
    shell(vm, "systemctl stop forkshim@adopt")
    *lines, last = vm.read("/run/adopt.log").splitlines()
    assert last == "bye"
    assert lines == [f"line {number}" for number in range(1, len(lines) + 1)]
    record = json.loads(vm.read("/run/forkshim-exits/adopt.json"))
    # Linux 6.1 tells how a process has ended to nobody but its parent, and we do not make it up:
    # unless its zombie was seen before the parent had reaped it.
    assert record["stopRequested"]
    if record["status"] is None:
        assert record["error"].startswith("its end is unknown")
    else:
        assert (record["status"], record["error"]) == (37, None)


def test_metrics_of_cgroup_v2_are_the_limits_and_the_use_of_the_cgroup(vm: VM) -> None:
    limits = ("MemoryMax=96M", "TasksMax=33", "CPUQuota=90%")
    done = vm.run("/usr/bin/python3", "-ISB", "-c", METRICS, properties=limits, timeout_s=120)
    assert done.returncode == 0, done
    told = json.loads(done.stdout)
    assert told["pids"] == {"current": 1, "limit": 33}
    assert told["memory"]["usage_limit"] == 96 << 20
    assert told["memory"]["swap_limit"] in (0, (1 << 64) - 1)
    assert 8 << 20 <= told["memory"]["anon"] <= told["memory"]["usage"]
    assert told["memory"]["pgfault"] > 0
    assert told["cpu"]["usage_usec"] >= told["cpu"]["user_usec"] > 0
    assert told["cpu"]["nr_periods"] > 0
    assert None not in told.values()


def test_each_kill_in_a_cgroup_is_told_once(vm: VM) -> None:
    words = ("/usr/bin/python3", "-ISB", "-c", OOM_EVENTS.read_text(), "/usr/lib/forkshim", "oom")
    done = vm.run(*words, timeout_s=120)
    assert (done.returncode, done.stdout) == (0, "2 2\n"), done
