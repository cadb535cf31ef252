"""What a container has used, for Stats: from cgroup files to containerd's two `Metrics` messages.

Clients read sub-messages without a check (dockerd 20.10 crashes), so each one is present, empty if
its controller is missing. A file that the kernel lacks leaves its fields at 0. Kernel files are
bytes. `max` is the highest number that a field holds; for pids of v1 it is 0, as stock has it.

Source: Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/ of the kernel.
"""

from __future__ import annotations

import errno
import os

from supervisor.systemd import delegation
from supervisor.wire import cgroup_metrics
from supervisor.wire.protobuf import pack_any

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

_MOST_64 = (1 << 64) - 1
_MOST_32 = (1 << 32) - 1
_NANOSECONDS = 1_000_000_000
_MISSING = frozenset((errno.ENOENT, errno.ENOTDIR, errno.ENODEV, errno.EOPNOTSUPP))
"""No such controller, a cgroup removed while it was read, an interface without this file system."""

_SYSTEMDS_OWN = "name=systemd"


def _as_named(*names: str) -> dict[str, str]:
    return dict(zip(names, names, strict=True))


_V1_MEMORY = _as_named(
    *("cache", "rss", "rss_huge", "mapped_file", "dirty", "writeback", "inactive_anon"),
    *("active_anon", "inactive_file", "active_file", "unevictable"),
) | {
    "pgpgin": "pg_pg_in",
    "pgpgout": "pg_pg_out",
    "pgfault": "pg_fault",
    "pgmajfault": "pg_maj_fault",
}
"""From lines of memory.stat to fields; each line has a second form with `total_`."""
_V1_OOM = _as_named("oom_kill_disable", "under_oom", "oom_kill")
_V1_THROTTLING = {
    "nr_periods": "periods",
    "nr_throttled": "throttled_periods",
    "throttled_time": "throttled_time",
}

_V2_CPU = _as_named(
    *("usage_usec", "user_usec", "system_usec"),
    *("nr_periods", "nr_throttled", "throttled_usec"),
)
_V2_MEMORY = _as_named(
    *("anon", "file", "kernel_stack", "slab", "sock", "shmem", "file_mapped", "file_dirty"),
    *("file_writeback", "anon_thp", "inactive_anon", "active_anon", "inactive_file"),
    *("active_file", "unevictable", "slab_reclaimable", "slab_unreclaimable", "pgfault"),
    *("pgmajfault", "workingset_refault", "workingset_activate", "workingset_nodereclaim"),
    *("pgrefill", "pgscan", "pgsteal", "pgactivate", "pgdeactivate", "pglazyfree"),
    *("pglazyfreed", "thp_fault_alloc", "thp_collapse_alloc"),
)
_V2_EVENTS = _as_named("low", "high", "max", "oom", "oom_kill")
_V2_IO = ("rbytes", "wbytes", "rios", "wios")


class NoCgroupError(Exception):
    """The container has no cgroup of its own: rootless on cgroup v1, or a process that has gone."""


def read(membership: Mapping[str, str]) -> dict[str, Any]:
    """Return a `google.protobuf.Any` with the metrics of a container.

    Args:
        membership: The cgroups of its first process by controller, as `delegation.membership`
            returns them while the process lives.

    Raises:
        NoCgroupError: None of them is the container's own.
        OSError: A file that is there cannot be read, EMFILE for example.
    """
    own = {name: path for name, path in membership.items() if path not in ("", "/")}
    if delegation.is_unified():
        if "" not in own:
            raise NoCgroupError("the container has no cgroup of its own")
        return pack_any(cgroup_metrics.V2Metrics, _v2(delegation.ROOT + own[""]))
    hierarchies = {name: f"{delegation.ROOT}/{name}{path}" for name, path in own.items() if name}
    hierarchies.pop(_SYSTEMDS_OWN, None)
    if not hierarchies:
        raise NoCgroupError("the container has no cgroup of its own")
    return pack_any(cgroup_metrics.V1Metrics, _v1(hierarchies))


# cgroup v1


