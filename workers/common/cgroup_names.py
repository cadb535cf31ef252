"""The control groups of a process, as the kernel tells them: bytes, a line for each hierarchy.

A cgroup's name may hold every byte but `/` and the line feed. A container with a writable cgroup
mount makes such names, with a vertical tab or U+2028, at which `str.splitlines` would split.
"""

from __future__ import annotations

_PF_EXITING = 4


def parse(content: bytes) -> dict[bytes, bytes]:
    """Return cgroups by controller; b"" is cgroup v2. Pure.

    Source: cgroups(7), /proc/PID/cgroup: `4:cpu,cpuacct:/path`, `0::/path`.
    """
    fields = (line.split(b":", 2) for line in content.split(b"\n"))
    return {name: each[2] for each in fields if len(each) == 3 for name in each[1].split(b",")}


def membership(pid: int | str) -> dict[bytes, bytes]:
    """Return a process's cgroups by controller; empty if it is gone."""
    try:
        with open(f"/proc/{pid}/cgroup", "rb") as file:
            return parse(file.read())
    except (FileNotFoundError, ProcessLookupError):
        return {}


def is_ending(pid: int) -> bool:
    """Say whether a process is on its way out: of one that is, cgroup v1 names no cgroup but `/`.

    Source: proc(5), /proc/PID/stat, (9) flags: PF_EXITING.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            after_name = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return bool(int(after_name[6]) & _PF_EXITING)
