"""Metrics of a container, from cgroup files as the kernel writes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from supervisor.frontends.containerd import metrics
from supervisor.wire.cgroup_metrics import V1Metrics, V2Metrics
from supervisor.wire.protobuf import unpack_any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pyfakefs.fake_filesystem import FakeFilesystem

MOST = (1 << 64) - 1
ROOT = "/sys/fs/cgroup"
V1 = dict.fromkeys(("memory", "cpu", "cpuacct", "pids", "blkio", "hugetlb", "rdma"), "/ns/a")

V1_FILES = {
    "pids": {"pids.current": "3\n", "pids.max": "100\n"},
    "cpuacct": {
        "cpuacct.usage": "8912437\n",
        "cpuacct.usage_percpu": "8461497 450940 \n",
        "cpuacct.stat": "user 5\nsystem 7\n",
    },
    "cpu": {"cpu.stat": "nr_periods 4\nnr_throttled 3\nthrottled_time 20\nnr_bursts 9\n"},
    "memory": {
        "memory.stat": "cache 1\nrss 2\npgpgin 7\npgmajfault 10\nhierarchical_memory_limit 16\n"
        "hierarchical_memsw_limit 17\ntotal_cache 18\ntotal_pgpgin 24\nunknown 5\n",
        "memory.usage_in_bytes": "679936\n",
        "memory.limit_in_bytes": "9223372036854771712\n",
        "memory.max_usage_in_bytes": "2514944\n",
        "memory.failcnt": "6\n",
        "memory.kmem.usage_in_bytes": "401408\n",
        "memory.oom_control": "oom_kill_disable 0\nunder_oom 1\noom_kill 2\n",
    },
    "blkio": {
        "blkio.throttle.io_service_bytes_recursive": "8:16 Read 4096\n8:16 Write 5\nTotal 4101\n",
        "blkio.throttle.io_serviced_recursive": "Total 0\n",
    },
    "hugetlb": {
        "hugetlb.2MB.usage_in_bytes": "1\n",
        "hugetlb.2MB.max_usage_in_bytes": "2\n",
        "hugetlb.2MB.failcnt": "3\n",
        "hugetlb.2MB.rsvd.usage_in_bytes": "9\n",
    },
    "rdma": {
        "rdma.current": "mlx4_0 hca_handle=2 hca_object=2000\n",
        "rdma.max": "mlx4_0 hca_handle=max hca_object=9\n",
    },
}
V2_FILES = {
    "pids.current": "2\n",
    "pids.max": "max\n",
    "cpu.stat": "usage_usec 30\nuser_usec 10\nsystem_usec 20\nnr_periods 1\nnr_throttled 2\n"
    "throttled_usec 3\nnice_usec 8\n",
    "memory.stat": "anon 1\nfile 2\nkernel 3\nslab 4\nthp_collapse_alloc 31\n",
    "memory.current": "32\n",
    "memory.max": "max\n",
    "memory.swap.current": "34\n",
    "memory.swap.max": "35\n",
    "memory.events": "low 1\nhigh 2\nmax 3\noom 4\noom_kill 5\noom_group_kill 0\n",
    "io.stat": "254:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n8:0 rbytes=5\n",
    "hugetlb.1GB.current": "1\n",
    "hugetlb.1GB.max": "max\n",
    "hugetlb.1GB.rsvd.current": "1\n",
}


def of_v1(fs: FakeFilesystem, membership: Mapping[str, str] = V1) -> dict[str, Any]:
    for controller, files in V1_FILES.items():
        if controller in membership:
            for name, text in files.items():
                fs.create_file(f"{ROOT}/{controller}/ns/a/{name}", contents=text)
    return unpack_any(metrics.read(membership), V1Metrics)


def of_v2(fs: FakeFilesystem, files: Mapping[str, str] = V2_FILES) -> dict[str, Any]:
    fs.create_file(f"{ROOT}/cgroup.controllers")
    for name, text in files.items():
        fs.create_file(f"{ROOT}/ns/a/{name}", contents=text)
    return unpack_any(metrics.read({"": "/ns/a"}), V2Metrics)


def test_v1_has_every_controllers_counts(fs: FakeFilesystem) -> None:
    fs.create_symlink("/sys/dev/block/8:16", "../../devices/virtual/block/sdb")
    told = of_v1(fs)
    assert told["pids"] == {"current": 3, "limit": 100}
    assert told["cpu"] == {
        "usage": {
            "total": 8912437,
            "kernel": 70_000_000,
            "user": 50_000_000,
            "per_cpu": [8461497, 450940],
        },
        "throttling": {"periods": 4, "throttled_periods": 3, "throttled_time": 20},
    }
    memory = {name: value for name, value in told["memory"].items() if value}
    assert memory == {
        "cache": 1,
        "rss": 2,
        "pg_pg_in": 7,
        "pg_maj_fault": 10,
        "hierarchical_memory_limit": 16,
        "hierarchical_swap_limit": 17,
        "total_cache": 18,
        "total_pg_pg_in": 24,
        "usage": {"limit": 9223372036854771712, "usage": 679936, "max": 2514944, "failcnt": 6},
        "swap": {"limit": 0, "usage": 0, "max": 0, "failcnt": 0},
        "kernel": {"limit": 0, "usage": 401408, "max": 0, "failcnt": 0},
        "kernel_tcp": {"limit": 0, "usage": 0, "max": 0, "failcnt": 0},
    }
    assert told["memory_oom_control"] == {"oom_kill_disable": 0, "under_oom": 1, "oom_kill": 2}
    disk = {"device": "/dev/sdb", "major": 8, "minor": 16}
    assert told["blkio"]["io_service_bytes_recursive"] == [
        {"op": "Read", **disk, "value": 4096},
        {"op": "Write", **disk, "value": 5},
    ]
    assert told["blkio"]["io_serviced_recursive"] == []
    assert told["hugetlb"] == [{"usage": 1, "max": 2, "failcnt": 3, "pagesize": "2MB"}]
    device = {"device": "mlx4_0", "hca_objects": 2000, "hca_handles": 2}
    assert told["rdma"] == {
        "current": [device],
        "limit": [{"device": "mlx4_0", "hca_handles": (1 << 32) - 1, "hca_objects": 9}],
    }


def test_v2_has_every_controllers_counts(fs: FakeFilesystem) -> None:
    told = of_v2(fs)
    assert told["pids"] == {"current": 2, "limit": MOST}
    assert told["cpu"] == {
        "usage_usec": 30,
        "user_usec": 10,
        "system_usec": 20,
        "nr_periods": 1,
        "nr_throttled": 2,
        "throttled_usec": 3,
    }
    memory = {name: value for name, value in told["memory"].items() if value}
    assert memory == {
        "anon": 1,
        "file": 2,
        "slab": 4,
        "thp_collapse_alloc": 31,
        "usage": 32,
        "usage_limit": MOST,
        "swap_usage": 34,
        "swap_limit": 35,
    }
    assert told["memory_events"] == {"low": 1, "high": 2, "max": 3, "oom": 4, "oom_kill": 5}
    assert told["io"]["usage"] == [
        {"major": 254, "minor": 0, "rbytes": 1, "wbytes": 2, "rios": 3, "wios": 4},
        {"major": 8, "minor": 0, "rbytes": 5, "wbytes": 0, "rios": 0, "wios": 0},
    ]
    assert told["hugetlb"] == [{"current": 1, "max": MOST, "pagesize": "1GB"}]


def test_every_sub_message_is_there_without_its_controller(fs: FakeFilesystem) -> None:
    """Clients do not check: dockerd 20.10 crashes without cpu.throttling."""
    v1 = of_v1(fs, {"pids": "/ns/a"})
    assert v1["pids"]["current"] == 3
    for name in ("cpu", "memory", "blkio", "rdma", "cgroup_stats", "memory_oom_control"):
        assert v1[name] is not None, name
    assert None not in v1["cpu"].values()
    assert None not in v1["memory"].values()


def test_v2_without_any_controller_has_every_sub_message(fs: FakeFilesystem) -> None:
    told = of_v2(fs, {"cpu.stat": "usage_usec 30\n"})
    assert None not in told.values()
    assert told["cpu"]["usage_usec"] == 30


def test_pids_of_v1_without_a_limit_are_0(fs: FakeFilesystem) -> None:
    fs.create_file(f"{ROOT}/pids/ns/a/pids.max", contents="max\n")
    told = unpack_any(metrics.read({"pids": "/ns/a"}), V1Metrics)
    assert told["pids"]["limit"] == 0


@pytest.mark.parametrize(
    "membership",
    [{}, {"": "/ns/a"}, {"name=systemd": "/ns/a"}, {"memory": "/", "pids": "/"}],
    ids=["gone", "only v2", "only systemd's", "the root"],
)
def test_a_container_without_a_cgroup_of_its_own_is_an_error(
    fs: FakeFilesystem, membership: dict[str, str]
) -> None:
    fs.create_dir(ROOT)
    with pytest.raises(metrics.NoCgroupError):
        metrics.read(membership)


def test_v2_without_a_cgroup_of_its_own_is_an_error(fs: FakeFilesystem) -> None:
    fs.create_file(f"{ROOT}/cgroup.controllers")
    with pytest.raises(metrics.NoCgroupError):
        metrics.read({"": "/"})


@pytest.mark.parametrize(
    "text", [b"", b"\xff\xfe\n", b"-1\n", b"x y z\n", b"99999999999999999999999\n"]
)
def test_any_bytes_are_a_number_in_range(fs: FakeFilesystem, text: bytes) -> None:
    fs.create_file(f"{ROOT}/cgroup.controllers")
    for name in V2_FILES:
        if name not in ("io.stat", "cgroup.controllers"):
            fs.create_file(f"{ROOT}/ns/a/{name}", contents=text)
    told = unpack_any(metrics.read({"": "/ns/a"}), V2Metrics)
    assert told["memory"]["usage"] in (0, MOST)