def _v1(hierarchies: Mapping[str, str]) -> dict[str, Any]:
    nowhere = "/nowhere"  # a controller that is not mounted: none of its files exists
    memory = hierarchies.get("memory", nowhere)
    return {
        "hugetlb": list(_v1_hugetlb(hierarchies.get("hugetlb", nowhere))),
        "pids": _v1_pids(hierarchies.get("pids", nowhere)),
        "cpu": {
            "usage": _v1_cpu_usage(hierarchies.get("cpuacct", nowhere)),
            "throttling": _some(
                _pairs(f"{hierarchies.get('cpu', nowhere)}/cpu.stat"), _V1_THROTTLING
            ),
        },
        "memory": _v1_memory(memory),
        "blkio": _v1_blkio(hierarchies.get("blkio", nowhere)),
        "rdma": _rdma(hierarchies.get("rdma", nowhere)),
        "cgroup_stats": {},
        "memory_oom_control": _some(_pairs(f"{memory}/memory.oom_control"), _V1_OOM),
    }


def _v1_pids(directory: str) -> dict[str, int]:
    limit = _words(f"{directory}/pids.max")
    return {
        "current": _number(f"{directory}/pids.current"),
        "limit": 0 if limit == [b"max"] else _first(limit),
    }


def _v1_cpu_usage(directory: str) -> dict[str, Any]:
    """Return nanoseconds; cpuacct.stat counts in ticks of the user's clock."""
    ticks = _pairs(f"{directory}/cpuacct.stat")
    ns_a_tick = _NANOSECONDS // os.sysconf("SC_CLK_TCK")
    return {
        "total": _number(f"{directory}/cpuacct.usage"),
        "kernel": ticks.get("system", 0) * ns_a_tick,
        "user": ticks.get("user", 0) * ns_a_tick,
        "per_cpu": [_parsed(word) for word in _words(f"{directory}/cpuacct.usage_percpu")],
    }


def _v1_memory(directory: str) -> dict[str, Any]:
    lines = _pairs(f"{directory}/memory.stat")
    found: dict[str, Any] = _some(lines, _V1_MEMORY)
    found |= _some(lines, {f"total_{line}": f"total_{name}" for line, name in _V1_MEMORY.items()})
    found["hierarchical_memory_limit"] = lines.get("hierarchical_memory_limit", 0)
    found["hierarchical_swap_limit"] = lines.get("hierarchical_memsw_limit", 0)
    # Debian 12's kernel has them all; from Linux 6.10 on some of kmem are missing.
    kinds = {"usage": "", "swap": "memsw.", "kernel": "kmem.", "kernel_tcp": "kmem.tcp."}
    for field, kind in kinds.items():
        found[field] = {
            "limit": _number(f"{directory}/memory.{kind}limit_in_bytes"),
            "usage": _number(f"{directory}/memory.{kind}usage_in_bytes"),
            "max": _number(f"{directory}/memory.{kind}max_usage_in_bytes"),
            "failcnt": _number(f"{directory}/memory.{kind}failcnt"),
        }
    return found


def _v1_blkio(directory: str) -> dict[str, Any]:
    """Return what the throttling layer counts: it is there with every I/O scheduler."""
    return {
        "io_service_bytes_recursive": list(
            _v1_blkio_entries(f"{directory}/blkio.throttle.io_service_bytes_recursive")
        ),
        "io_serviced_recursive": list(
            _v1_blkio_entries(f"{directory}/blkio.throttle.io_serviced_recursive")
        ),
    }


def _v1_blkio_entries(path: str) -> Iterator[dict[str, Any]]:
    for line in _lines(path):
        words = line.split()
        if len(words) != 3:  # the line "Total N", of all devices
            continue
        device, operation, value = words
        major, _, minor = device.decode().partition(":")
        yield {
            "op": operation.decode(),
            "device": _device_name(major, minor),
            "major": int(major),
            "minor": int(minor),
            "value": _parsed(value),
        }


def _device_name(major: str, minor: str) -> str:
    """Return the path of a block device, "" if the device has gone."""
    try:
        return "/dev/" + os.path.basename(os.readlink(f"/sys/dev/block/{major}:{minor}"))
    except OSError:
        return ""


def _v1_hugetlb(directory: str) -> Iterator[dict[str, Any]]:
    for size in _page_sizes(directory, ".usage_in_bytes"):
        prefix = f"{directory}/hugetlb.{size}"
        yield {
            "usage": _number(f"{prefix}.usage_in_bytes"),
            "max": _number(f"{prefix}.max_usage_in_bytes"),
            "failcnt": _number(f"{prefix}.failcnt"),
            "pagesize": size,
        }


