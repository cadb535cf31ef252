"""The answers to Stats: metrics of cgroup v1 and v2, as tables for `supervisor.wire.protobuf`.

The two versions use the same message names in two packages: `V1Metrics` is
`io.containerd.cgroups.v1.Metrics`, `V2Metrics` is `io.containerd.cgroups.v2.Metrics`.

Source: cgroup1/stats and cgroup2/stats of github.com/containerd/cgroups.
"""

from __future__ import annotations

from supervisor.wire.protobuf import STRING, UINT32, UINT64, Field, MessageType


def _v1(name: str, *fields: Field) -> MessageType:
    return MessageType(f"io.containerd.cgroups.v1.{name}", *fields)


def _v2(name: str, *fields: Field) -> MessageType:
    return MessageType(f"io.containerd.cgroups.v2.{name}", *fields)


def _counters(*names: str, first: int = 1) -> tuple[Field, ...]:
    """Return fields of 64 unsigned bits, numbered from `first`."""
    return tuple(Field(number, name, UINT64) for number, name in enumerate(names, first))


_V1_MEMORY = (
    "cache", "rss", "rss_huge", "mapped_file", "dirty", "writeback", "pg_pg_in", "pg_pg_out",
    "pg_fault", "pg_maj_fault", "inactive_anon", "active_anon", "inactive_file", "active_file",
    "unevictable",
)  # fmt: skip

V1HugetlbStat = _v1(
    "HugetlbStat", *_counters("usage", "max", "failcnt"), Field(4, "pagesize", STRING)
)
V1PidsStat = _v1("PidsStat", *_counters("current", "limit"))
V1CPUUsage = _v1(
    "CPUUsage", *_counters("total", "kernel", "user"), Field(4, "per_cpu", UINT64, True)
)
V1Throttle = _v1("Throttle", *_counters("periods", "throttled_periods", "throttled_time"))
V1CPUStat = _v1("CPUStat", Field(1, "usage", V1CPUUsage), Field(2, "throttling", V1Throttle))
V1MemoryEntry = _v1("MemoryEntry", *_counters("limit", "usage", "max", "failcnt"))
V1MemoryStat = _v1(
    "MemoryStat",
    *_counters(*_V1_MEMORY),
    *_counters("hierarchical_memory_limit", "hierarchical_swap_limit", first=16),
    *_counters(*(f"total_{name}" for name in _V1_MEMORY), first=18),
    Field(33, "usage", V1MemoryEntry),
    Field(34, "swap", V1MemoryEntry),
    Field(35, "kernel", V1MemoryEntry),
    Field(36, "kernel_tcp", V1MemoryEntry),
)
V1MemoryOomControl = _v1(
    "MemoryOomControl", *_counters("oom_kill_disable", "under_oom", "oom_kill")
)
V1BlkIOEntry = _v1(
    "BlkIOEntry",
    Field(1, "op", STRING),
    Field(2, "device", STRING),
    *_counters("major", "minor", "value", first=3),
)
V1BlkIOStat = _v1(
    "BlkIOStat",
    Field(1, "io_service_bytes_recursive", V1BlkIOEntry, True),
    Field(2, "io_serviced_recursive", V1BlkIOEntry, True),
    Field(3, "io_queued_recursive", V1BlkIOEntry, True),
    Field(4, "io_service_time_recursive", V1BlkIOEntry, True),
    Field(5, "io_wait_time_recursive", V1BlkIOEntry, True),
    Field(6, "io_merged_recursive", V1BlkIOEntry, True),
    Field(7, "io_time_recursive", V1BlkIOEntry, True),
    Field(8, "sectors_recursive", V1BlkIOEntry, True),
)
_RDMA_ENTRY = (
    Field(1, "device", STRING),
    Field(2, "hca_handles", UINT32),
    Field(3, "hca_objects", UINT32),
)
V1RdmaEntry = _v1("RdmaEntry", *_RDMA_ENTRY)
V1RdmaStat = _v1(
    "RdmaStat", Field(1, "current", V1RdmaEntry, True), Field(2, "limit", V1RdmaEntry, True)
)
V1NetworkStat = _v1(
    "NetworkStat",
    Field(1, "name", STRING),
    *_counters(
        "rx_bytes", "rx_packets", "rx_errors", "rx_dropped",
        "tx_bytes", "tx_packets", "tx_errors", "tx_dropped",
        first=2,
    ),
)  # fmt: skip
V1CgroupStats = _v1(
    "CgroupStats",
    *_counters("nr_sleeping", "nr_running", "nr_stopped", "nr_uninterruptible", "nr_io_wait"),
)
V1Metrics = _v1(
    "Metrics",
    Field(1, "hugetlb", V1HugetlbStat, True),
    Field(2, "pids", V1PidsStat),
    Field(3, "cpu", V1CPUStat),
    Field(4, "memory", V1MemoryStat),
    Field(5, "blkio", V1BlkIOStat),
    Field(6, "rdma", V1RdmaStat),
    Field(7, "network", V1NetworkStat, True),
    Field(8, "cgroup_stats", V1CgroupStats),
    Field(9, "memory_oom_control", V1MemoryOomControl),
)

V2PidsStat = _v2("PidsStat", *_counters("current", "limit"))
V2CPUStat = _v2(
    "CPUStat",
    *_counters(
        "usage_usec", "user_usec", "system_usec", "nr_periods", "nr_throttled", "throttled_usec"
    ),
)
V2MemoryStat = _v2(
    "MemoryStat",
    *_counters(
        "anon", "file", "kernel_stack", "slab", "sock", "shmem", "file_mapped", "file_dirty",
        "file_writeback", "anon_thp", "inactive_anon", "active_anon", "inactive_file",
        "active_file", "unevictable", "slab_reclaimable", "slab_unreclaimable", "pgfault",
        "pgmajfault", "workingset_refault", "workingset_activate", "workingset_nodereclaim",
        "pgrefill", "pgscan", "pgsteal", "pgactivate", "pgdeactivate", "pglazyfree", "pglazyfreed",
        "thp_fault_alloc", "thp_collapse_alloc", "usage", "usage_limit", "swap_usage",
        "swap_limit", "max_usage", "swap_max_usage",
    ),
)  # fmt: skip
V2RdmaEntry = _v2("RdmaEntry", *_RDMA_ENTRY)
V2RdmaStat = _v2(
    "RdmaStat", Field(1, "current", V2RdmaEntry, True), Field(2, "limit", V2RdmaEntry, True)
)
V2IOEntry = _v2("IOEntry", *_counters("major", "minor", "rbytes", "wbytes", "rios", "wios"))
V2IOStat = _v2("IOStat", Field(1, "usage", V2IOEntry, True))
V2HugeTlbStat = _v2("HugeTlbStat", *_counters("current", "max"), Field(3, "pagesize", STRING))
V2MemoryEvents = _v2("MemoryEvents", *_counters("low", "high", "max", "oom", "oom_kill"))
V2Metrics = _v2(
    "Metrics",
    Field(1, "pids", V2PidsStat),
    Field(2, "cpu", V2CPUStat),
    Field(4, "memory", V2MemoryStat),
    Field(5, "rdma", V2RdmaStat),
    Field(6, "io", V2IOStat),
    Field(7, "hugetlb", V2HugeTlbStat, True),
    Field(8, "memory_events", V2MemoryEvents),
)
