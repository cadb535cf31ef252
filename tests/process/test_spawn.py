"""Forking and exec: what a program is given, what it is not, and how a failure is told."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
from typing import TYPE_CHECKING

import pytest

from supervisor.linux import spawn, syscalls
from supervisor.linux.exit_status import Exited, Killed, Termination
from supervisor.linux.signals import SignalRouter
from tests.harness import waiting
from tests.harness.forked import forked, has_no_children, owned

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

pytestmark = pytest.mark.process

PYTHON = os.path.realpath(sys.executable)


@pytest.fixture
def null() -> Iterator[int]:
    fd = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    yield fd
    os.close(fd)


def _run(argv: Sequence[str], null: int, cwd: str = "/") -> tuple[Termination, bytes]:
    """Run a program to its end; returns how it ended and its stdout."""
    rfd, wfd = os.pipe2(os.O_CLOEXEC)
    pid = spawn.exec_program(
        argv[0],
        argv,
        cwd=cwd,
        stdio=(null, wfd, null),
        environment=spawn.without_manager_variables(os.environ),
    )
    os.close(wfd)
    with owned(pid) as child:
        output = waiting.read_to_end(rfd)
        os.close(rfd)
        return child.wait(), output


def test_who_is_refused_a_child_goes_on_hearing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> int:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with monkeypatch.context() as patch:
        patch.setattr(os, "fork", refused)
        with pytest.raises(BlockingIOError):
            spawn.fork_worker(lambda: None)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


def test_a_program_gets_its_arguments_directory_and_streams(null: int, tmp_path: Path) -> None:
    ended, output = _run(
        ["/bin/sh", "-c", 'pwd; echo "$0 $1"; exit 7', "a", "b c"], null, str(tmp_path)
    )
    assert ended == Exited(7)
    assert output.decode() == f"{tmp_path}\na b c\n"


_TELL = """
import json, os
fds = {}
for fd in os.listdir("/proc/self/fd"):
    try:
        fds[fd] = os.readlink("/proc/self/fd/" + fd)
    except FileNotFoundError:
        pass
