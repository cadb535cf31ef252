"""What /proc tells of a process, read from real ones."""

from __future__ import annotations

import os
import signal

import pytest

from supervisor.linux import procfs

pytestmark = pytest.mark.process


def _forked(comm: bytes = b"") -> int:
    """Fork a child that takes a name and waits to be killed; return when it has that name."""
    rfd, wfd = os.pipe()
    pid = os.fork()
    if pid == 0:
        if comm:
            with open("/proc/self/comm", "wb") as file:
                file.write(comm)
        os.write(wfd, b"!")
        while True:
            signal.pause()
    os.read(rfd, 1)
    os.close(rfd)
    os.close(wfd)
    return pid


def test_a_name_with_parentheses_hides_no_field() -> None:
    pid = _forked(b"a) Z 0 0 (b")
    try:
        assert not procfs.is_dead(pid)
        assert not procfs.is_ending(pid)
        assert procfs.zombie_wait_status(pid) is None
        began, own = procfs.began(pid), procfs.began(os.getpid())
        assert began is not None
        assert own is not None
        assert began >= own
        flags = procfs.flags(pid)
        assert flags is not None
        assert flags & procfs.PF_FORKNOEXEC
        assert pid in procfs.children()
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert procfs.is_dead(pid)
        assert procfs.is_ending(pid)
        assert procfs.zombie_wait_status(pid) == signal.SIGKILL
        os.waitpid(pid, 0)
    assert procfs.is_dead(pid)
    assert procfs.flags(pid) is None
    assert procfs.zombie_wait_status(pid) is None
    assert pid not in procfs.children()


def test_the_status_of_a_process_is_read_by_name() -> None:
    assert procfs.status("self")["Pid"] == str(os.getpid())
    assert procfs.has_capability(procfs.CAP_SYS_ADMIN) == (os.geteuid() == 0)
