"""The zygote: one process per host that has everything imported, and forks a supervisor on request.

What a supervisor costs is mostly Python: 15 ms and 6 MB before it does anything. Forked from a
process that has done all that, it starts at once and shares those pages with every other one. What
it costs is that the process which its caller has started is not the supervisor but stands in for
it, see `supervisor.standin`; so it is for those who ask for it, and whoever finds no zygote, or is
told to, starts a supervisor of its own.

    /run/forkshim-zygote/requests   fifo: a stand-in writes its pid, one line
    /run/forkshim-zygote/alive      fifo: end of file is our death; a line wakes a guard, see below
    /run/forkshim-zygote/pidns      link to our pid namespace: a pid of another one says nothing

The conversation, over two pipes that the stand-in has made (its descriptors 3 to 6) and of which
the supervisor takes an end each (pidfd_getfd(2)): `warm PID` or `cold` on the first; then `go` on
the second, without which the supervisor ends before it has done anything: the stand-in may have had
no patience, or may be dead. A child of the stand-in, its guard, waits at `alive` meanwhile, and
answers it if we die; should the stand-in be killed, a line there has the guard look, and go.
"""

from __future__ import annotations

import fcntl
import gc
import os
import signal
import stat
import sys
import traceback
from contextlib import suppress

import supervisor
import workers
from supervisor import fds, linux, signals, spawn, standin
from supervisor.caller import Caller, own_likeness
from supervisor.errors import ShimError, reason
from supervisor.front import environment_of_a_main_process
from supervisor.loop import Loop
from supervisor.notify import Notifier
from supervisor.reaper import Reaper
from workers import lean

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import NoReturn

    from supervisor.waitstatus import Termination

    Pipe = tuple[int, int]

REQUESTS, ALIVE, PIDNS = "requests", "alive", "pidns"
_COLD = b"cold\n"
_WORDS = frozenset({"run", "adopt"})
"""The other words of `forkshim` are a person's, and over soon."""

_DETACHED = "--detach"
"""A daemon belongs to whoever reaps its caller's orphans, and ours would go to the zygote's."""

_STATUS_WFD, _LINK_RFD = 4, 5
_STDIO = (7, 9, 2)
_TALK = range(3, 10)
"""Descriptors of a stand-in: see `systemd/zygote/stand-in`."""

_LONGEST_REST = 64
_ALIVE_TIMER = "sign of life"
_OTHERS = ("argparse", "contextlib", "daemon", "functools", "signal", "socket", "traceback")
"""What our modules import when they want it."""


def serve(directory: str, commands: Mapping[str, Callable[[], int]]) -> int:
    """Serve requests until TERM or INT; returns the exit status.

    `commands`: the main function of each program that is served, by its name.

    Raises:
        ShimError: The fifos cannot be made, another zygote serves them, or descriptors of another
            process cannot be taken here.
    """
    _try_to_take()
    own_likeness()
    _import_everything()
    zygote = _Zygote(directory, commands)
    lean.set_title("forkshim: zygote")
    # Those that live on are not looked at again: a collection would write to all their pages.
    gc.collect()
    gc.freeze()
    return zygote.run()


def _import_everything() -> None:
    """Import what a supervisor may ever import: ours are all of the version that we are of."""
    for package in (supervisor, workers):
        for directory in package.__path__:
            for name in sorted(os.listdir(directory)):
                module, dot, ending = name.partition(".")
                if dot and ending == "py" and not module.startswith("__"):
                    __import__(f"{package.__name__}.{module}")
    for name in _OTHERS:
        __import__(name)


