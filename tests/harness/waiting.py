"""Waiting without sleeping: for a descriptor, a process, a file. Each wait is bounded."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import struct
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LIMIT_S = 60.0
"""A test that waits longer has failed. No promise about speed: machines are slow and shared."""

_PF_EXITING = 0x4
_SIGKILL_BIT = 1 << (signal.SIGKILL - 1)
_IN_EVENTS = 0x00000002 | 0x00000004 | 0x00000008 | 0x00000080 | 0x00000100 | 0x00000200
_libc = ctypes.CDLL(None, use_errno=True)


def wait_readable(fd: int, limit_s: float = LIMIT_S) -> None:
    """Wait for data, end of file or a hang-up on `fd`."""
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    if not poller.poll(limit_s * 1000):
        raise TimeoutError(f"descriptor {fd}: nothing to read within {limit_s} s")


def is_readable(fd: int) -> bool:
    """Say whether there is something to read by now."""
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(0))


def wait_hangup(fd: int, limit_s: float = LIMIT_S) -> None:
    """Wait until every writer of the fifo behind `fd` has gone: the engine's sign of the end."""
    poller = select.poll()
    poller.register(fd, 0)
    if not poller.poll(limit_s * 1000):
        raise TimeoutError(f"descriptor {fd}: no hang-up within {limit_s} s")


def has_hung_up(fd: int) -> bool:
    """Say whether every writer has gone by now."""
    poller = select.poll()
    poller.register(fd, 0)
    return bool(poller.poll(0))


def read_to_end(fd: int, limit_s: float = LIMIT_S) -> bytes:
    """Read until end of file."""
    data = bytearray()
    while True:
        wait_readable(fd, limit_s)
        try:
            chunk = os.read(fd, 1 << 20)
        except BlockingIOError:
            continue
        if not chunk:
            return bytes(data)
        data += chunk


def read_until(fd: int, ending: bytes, limit_s: float = LIMIT_S) -> bytes:
    """Read until what has come contains `ending`."""
    data = b""
    while ending not in data:
        wait_readable(fd, limit_s)
        chunk = os.read(fd, 65536)
        if not chunk:
            raise EOFError(f"end of file after {data!r}, wanted {ending!r}")
        data += chunk
    return data


def wait_process(pid: int, limit_s: float = LIMIT_S) -> None:
    """Wait until `pid` has ended, whoever's child it is; a zombie counts as ended."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        wait_readable(pidfd, limit_s)
    finally:
        os.close(pidfd)


def wait_path(path: Path, is_there: Callable[[Path], bool], limit_s: float = LIMIT_S) -> None:
    """Wait until `is_there(path)`, looking whenever its directory changes (inotify(7))."""
    fd = _libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if _libc.inotify_add_watch(fd, os.fsencode(path.parent), _IN_EVENTS) < 0:
            errno = ctypes.get_errno()
            raise OSError(errno, os.strerror(errno), str(path.parent))
        deadline_s = time.monotonic() + limit_s
        while not is_there(path):
            wait_readable(fd, max(0.0, deadline_s - time.monotonic()))
            os.read(fd, 65536)
    finally:
        os.close(fd)


def children_of(pid: int) -> list[int]:
    """Return the pids of the children of `pid`, the oldest first (proc(5), task/children)."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            return [int(word) for word in file.read().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def wait_child(pid: int, *, other_than: int = 0, limit_s: float = LIMIT_S) -> int:
    """Wait until `pid` has a living child; returns its pid. No event tells of a fork: looks."""
    deadline_s = time.monotonic() + limit_s
    while time.monotonic() < deadline_s:
        for child in children_of(pid):
            if child != other_than and state_of(child) not in ("Z", ""):
                return child
        os.sched_yield()
    raise TimeoutError(f"process {pid}: no child within {limit_s} s")


def wait_gone(find: Callable[[], int | None], limit_s: float = LIMIT_S) -> None:
    """Wait for the end of the process that `find` returns, and of those that follow it."""
    while (pid := find()) is not None:
        wait_process(pid, limit_s)


