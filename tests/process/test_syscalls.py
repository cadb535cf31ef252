"""prctl(2), set and read back."""

from __future__ import annotations

import errno
import os
import signal

import pytest

from supervisor.linux import syscalls
from supervisor.linux.exit_status import Exited
from tests.harness.forked import forked

pytestmark = pytest.mark.process


def test_the_signal_of_a_parents_death_is_read_back_and_can_be_taken_back() -> None:
    def work() -> None:
        assert syscalls.pdeathsig() is None
        syscalls.set_pdeathsig(signal.SIGKILL)
        assert syscalls.pdeathsig() == signal.SIGKILL
        syscalls.set_pdeathsig(0)
        assert syscalls.pdeathsig() is None

    with forked(work) as child:
        assert child.wait() == Exited(0)


def test_a_failed_call_is_an_oserror_that_names_it() -> None:
    with pytest.raises(OSError, match=r"prctl\(1, 999\)") as caught:
        syscalls.set_pdeathsig(999)
    assert caught.value.errno == errno.EINVAL


def test_a_subreaper_inherits_grandchildren_and_its_children_are_none() -> None:
    def work() -> None:
        syscalls.set_child_subreaper(False)
        assert not syscalls.is_child_subreaper()
        syscalls.set_child_subreaper(True)
        assert syscalls.is_child_subreaper()
        rfd, wfd = os.pipe()
        middle = os.fork()
        if middle == 0:
            assert not syscalls.is_child_subreaper()
            if os.fork() == 0:
                os.write(wfd, b"%d" % os.getpid())
                os._exit(9)
            os._exit(8)
        ended = {middle: 8}
        grandchild = int(os.read(rfd, 20))
        ended[grandchild] = 9
        for _each in range(2):
            pid, status = os.wait()
            assert ended.pop(pid) == os.waitstatus_to_exitcode(status)

    with forked(work) as child:
        assert child.wait() == Exited(0)