class _Zygote:
    """Owns both fifos and the lock."""

    def __init__(self, directory: str, commands: Mapping[str, Callable[[], int]]) -> None:
        self._directory = directory
        self._commands = commands
        self._loop = Loop()
        self._reaper = Reaper()
        self._reaper.forget_strangers()
        self._rest = b""
        self._is_over = False
        self._notifier = Notifier(environment_of_a_main_process())
        self._lock, self._alive, self._requests = _make_fifos(directory)
        self._status = 0

    def run(self) -> int:
        router = signals.SignalRouter(has_job_control=False)

        def on_signal(signum: int) -> None:
            if signum == signal.SIGCHLD:
                self._reaper.reap()
            elif signum in signals.STOP_SIGNALS:
                self._is_over = True

        self._loop.watch(router.fileno(), lambda: router.dispatch(on_signal))
        self._loop.watch(self._requests.fileno(), self._serve)
        if self._notifier.watchdog_s:
            self._give_sign_of_life()
        self._reaper.reap()  # who has ended before the signals were routed
        self._notifier.ready("serving")
        self._loop.run_until(lambda: self._is_over)
        # Who comes now starts its own; who has asked already is answered.
        os.unlink(f"{self._directory}/{REQUESTS}")
        self._serve()
        return self._status

    def _give_sign_of_life(self) -> None:
        self._notifier.alive()
        self._loop.call_after(_ALIVE_TIMER, self._notifier.watchdog_s, self._give_sign_of_life)

    def _serve(self) -> None:
        try:
            while chunk := os.read(self._requests.fileno(), 4096):
                *lines, rest = (self._rest + chunk).split(b"\n")
                self._rest = rest[:_LONGEST_REST]
                for line in lines:
                    if line.isdigit() and len(line) <= 10:
                        self._fork(int(line))
        except BlockingIOError:
            return

    def _fork(self, stand_in_pid: int) -> None:
        """Fork a supervisor; if it cannot be, or dies before it has answered, we answer."""
        pipe = _told_pipe(stand_in_pid)
        if pipe is None:  # it is gone, or nothing that we know
            self._have_guards_look(stand_in_pid)
            return

        def on_end(_termination: Termination) -> None:
            # It closes that end when it has its answer.
            if _told_pipe(stand_in_pid) == pipe:
                self._answer_cold(stand_in_pid, pipe)
            else:
                self._have_guards_look(stand_in_pid)

        try:
            pid = spawn.fork_worker(lambda: _supervise_for(stand_in_pid, self._commands))
        except OSError as error:
            print(f"forkshim: zygote: fork: {reason(error)}", file=sys.stderr)  # noqa: T201
            self._answer_cold(stand_in_pid, pipe)
            return
        self._reaper.expect(pid, on_end)

    def _answer_cold(self, pid: int, pipe: Pipe) -> None:
        """Tell a stand-in to start its own; one that is gone needs no answer.

        If we cannot, we end: then nobody waits for us.
        """
        try:
            fd = fds.Fd(os.open(f"/proc/{pid}/fd/{_STATUS_WFD}", os.O_WRONLY | os.O_NONBLOCK))
        except (FileNotFoundError, ProcessLookupError):
            return
        except OSError as error:
            print(f"forkshim: zygote: {reason(error)}", file=sys.stderr)  # noqa: T201
            self._is_over, self._status = True, 1
            return
        if _identity(os.fstat(fd.fileno())) == pipe:
            with suppress(OSError):  # EPIPE, EAGAIN: nobody reads it
                os.write(fd.fileno(), _COLD)
        fd.close()

    def _have_guards_look(self, stand_in_pid: int) -> None:
        """Wake a guard, if its stand-in was killed as it asked; another's goes on waiting."""
        if _is_alive(stand_in_pid):
            return
        with suppress(BlockingIOError):
            os.read(self._alive.fileno(), 4096)  # what woke nobody
        os.write(self._alive.fileno(), b"\n")


def _supervise_for(stand_in_pid: int, commands: Mapping[str, Callable[[], int]]) -> NoReturn:
    """Be the supervisor that the stand-in wants, to its end."""
    signals.hold()  # until they are routed: the stand-in passes them on from its answer on
    for signum in (signal.SIGPIPE, signal.SIGXFSZ):  # as an interpreter begins
        signal.signal(signum, signal.SIG_IGN)
    status = 1
    stand_in = None
    try:
        stand_in = _agree(Caller(stand_in_pid), commands)
        if stand_in is not None:
            status = _run(commands[os.path.basename(sys.argv[0])])
    except OSError:
        pass  # it has gone in the middle of it
    except Exception:
        traceback.print_exc()
    finally:
        if stand_in is not None:
            stand_in.end_with(status)
        os._exit(status)


def _agree(caller: Caller, commands: Iterable[str]) -> standin.StandIn | None:
    """Become what the caller wants, and tell it; None if it was, or has, decided otherwise."""
    status_wfd, link_rfd = caller.take(_STATUS_WFD), caller.take(_LINK_RFD)
    if not (fds.is_fifo(status_wfd.fileno()) and fds.is_fifo(link_rfd.fileno())):
        return None
    try:
        is_ours = _is_served(caller, commands) and not caller.difference(_STDIO, _TALK)
        if is_ours:
            stdio = [caller.take(fd) for fd in _STDIO]
            caller.become()
            caller.close()
            _take_place(stdio, status_wfd, link_rfd)
    except OSError:
        is_ours = False
    if not is_ours:
        os.write(status_wfd.fileno(), _COLD)
        return None
    _take_words(caller.argv)
    stand_in = standin.StandIn(caller.pid, status_wfd.take(), link_rfd.take())
    os.write(stand_in.fds[0], b"warm %d\n" % os.getpid())
    if os.read(stand_in.fds[1], 3) != b"go\n":
        return None
    stand_in.die_with_it()
    standin.be_stood_in_for(stand_in)
    return stand_in


