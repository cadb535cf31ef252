"""The cgroups of a process, as the kernel lists them: bytes, one line per hierarchy.

A cgroup name may contain any byte except `/` and the line feed. A container with a writable cgroup
mount can create names with a vertical tab or U+2028, where `str.splitlines` would split.
"""

from __future__ import annotations


def parse(content: bytes) -> dict[bytes, bytes]:
    """Return cgroup paths by controller; b"" is cgroup v2. Pure.

    Source: cgroups(7), /proc/PID/cgroup: `4:cpu,cpuacct:/path`, `0::/path`.
    """
    fields = (line.split(b":", 2) for line in content.split(b"\n"))
    return {name: each[2] for each in fields if len(each) == 3 for name in each[1].split(b",")}


def membership(pid: int | str) -> dict[bytes, bytes]:
    """Return the cgroup paths of a process by controller; empty if the process is gone."""
    try:
        with open(f"/proc/{pid}/cgroup", "rb") as file:
            return parse(file.read())
    except (FileNotFoundError, ProcessLookupError):
        return {}
