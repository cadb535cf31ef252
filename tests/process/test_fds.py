"""Descriptors: ownership, pipes, fifos, and what the kernel says of them."""

from __future__ import annotations

import errno
import fcntl
import os
import pty
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from supervisor.linux import fds
from supervisor.linux.exit_status import Exited
from tests.harness import waiting
from tests.harness.forked import forked

pytestmark = pytest.mark.process


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def test_an_owner_closes_once_and_is_a_clean_ebadf_afterwards() -> None:
    owner = fds.Fd(os.open(os.devnull, os.O_RDONLY))
    number = owner.fileno()
    assert owner.is_open
    owner.close()
    assert not _is_open(number)
    assert (owner.is_open, owner.fileno()) == (False, -1)
    again = os.open(os.devnull, os.O_RDONLY)
    assert again == number  # somebody else has the number now
    owner.close()
    assert _is_open(number)
    os.close(again)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.read(owner.fileno(), 1)


def test_what_was_taken_is_not_closed_by_its_former_owner() -> None:
    owner = fds.Fd(os.open(os.devnull, os.O_RDONLY))
    number = owner.take()
    owner.close()
    assert _is_open(number)
    os.close(number)


def test_a_pipe_is_close_on_exec_and_holds_a_mebibyte() -> None:
    rfd, wfd = fds.pipe()
    for end in (rfd, wfd):
        assert not os.get_inheritable(end.fileno())
        assert fds.is_fifo(end.fileno())
    assert fcntl.fcntl(rfd.fileno(), fcntl.F_GETPIPE_SZ) == 1 << 20
    os.write(wfd.fileno(), b"abc")
    assert fds.pending_bytes(rfd.fileno()) == 3
    rfd.close()
    wfd.close()


def test_a_pipe_that_is_large_enough_is_left_as_it_is() -> None:
    rfd, wfd = fds.pipe(4096)
    before = fcntl.fcntl(wfd.fileno(), fcntl.F_GETPIPE_SZ)
    fds.grow_pipe(wfd.fileno(), before)
    assert fcntl.fcntl(wfd.fileno(), fcntl.F_GETPIPE_SZ) == before
    rfd.close()
    wfd.close()


def test_a_pipe_that_may_not_grow_still_works() -> None:
    def work() -> None:
        uid = os.geteuid()
        if uid == 0:
            os.seteuid(65534)  # gives the capabilities away until it is undone
        limit = int(Path("/proc/sys/fs/pipe-max-size").read_text())
        rfd, wfd = fds.pipe(2 * limit)
        assert fcntl.fcntl(wfd.fileno(), fcntl.F_GETPIPE_SZ) <= limit
        os.write(wfd.fileno(), b"x")
        assert os.read(rfd.fileno(), 9) == b"x"
        os.seteuid(uid)

    with forked(work) as child:
        assert child.wait() == Exited(0)


def test_a_file_that_is_no_pipe_has_no_pipe_to_grow() -> None:
    null = os.open(os.devnull, os.O_RDWR)
    with pytest.raises(OSError, match="Bad file descriptor"):
        fds.grow_pipe(null)
    assert not fds.is_fifo(null)
    os.close(null)


def test_a_terminal_that_nobody_has_open_has_no_pending_bytes_but_eio() -> None:
    master, slave = pty.openpty()
    os.write(slave, b"ab")
    waiting.wait_readable(master)  # the kernel hands it over in the background
    assert fds.pending_bytes(master) == 2
    os.close(slave)
    assert fds.pending_bytes(master) == 2
    os.read(master, 10)
    os.close(master)
    null = os.open(os.devnull, os.O_RDONLY)
    with pytest.raises(OSError, match=r".*") as caught:
        fds.pending_bytes(null)
    assert caught.value.errno in (errno.ENOTTY, errno.EINVAL)
    os.close(null)


def test_readable_means_data_or_its_end() -> None:
    rfd, wfd = fds.pipe()
    assert not fds.is_readable(rfd.fileno())
    os.write(wfd.fileno(), b"x")
    assert fds.is_readable(rfd.fileno())
    os.read(rfd.fileno(), 9)
    assert not fds.is_readable(rfd.fileno())
    wfd.close()
    assert fds.is_readable(rfd.fileno())
    rfd.close()


def test_a_capacity_is_a_pipes_own_or_what_one_of_ours_would_have() -> None:
    rfd, wfd = fds.pipe(8192)
    assert fds.capacity_bytes(rfd.fileno()) == fcntl.fcntl(wfd.fileno(), fcntl.F_GETPIPE_SZ)
    rfd.close()
    wfd.close()
    null = os.open(os.devnull, os.O_RDONLY)
    assert fds.capacity_bytes(null) == fds.PIPE_BYTES
    os.close(null)


def test_a_file_is_reopened_although_its_name_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    with_path = os.open(path, os.O_PATH)
    path.unlink()
    again = fds.reopen(with_path, os.O_RDONLY)
    os.close(with_path)
    assert os.read(again.fileno(), 99) == b"content"
    assert not os.get_inheritable(again.fileno())
    again.close()


def test_a_pipe_without_a_reader_is_told_from_one_with(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    both = os.open(path, os.O_RDWR)
    writer = fds.reopen(both, os.O_WRONLY)
    assert fds.has_reader(writer.fileno())
    os.close(both)
    assert not fds.has_reader(writer.fileno())
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    assert fds.has_reader(writer.fileno())
    os.close(reader)
    writer.close()


@pytest.mark.parametrize("closed", [[0], [1], [2], [0, 1, 2], []])
def test_closed_standard_descriptors_become_dev_null_and_others_stay(closed: list[int]) -> None:
    code = (
        "import os; from supervisor.linux import fds\n"
        f"for fd in {closed}: os.close(fd)\n"
        "before = len(os.listdir('/proc/self/fd'))\n"
        "fds.ensure_stdio()\n"
        f"assert len(os.listdir('/proc/self/fd')) == before + {len(closed)}\n"
        "for fd in range(3):\n"
        "    is_null = os.readlink(f'/proc/self/fd/{fd}') == '/dev/null'\n"
        f"    assert is_null == (fd in {closed}), fd\n"
        "    assert os.get_inheritable(fd)\n"
        "os._exit(7)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, capture_output=True, timeout=60
    )
    assert done.returncode == 7, done.stderr


def test_no_descriptor_is_lost_when_a_pipe_cannot_be_made() -> None:
    def work() -> None:
        used = {int(name) for name in os.listdir("/proc/self/fd")}
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(used) + 1, max(used) + 1))
        spare = [os.dup(2) for fd in range(max(used)) if fd not in used]
        with pytest.raises(OSError, match="Too many open files"):
            fds.pipe()
        for fd in spare:
            os.close(fd)

    with forked(work) as child:
        assert child.wait() == Exited(0)