def title_of(pid: int) -> str:
    """Return the title of a process, as ps(1) shows it; empty for one that is gone."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read().replace(b"\0", b" ").decode(errors="replace").strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def wait_true(is_there: Callable[[], bool], limit_s: float = LIMIT_S) -> None:
    """Wait for what has no event, such as a count in shared memory, giving the processor away."""
    deadline_s = time.monotonic() + limit_s
    while not is_there():
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"not there within {limit_s} s")
        os.sched_yield()


def wait_title(pid: int, prefix: str, limit_s: float = LIMIT_S) -> None:
    """Wait until the title of `pid` begins with `prefix`; the kernel has no event for that."""
    wait_true(lambda: title_of(pid).startswith(prefix), limit_s)


def state_of(pid: int) -> str:
    """Return the one-letter state of a process, R, S, Z, ...; empty for one that is gone."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def is_alive(pid: int) -> bool:
    """Say whether a process lives and will go on living.

    One that has been killed and has not had the processor yet does not count: on a busy machine
    it may be there long after whoever killed it has gone (proc(5): PF_EXITING, ShdPnd).
    """
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        with open(f"/proc/{pid}/status") as file:
            pending = [line.split()[1] for line in file if line.startswith(("SigPnd", "ShdPnd"))]
    except (FileNotFoundError, ProcessLookupError):
        return False
    is_exiting = bool(int(fields[6]) & _PF_EXITING)
    is_killed = any(int(mask, 16) & _SIGKILL_BIT for mask in pending)
    return fields[0] not in "ZX" and not is_exiting and not is_killed


def living_in_group(group: int) -> list[int]:
    """Return the pids of the living processes of a process group."""
    found = []
    for name in os.listdir("/proc"):
        if not name.isdecimal():
            continue
        try:
            with open(f"/proc/{name}/stat") as file:
                _state, _ppid, pgrp = file.read().rpartition(")")[2].split()[:3]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(pgrp) == group and is_alive(int(name)):
            found.append(int(name))
    return found


def living_orphans() -> list[int]:
    """Return what shims have left to us, their subreaper; shims themselves do not count."""
    return [
        pid
        for pid in children_of(os.getpid())
        if is_alive(pid) and not title_of(pid).startswith("forkshim: ")
    ]


def worker_of(shim_pid: int, stream: str) -> int | None:
    """Return the pid of the shim's living worker for `stream`, or None at this moment."""
    for pid in children_of(shim_pid):
        if title_of(pid).endswith(f"[{stream}]") and is_alive(pid):
            return pid
    return None


def wait_worker(shim_pid: int, stream: str, limit_s: float = LIMIT_S) -> int:
    """Wait until the shim's worker for `stream` is one; returns its pid.

    Its title is the last thing that a forked worker takes: before, it is deaf to no signal and
    has all of the shim's descriptors.
    """
    found: list[int] = []

    def is_there() -> bool:
        pid = worker_of(shim_pid, stream)
        found.extend(() if pid is None else (pid,))
        return bool(found)

    wait_true(is_there, limit_s)
    return found[0]


def wait_reaped(pid: int, limit_s: float = LIMIT_S) -> None:
    """Wait until a process that has ended is no zombie any more. No event tells: looks."""
    deadline_s = time.monotonic() + limit_s
    while state_of(pid) == "Z":
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"process {pid}: still a zombie after {limit_s} s")
        os.sched_yield()


def catches(pid: int, signum: int) -> bool:
    """Say whether a process has a handler for a signal by now (proc(5), SigCgt)."""
    try:
        with open(f"/proc/{pid}/status") as file:
            (mask,) = (int(line.split()[1], 16) for line in file if line.startswith("SigCgt"))
    except (FileNotFoundError, ProcessLookupError):
        return False
    return bool(mask & 1 << (signum - 1))


def window_of(pid: int) -> tuple[int, int]:
    """Return (columns, rows) of the terminal that is the stdin of a process."""
    fd = os.open(f"/proc/{pid}/fd/0", os.O_RDWR | os.O_NOCTTY)
    try:
        size = os.get_terminal_size(fd)
        return (size.columns, size.lines)
    finally:
        os.close(fd)


def unpack_winsize(packed: bytes) -> tuple[int, int]:
    """Return (columns, rows) of a struct winsize."""
    rows, columns, _x, _y = struct.unpack("HHHH", packed)
    return columns, rows


def send(pid: int, signum: int) -> None:
    """Send a signal to a process this test has started."""
    os.kill(pid, signum)


SETTABLE = ~(3 << 31)
"""Mask for SigIgn and SigBlk in proc(5): 32 and 33 are the C library's own (nptl(7)). Whoever
starts the tests may ignore them, and its sigaction(2) cannot undo that."""

SIGNALS_THAT_KILL = [
    signal.SIGABRT, signal.SIGALRM, signal.SIGBUS, signal.SIGFPE, signal.SIGHUP, signal.SIGILL,
    signal.SIGINT, signal.SIGIO, signal.SIGKILL, signal.SIGPIPE, signal.SIGPROF, signal.SIGPWR,
    signal.SIGQUIT, signal.SIGSEGV, signal.SIGSYS, signal.SIGTERM, signal.SIGTRAP, signal.SIGUSR1,
    signal.SIGUSR2, signal.SIGVTALRM, signal.SIGXCPU, signal.SIGXFSZ, signal.SIGSTKFLT,
    signal.SIGRTMIN + 6,
]  # fmt: skip
"""Every signal whose default action ends a process (signal(7)), and one real-time signal."""