# cgroup v2


def _v2(directory: str) -> dict[str, Any]:
    memory = _some(_pairs(f"{directory}/memory.stat"), _V2_MEMORY)
    return {
        "pids": {
            "current": _number(f"{directory}/pids.current"),
            "limit": _number(f"{directory}/pids.max"),
        },
        "cpu": _some(_pairs(f"{directory}/cpu.stat"), _V2_CPU),
        "memory": {
            **memory,
            "usage": _number(f"{directory}/memory.current"),
            "usage_limit": _number(f"{directory}/memory.max"),
            "swap_usage": _number(f"{directory}/memory.swap.current"),
            "swap_limit": _number(f"{directory}/memory.swap.max"),
            "max_usage": _number(f"{directory}/memory.peak"),
            "swap_max_usage": _number(f"{directory}/memory.swap.peak"),
        },
        "rdma": _rdma(directory),
        "io": {"usage": list(_v2_io(f"{directory}/io.stat"))},
        "hugetlb": [
            {
                "current": _number(f"{directory}/hugetlb.{size}.current"),
                "max": _number(f"{directory}/hugetlb.{size}.max"),
                "pagesize": size,
            }
            for size in _page_sizes(directory, ".current")
        ],
        "memory_events": _some(_pairs(f"{directory}/memory.events"), _V2_EVENTS),
    }


def _v2_io(path: str) -> Iterator[dict[str, int]]:
    for line in _lines(path):
        device, *words = line.split()
        major, _, minor = device.partition(b":")
        counts = (word.partition(b"=") for word in words)
        found = {name.decode(): _parsed(value) for name, _, value in counts}
        yield {
            "major": int(major),
            "minor": int(minor),
            **{name: found.get(name, 0) for name in _V2_IO},
        }


# both


def _rdma(directory: str) -> dict[str, Any]:
    return {
        "current": list(_rdma_entries(f"{directory}/rdma.current")),
        "limit": list(_rdma_entries(f"{directory}/rdma.max")),
    }


def _rdma_entries(path: str) -> Iterator[dict[str, Any]]:
    for line in _lines(path):
        device, *words = line.split()
        counts = dict(word.split(b"=") for word in words)
        yield {
            "device": device.decode(errors="replace"),
            "hca_handles": min(_parsed(counts.get(b"hca_handle", b"0")), _MOST_32),
            "hca_objects": min(_parsed(counts.get(b"hca_object", b"0")), _MOST_32),
        }


def _page_sizes(directory: str, suffix: str) -> list[str]:
    """Return the page sizes of hugetlb, 2MB for example; reservations have files of their own."""
    try:
        names = os.listdir(directory)
    except OSError as error:
        if error.errno in _MISSING:
            return []
        raise
    found = [
        name.removeprefix("hugetlb.").removesuffix(suffix)
        for name in names
        if name.startswith("hugetlb.") and name.endswith(suffix)
    ]
    return sorted(size for size in found if "." not in size)


def _some(lines: Mapping[str, int], names: Mapping[str, str]) -> dict[str, int]:
    """Return the lines that have fields, by the names of the fields."""
    return {field: lines[line] for line, field in names.items() if line in lines}


def _pairs(path: str) -> dict[str, int]:
    """Return a file of lines `name value`."""
    pairs = (line.split() for line in _lines(path))
    return {pair[0].decode(errors="replace"): _parsed(pair[1]) for pair in pairs if len(pair) == 2}


def _number(path: str) -> int:
    return _first(_words(path))


def _first(words: list[bytes]) -> int:
    return _parsed(words[0]) if words else 0


def _words(path: str) -> list[bytes]:
    return b" ".join(_lines(path)).split()


def _lines(path: str) -> list[bytes]:
    """Return the lines of a file, none if the kernel does not have it."""
    try:
        with open(path, "rb") as file:
            return [line for line in file.read().split(b"\n") if line]
    except OSError as error:
        if error.errno in _MISSING:
            return []
        raise


def _parsed(word: bytes) -> int:
    """Return a count between 0 and 2^64-1; `max` is the latter."""
    if word == b"max":
        return _MOST_64
    try:
        return max(0, min(int(word), _MOST_64))
    except ValueError:
        return 0
