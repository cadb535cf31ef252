"""A process that asks the zygote for a supervisor: what it is, and becoming like it.

A supervisor is what its caller has made it: environment, limits, control group, credentials,
namespaces and more. What can be taken over from outside is; where anything else is different, the
answer is "start one yourself" (`difference`), so that nobody gets another supervisor than without
a zygote.
"""

from __future__ import annotations

import os
import resource

from supervisor import fds, linux
from supervisor.signals import FORWARDED_SIGNALS, STOP_SIGNALS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

CGROUP_ROOT = "/sys/fs/cgroup"

_SAME_STATUS = (
    *("Uid", "Gid", "Groups", "NoNewPrivs", "Seccomp", "Seccomp_filters", "THP_enabled"),
    *("Cpus_allowed", "Mems_allowed"),
    *("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"),
)
"""Fields of /proc/PID/status that nobody can change for us, or should.

All filters of seccomp(2) come from a process that both are descended from, if there are as many:
the zygote's own unit adds none.
"""

_SAME_FILES = (
    *("attr/current", "coredump_filter", "loginuid", "personality", "sessionid"),
    "timerslack_ns",
)
_NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")
_LIMITS = sorted({getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")})
_IOPRIO_GET = {"x86_64": 252, "aarch64": 31, "riscv64": 31}
"""ioprio_get(2) has no function in the C library."""


class Caller:
    """One process, looked at from outside. Owns its pidfd and what was taken from it."""

    def __init__(self, pid: int) -> None:
        """Find it.

        Raises:
            OSError: It is gone, or not to be looked at.
        """
        self.pid = pid
        self._pidfd = fds.Fd(os.pidfd_open(pid))
        self.argv = _strings(_read(pid, "cmdline"))

    def take(self, fd: int) -> fds.Fd:
        """Duplicate a descriptor of it.

        Raises:
            OSError: It has none of that number.
        """
        return fds.Fd(linux.pidfd_getfd(self._pidfd.fileno(), fd))

    def difference(self, stdio: Iterable[int], own_fds: Iterable[int]) -> str:
        """Return what it has that could not be taken over, in a word; "" for nothing.

        `stdio`: where it has its stdin, stdout and stderr; `own_fds`: what it has opened for the
        conversation with us.

        Raises:
            OSError: It is gone.
        """
        ours, its = own_likeness(), _likeness(self.pid)
        for name, value in ours.items():
            if its[name] != value:
                return name
        if self._is_deaf():
            return "ignored signals"
        if self._controlling_terminal():
            return "controlling terminal"
        for fd in stdio:
            if _link(self.pid, f"fd/{fd}").startswith(("/dev/tty", "/dev/pts", "/dev/console")):
                return "terminal"
        return self._strange_fd(set(own_fds))

    def _is_deaf(self) -> bool:
        """Say whether it would not hear a signal that it has to pass on.

        A shell cannot trap what was ignored when it began (trap in POSIX.1-2017).
        """
        status = _status(self.pid)
        ignored, blocked = int(status["SigIgn"], 16), int(status["SigBlk"], 16)
        return blocked != 0 or any(
            ignored >> (signum - 1) & 1 for signum in STOP_SIGNALS | FORWARDED_SIGNALS
        )

    def _controlling_terminal(self) -> bool:
        # proc(5), /proc/PID/stat: state ppid pgrp session tty_nr after the name in parentheses.
        return _read(self.pid, "stat").rpartition(b")")[2].split()[4] != b"0"

    def _strange_fd(self, own: set[int]) -> str:
        """Say which descriptor an exec would have passed on, and we would not."""
        for name in os.listdir(f"/proc/{self.pid}/fd"):
            fd = int(name)
            if fd > 2 and fd not in own and self._is_passed_on(fd):
                return f"descriptor {fd}"
        return ""

    def _is_passed_on(self, fd: int) -> bool:
        try:
            lines = _read(self.pid, f"fdinfo/{fd}").decode().splitlines()
        except FileNotFoundError:  # closed meanwhile: a shell puts its stdout back after `echo >`
            return False
        flags = next((line for line in lines if line.startswith("flags:")), "flags: 0")
        return not int(flags.split()[1], 8) & os.O_CLOEXEC

    def become(self) -> None:
        """Make this process like it: what `difference` has not looked at.

        Raises:
            OSError: Something cannot be taken over.
        """
        environment = _environment(_read(self.pid, "environ"))
        os.chdir(f"/proc/{self.pid}/cwd")
        os.umask(int(_status(self.pid)["Umask"], 8))
        for limit in _LIMITS:
            resource.setrlimit(limit, resource.prlimit(self.pid, limit))
        adjustment = _read(self.pid, "oom_score_adj")
        if adjustment != _read("self", "oom_score_adj"):
            _write("/proc/self/oom_score_adj", adjustment)
        nice = os.getpriority(os.PRIO_PROCESS, self.pid)
        if nice != os.getpriority(os.PRIO_PROCESS, 0):
            os.setpriority(os.PRIO_PROCESS, 0, nice)
        _join_cgroups(self.pid)
        os.environ.clear()
        # Between it and systemd, and systemd takes us for it.
        for name in (b"SYSTEMD_EXEC_PID", b"WATCHDOG_PID"):
            if environment.get(name) == b"%d" % self.pid:
                environment[name] = b"%d" % os.getpid()
        os.environb.update(environment)

    def close(self) -> None:
        """Let go of it."""
        self._pidfd.close()


_own_likeness: dict[str, object] = {}


def own_likeness() -> dict[str, object]:
    """Return what a caller has to have in common with us; looked at once, and so before a fork."""
    if not _own_likeness:
        _own_likeness.update(_likeness("self"))
    return _own_likeness


def _likeness(pid: int | str) -> dict[str, object]:
    number = os.getpid() if pid == "self" else int(pid)
    status = _status(pid)
    root = os.stat(f"/proc/{pid}/root")
    return {
        **{name: status.get(name) for name in _SAME_STATUS},
        **{name: _read_if_there(pid, name) for name in _SAME_FILES},
        **{f"{name} namespace": _link(pid, f"ns/{name}") for name in _NAMESPACES},
        "root": (root.st_dev, root.st_ino),
        "scheduler": os.sched_getscheduler(number),
        "I/O priority": _io_priority(number),
    }


def _join_cgroups(pid: int) -> None:
    its = _read(pid, "cgroup")
    ours = _read("self", "cgroup").splitlines()
    for line in its.splitlines():
        if line in ours:
            continue
        number, controllers, path = os.fsdecode(line).split(":", 2)
        place = "" if number == "0" else f"/{controllers.removeprefix('name=')}"
        if number == "0" and not os.path.exists(f"{CGROUP_ROOT}/cgroup.controllers"):
            place = "/unified"  # hybrid: systemd's own, beside those of v1
        _write(f"{CGROUP_ROOT}{place}{path}/cgroup.procs", b"0")
    if _read("self", "cgroup") != its:
        raise OSError(f"not in the control groups of process {pid}")


def _environment(text: bytes) -> dict[bytes, bytes]:
    pairs = (word.partition(b"=") for word in text.split(b"\0"))
    return {name: value for name, equals, value in pairs if name and equals}


def _strings(text: bytes) -> list[str]:
    return [os.fsdecode(word) for word in text.removesuffix(b"\0").split(b"\0")]


def _status(pid: int | str) -> dict[str, str]:
    lines = _read(pid, "status").decode(errors="replace").splitlines()
    pairs = (line.partition(":") for line in lines)
    return {name: value.strip() for name, _colon, value in pairs}


def _io_priority(pid: int) -> int:
    """Return what ioprio_get(2) says; where its number is not known, nobody has another one."""
    number = _IOPRIO_GET.get(os.uname().machine)
    return 0 if number is None else linux.ioprio_get(number, pid)


def _link(pid: int | str, name: str) -> str:
    try:
        return os.readlink(f"/proc/{pid}/{name}")
    except FileNotFoundError:  # a kernel without such namespaces
        if not os.path.exists(f"/proc/{pid}"):
            raise
        return ""


def _read(pid: int | str, name: str) -> bytes:
    with open(f"/proc/{pid}/{name}", "rb", buffering=0) as file:
        return file.readall() or b""


def _read_if_there(pid: int | str, name: str) -> bytes:
    try:
        return _read(pid, name)
    except OSError:  # ENOENT, EINVAL: a kernel without it
        return b""


def _write(path: str, content: bytes) -> None:
    with open(path, "wb", buffering=0) as file:
        file.write(content)