def _is_served(caller: Caller, commands: Iterable[str]) -> bool:
    """Say whether it is a stand-in of a command that may be forked."""
    words = caller.argv[1:]
    name = os.path.basename(words[0]) if words else ""
    if name == "forkshim":
        return len(words) > 1 and words[1] in _WORDS and _DETACHED not in words
    return name in commands


def _take_place(stdio: list[fds.Fd], *kept: fds.Fd) -> None:
    """Have the caller's descriptors 0 to 2, and nothing of the zygote's."""
    os.setsid()
    for fd, owner in enumerate(stdio):
        os.dup2(owner.fileno(), fd, inheritable=True)
    for owner in stdio:
        owner.close()
    lowest = 3
    for fd in sorted(owner.fileno() for owner in kept):
        os.closerange(lowest, fd)
        lowest = fd + 1
    os.closerange(lowest, os.sysconf("SC_OPEN_MAX"))


def _take_words(words: list[str]) -> None:
    """Have the command line that a supervisor has which is started without a zygote.

    A reload starts the program by it: the one that lies beside the zygote's.
    """
    name = os.path.basename(words[1])
    script = sys.argv[0]
    program = os.path.join(os.path.dirname(os.path.abspath(script)), name)
    before = sys.orig_argv[: sys.orig_argv.index(script)]
    sys.argv[:] = [program, *words[2:]]
    sys.orig_argv[:] = [*before, *sys.argv]


def _run(main: Callable[[], int]) -> int:
    """Return what a process would have ended with that had been started for this."""
    try:
        return main()
    except SystemExit as error:
        if error.code is None or isinstance(error.code, int):
            return error.code or 0
        print(error.code, file=sys.stderr)  # noqa: T201 -- as the interpreter does
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):
                continue


def _make_fifos(directory: str) -> tuple[fds.Fd, fds.Fd, fds.Fd]:
    """Lock the directory, make what is in it, and open both fifos; nobody but root gets there.

    `requests` comes last: who sees it may ask.
    """
    alive, requests, pidns = (f"{directory}/{name}" for name in (ALIVE, REQUESTS, PIDNS))
    try:
        os.makedirs(directory, 0o700, exist_ok=True)
        lock = fds.Fd(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        status = os.fstat(lock.fileno())
        if status.st_uid != os.getuid() or status.st_mode & 0o077:
            raise ShimError(f"{directory}: somebody else could ask for supervisors there")
        try:
            fcntl.flock(lock.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ShimError(f"{directory}: another zygote serves it") from None
        for path in (requests, alive, pidns):
            if os.path.lexists(path):
                os.unlink(path)
        os.symlink(f"/proc/{os.getpid()}/ns/pid", pidns)
        os.mkfifo(alive, 0o600)
        flags = os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC
        alive_fd = fds.Fd(os.open(alive, flags))
        os.mkfifo(requests, 0o600)
        return lock, alive_fd, fds.Fd(os.open(requests, flags))
    except OSError as error:
        raise ShimError(f"{error.filename or directory}: {reason(error)}") from error


def _try_to_take() -> None:
    """Take a descriptor of a child: without that nobody could be answered.

    Raises:
        ShimError: It cannot be done here.
    """
    rfd, wfd = fds.pipe(4096)

    def wait_for_us() -> None:
        wfd.close()
        os.read(rfd.fileno(), 1)

    pid = spawn.fork_worker(wait_for_us)
    try:
        pidfd = fds.Fd(os.pidfd_open(pid))
        try:
            os.close(linux.pidfd_getfd(pidfd.fileno(), rfd.fileno()))
        finally:
            pidfd.close()
    except OSError as error:
        raise ShimError(f"descriptors of others cannot be taken: {reason(error)}") from error
    finally:
        wfd.close()
        rfd.close()


def _told_pipe(pid: int) -> Pipe | None:
    """Return which pipe a stand-in is told by; None if the process does not look like one."""
    found = []
    for fd in (_STATUS_WFD - 1, _STATUS_WFD, _LINK_RFD, _LINK_RFD + 1):
        try:
            status = os.stat(f"/proc/{pid}/fd/{fd}")
        except OSError:
            return None
        if not stat.S_ISFIFO(status.st_mode):
            return None
        found.append(_identity(status))
    told, told_again, link, link_again = found
    return told if told == told_again and link == link_again and told != link else None


def _is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b") ")[2][:1] not in b"ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _identity(status: os.stat_result) -> Pipe:
    return status.st_dev, status.st_ino
