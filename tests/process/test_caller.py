"""What a zygote looks at in whoever asks it, and takes over."""

from __future__ import annotations

import json
import os
import resource
import signal

import pytest

from supervisor import caller, standin
from supervisor.caller import Caller
from supervisor.errors import ShimError
from supervisor.signals import FORWARDED_SIGNALS, STOP_SIGNALS
from supervisor.waitstatus import Exited
from tests.harness import waiting
from tests.harness.forked import forked
from workers.lean import _JSONDecodeError

pytestmark = pytest.mark.process


def test_we_have_everything_in_common_with_ourselves() -> None:
    its = caller._likeness(os.getpid())
    assert its == caller.own_likeness() == caller._likeness("self")
    assert {"Seccomp", "mnt namespace", "root", "scheduler", "I/O priority"} <= its.keys()


def test_a_process_is_seen_by_its_words_and_its_descriptors() -> None:
    seen = Caller(os.getpid())
    with open("/proc/self/cmdline", "rb") as file:
        assert [*map(os.fsencode, seen.argv)] == file.read().removesuffix(b"\0").split(b"\0")
    rfd, wfd = os.pipe()
    taken = seen.take(wfd)
    os.write(taken.fileno(), b"!")
    assert os.read(rfd, 2) == b"!"
    with pytest.raises(OSError, match="Bad file descriptor"):
        seen.take(1 << 20)
    for owner in (taken, seen):
        owner.close()
    for fd in (rfd, wfd):
        os.close(fd)


def test_what_an_exec_would_pass_on_is_found_out() -> None:
    """In a child without a terminal, with one descriptor for us and one that is a stranger's."""
    rfd, wfd = os.pipe()

    def pause() -> None:
        os.setsid()
        os.closerange(3, min(rfd, wfd))
        os.closerange(max(rfd, wfd) + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        os.set_inheritable(wfd, True)
        for signum in STOP_SIGNALS | FORWARDED_SIGNALS:
            signal.signal(signum, signal.SIG_DFL)
        os.write(wfd, b"!")
        signal.pause()

    with forked(pause) as child:
        os.read(rfd, 1)
        seen = Caller(child.pid)
        assert seen.difference((), (rfd, wfd)) == ""
        assert seen.difference((), (rfd,)) == f"descriptor {wfd}"
        assert seen.difference((), (wfd,)) == ""  # close-on-exec
        seen.close()
    for fd in (rfd, wfd):
        os.close(fd)


def test_descriptors_may_come_and_go_while_they_are_looked_at() -> None:
    """As with a shell, which puts its stdout aside for a word to somewhere else."""

    def come_and_go() -> None:
        os.closerange(3, 1000)
        while True:
            for fd in [os.dup(0) for _each in range(50)]:
                os.close(fd)

    with forked(come_and_go) as child:
        seen = Caller(child.pid)
        waiting.wait_true(lambda: seen._strange_fd(set()) == "")  # it has closed ours
        for _each in range(500):
            assert seen._strange_fd(set()) == ""
        seen.close()


def test_who_cannot_hear_is_found_out() -> None:
    def deaf() -> None:
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        assert Caller(os.getpid())._is_deaf()
        signal.signal(signal.SIGUSR2, signal.SIG_DFL)
        assert not Caller(os.getpid())._is_deaf()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        assert Caller(os.getpid())._is_deaf()

    with forked(deaf) as child:
        assert child.wait() == Exited(0)


def test_what_can_be_taken_over_is(tmp_path: os.PathLike[str]) -> None:
    """Of a process that has other limits, another umask and another directory."""

    def other() -> None:
        os.chdir(tmp_path)
        os.umask(0o012)
        resource.setrlimit(resource.RLIMIT_NOFILE, (500, 600))
        os.kill(os.getpid(), signal.SIGSTOP)

    def become(pid: int) -> None:
        Caller(pid).become()
        assert os.getcwd() == os.fspath(tmp_path)
        assert os.umask(0) == 0o012
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (500, 600)

    with forked(other) as stopped:
        waiting.wait_true(lambda: waiting.state_of(stopped.pid) == "T")
        with forked(lambda: become(stopped.pid)) as child:
            assert child.wait() == Exited(0)
        os.kill(stopped.pid, signal.SIGCONT)
        assert stopped.wait() == Exited(0)


@pytest.mark.parametrize("text", ["junk", "1 2", "1 2 3 4", "1 2 99999999999", ""])
def test_a_setting_that_is_not_ours_is_said(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(standin.VARIABLE, text)
    with pytest.raises(ShimError, match=f"{standin.VARIABLE}: not ours"):
        standin.resume()
    assert standin.VARIABLE not in os.environ


def test_a_stand_in_is_told_once_and_kept_over_a_reload(monkeypatch: pytest.MonkeyPatch) -> None:
    def work() -> None:
        rfd, wfd = os.pipe()
        link_rfd, link_wfd = os.pipe()
        mine = standin.StandIn(os.getpid(), wfd, link_rfd)
        os.environ[standin.VARIABLE] = mine.setting
        standin.resume()
        ours = standin.ours()
        assert ours is not None
        assert ours.fds == mine.fds
        assert os.getpid() in list(standin.companions())
        assert standin.tell(7) == 7
        ours.end_with(8)  # the first one counts
        assert os.read(rfd, 100) == b"ended\n7\nended\n7\n"
        ours.die_with_it()
        os.close(link_wfd)
        signal.pause()

    monkeypatch.setattr(standin, "_ours", None)
    with forked(work) as child:
        assert str(child.wait()) == "killed by SIGKILL"


def test_nobody_stands_in_for_us() -> None:
    assert standin.ours() is None
    assert list(standin.companions()) == []
    assert standin.tell(3) == 3


def test_our_decode_error_says_what_the_standard_librarys_says() -> None:
    theirs = json.JSONDecodeError("bad", '{\n "a" x', 7)
    ours = _JSONDecodeError("bad", '{\n "a" x', 7)
    assert (str(ours), ours.lineno, ours.colno) == (str(theirs), theirs.lineno, theirs.colno)