print(json.dumps({"fds": fds, "env": dict(os.environ)}))
"""


@pytest.mark.usefixtures("signal_state")
def test_a_program_starts_with_default_dispositions_and_an_empty_mask(null: int) -> None:
    router = SignalRouter(has_job_control=False)
    for signum in (signal.SIGHUP, signal.SIGPIPE, signal.SIGRTMIN + 1):
        signal.signal(signum, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR2})
    rfd, wfd = os.pipe2(os.O_CLOEXEC)
    pid = spawn.exec_program(
        "/bin/sh",
        ["sh", "-c", "echo; read x"],
        cwd="/",
        stdio=(rfd, null, null),
        environment=os.environ,
    )
    with owned(pid) as child:
        status = child.status()
        os.close(wfd)
        child.wait()
    os.close(rfd)
    assert int(status["SigIgn"], 16) & waiting.SETTABLE == 0
    assert int(status["SigBlk"], 16) == 0
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == {signal.SIGTERM, signal.SIGUSR2}
    router.close()


def _is_inheritable(fd: int) -> bool:
    try:
        return os.get_inheritable(fd)
    except OSError:  # the one that lists them
        return False


def test_no_descriptor_but_the_three_reaches_a_program(null: int, tmp_path: Path) -> None:
    extra = [os.open(tmp_path, os.O_RDONLY), *os.pipe()]
    of_our_caller = {fd for fd in map(int, os.listdir("/proc/self/fd")) if _is_inheritable(fd)}
    ended, output = _run([PYTHON, "-ISc", _TELL], null)
    for fd in extra:
        os.close(fd)
    fds = json.loads(output)["fds"]
    assert ended == Exited(0)
    assert set(map(int, fds)) - {0, 1, 2} <= of_our_caller
    assert not set(map(int, fds)) & {*extra, null}
    assert fds["0"] == fds["2"] == "/dev/null"


def test_systemds_own_variables_do_not_reach_a_program(
    null: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "OTHER"):
        monkeypatch.setenv(name, "x")
    _ended, output = _run([PYTHON, "-ISc", _TELL], null)
    names = set(json.loads(output)["env"])
    assert "OTHER" in names
    assert not names & {"NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC"}


def test_streams_that_sit_on_0_to_2_themselves_are_not_mixed_up(tmp_path: Path) -> None:
    def work() -> None:
        for fd, name in enumerate(("in", "out", "err")):
            os.dup2(os.open(tmp_path / name, os.O_CREAT | os.O_RDWR, 0o600), fd)
        pid = spawn.exec_program(
            "/bin/sh",
            ["sh", "-c", "echo 0 >&0; echo 1; echo 2 >&2"],
            cwd="/",
            stdio=(2, 0, 1),
            environment=os.environ,
        )
        os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

    with forked(work) as child:
        assert child.wait() == Exited(0)
    contents = {name: (tmp_path / name).read_text() for name in ("in", "out", "err")}
    assert contents == {"err": "0\n", "in": "1\n", "out": "2\n"}


@pytest.mark.parametrize(
    ("program", "cwd", "filename", "number"),
    [
        ("/no/such/program", "/", "/no/such/program", errno.ENOENT),
        ("/etc", "/", "/etc", errno.EACCES),
        ("/etc/passwd", "/", "/etc/passwd", errno.EACCES),
        ("/bin/sh", "/no/such/directory", "/no/such/directory", errno.ENOENT),
        ("/bin/sh", "/etc/passwd", "/etc/passwd", errno.ENOTDIR),
        ("/no/such/program", "/no/such/directory", "/no/such/directory", errno.ENOENT),
    ],
)
def test_a_failed_chdir_or_exec_names_what_failed(
    program: str, cwd: str, filename: str, number: int, null: int
) -> None:
    with pytest.raises(OSError, match=r".*") as caught:
        spawn.exec_program(
            program, ["x"], cwd=cwd, stdio=(null, null, null), environment=os.environ
        )
    assert (caught.value.errno, caught.value.filename) == (number, filename)
    info = os.waitid(os.P_ALL, 0, os.WEXITED)
    assert info is not None
    assert (info.si_code, info.si_status) == (os.CLD_EXITED, 127)
    assert has_no_children()


def test_a_stream_that_is_not_open_fails_as_the_program(null: int) -> None:
    with pytest.raises(OSError, match="Bad file descriptor: '/bin/sh'"):
        spawn.exec_program(
            "/bin/sh", ["sh"], cwd="/", stdio=(null, null, 999_999), environment=os.environ
        )
    os.waitid(os.P_ALL, 0, os.WEXITED)


def test_a_program_dies_with_the_one_who_started_it(null: int) -> None:
    rfd, wfd = os.pipe2(os.O_CLOEXEC)
    silent_rfd, silent_wfd = os.pipe2(os.O_CLOEXEC)

    def work() -> None:
        argv = ["/bin/sh", "-c", "echo $$; read forever"]
        spawn.exec_program(
            argv[0], argv, cwd="/", stdio=(silent_rfd, wfd, null), environment=os.environ
        )
        signal.pause()

    with forked(work) as parent:
        os.close(wfd)
        program = int(waiting.read_until(rfd, b"\n"))
        pidfd = os.pidfd_open(program)
        parent.kill()
        waiting.wait_readable(pidfd)
        info = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)  # we are its subreaper
        os.close(pidfd)
    for fd in (rfd, silent_rfd, silent_wfd):
        os.close(fd)
    assert info is not None
    assert (info.si_code, info.si_status) == (os.CLD_KILLED, signal.SIGKILL)


def test_a_program_whose_parent_died_before_the_prctl_is_not_started(null: int) -> None:
    rfd, wfd = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        spawn._exec("/bin/sh", ["sh"], "/", (null, null, null), (), {}, None, 1, wfd)
    os.close(wfd)
    with owned(pid) as child:
        assert child.wait() == Exited(127)
        assert waiting.read_to_end(rfd) == b""
    os.close(rfd)


@pytest.mark.usefixtures("signal_state")
def test_a_signal_sent_to_the_child_between_fork_and_exec_never_reaches_the_parent(
    null: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    router = SignalRouter(has_job_control=False)
    above = spawn._above

    def signalled(count: int, lent: Sequence[int]) -> list[int]:
        os.kill(os.getpid(), signal.SIGTERM)
        return above(count, lent)

    monkeypatch.setattr(spawn, "_above", signalled)  # between the fork and the exec
    pid = spawn.exec_program(
        "/bin/sh", ["sh"], cwd="/", stdio=(null, null, null), environment=os.environ
    )
    with owned(pid) as child:
        assert child.wait() == Killed(signal.SIGTERM)
    got: list[int] = []
    router.dispatch(got.append)
    assert got == [signal.SIGCHLD]
    router.close()


@pytest.mark.usefixtures("signal_state")
def test_a_signal_that_comes_while_we_fork_is_delivered_to_us_afterwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    router = SignalRouter(has_job_control=False)
    fork, us = os.fork, os.getpid()
    got: list[int] = []

    def signalled_fork() -> int:
        os.kill(us, signal.SIGTERM)
        router.dispatch(got.append)
        assert got == []  # blocked
        return fork()

    monkeypatch.setattr(os, "fork", signalled_fork)
    with forked(lambda: None) as child:
        assert child.wait() == Exited(0)
    waiting.wait_readable(router.fileno())
    router.dispatch(got.append)
    assert got == [signal.SIGTERM, signal.SIGCHLD]
    router.close()


@pytest.mark.usefixtures("signal_state")
def test_a_worker_has_default_dispositions_and_an_empty_mask() -> None:
    router = SignalRouter(has_job_control=False)
    rfd, wfd = os.pipe2(os.O_CLOEXEC)

    def work() -> None:
        os.write(wfd, b"here")
        signal.pause()

    with forked(work) as child:
        waiting.wait_readable(rfd)
        status = child.status()
        for name in ("SigIgn", "SigBlk"):
            assert int(status[name], 16) & waiting.SETTABLE == 0, name
        os.kill(child.pid, signal.SIGTERM)
        assert child.wait() == Killed(signal.SIGTERM)
    for fd in (rfd, wfd):
        os.close(fd)
    router.close()


def test_a_worker_that_returns_ends_with_0_and_one_with_a_bug_with_70_and_a_traceback() -> None:
    rfd, wfd = os.pipe2(os.O_CLOEXEC)

    def work() -> None:
        os.dup2(wfd, 2)
        sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115 -- pytest has replaced it
        raise SystemExit("a bug")

    with forked(lambda: None) as child:
        assert child.wait() == Exited(0)
    with forked(work) as child:
        os.close(wfd)
        assert child.wait() == Exited(70)
        assert b"SystemExit: a bug" in waiting.read_to_end(rfd)
    os.close(rfd)


@pytest.mark.parametrize(
    ("dies_with_parent", "ended"), [(True, Killed(signal.SIGKILL)), (False, Exited(0))]
)
def test_a_worker_dies_with_the_one_who_forked_it_only_if_that_is_wanted(
    dies_with_parent: bool, ended: Termination
) -> None:
    rfd, wfd = os.pipe2(os.O_CLOEXEC)
    go_rfd, go_wfd = os.pipe2(os.O_CLOEXEC)

    def work() -> None:
        os.write(wfd, b"%d\n" % os.getpid())
        waiting.wait_readable(go_rfd)

    def parent() -> None:
        spawn.fork_worker(work, dies_with_parent=dies_with_parent)
        signal.pause()

    with forked(parent) as middle:
        pid = int(waiting.read_until(rfd, b"\n"))
        middle.kill()
    with owned(pid) as worker:  # we are its subreaper
        if not dies_with_parent:
            assert waiting.is_alive(pid)
            os.write(go_wfd, b"go")
        assert worker.wait() == ended
    for fd in (rfd, wfd, go_rfd, go_wfd):
        os.close(fd)


def test_a_worker_whose_parent_died_before_the_prctl_does_no_work() -> None:
    rfd, wfd = os.pipe2(os.O_CLOEXEC)

    def work() -> None:
        os.write(wfd, b"worked")

    def parent() -> None:
        us = os.getpid()

        def comes_too_late(signum: int) -> None:
            assert signum == signal.SIGKILL
            waiting.wait_true(lambda: os.getppid() != us)

        syscalls.set_pdeathsig = comes_too_late  # only in this child and its own
        pid = spawn.fork_worker(work, dies_with_parent=True)
        os.write(wfd, b"%d\n" % pid)

    with forked(parent) as middle:
        assert middle.wait() == Exited(0)
        pid = int(waiting.read_until(rfd, b"\n"))
    os.close(wfd)
    with owned(pid) as worker:
        assert worker.wait() == Exited(70)
    assert waiting.read_to_end(rfd) == b""
    os.close(rfd)
