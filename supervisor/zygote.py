"""The zygote: one process per host that has everything imported, and forks a supervisor on request.

What a supervisor costs is mostly Python: 15 ms and 6 MB before it does anything. Forked from a
process that has done all that, it starts at once and shares those pages with every other one. What
it costs is that the process which its caller has started is not the supervisor but stands in for
it, see `supervisor.standin`; so it is for those who ask for it, and whoever finds no zygote, or is
told to, starts a supervisor of its own.

    /run/forkshim-zygote/requests   fifo: a stand-in writes its pid, one line
    /run/forkshim-zygote/alive      fifo: nothing is written; end of file is our death

The conversation, over two pipes that the stand-in has made (its descriptors 3 to 6) and of which
the supervisor takes an end each (pidfd_getfd(2)): `warm PID` or `cold` on the first; then `go` on
the second, without which the supervisor ends before it has done anything: the stand-in may have had
no patience, or may be dead.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import traceback

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

REQUESTS, ALIVE = "requests", "alive"
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
_LATER = (
    *("supervisor.attach", "supervisor.console", "supervisor.outlets", "supervisor.relay"),
    *("argparse", "daemon", "socket", "traceback"),
)
"""What a supervisor imports when it wants it: ours all have it, of the version that we are of."""


def serve(directory: str, commands: Mapping[str, Callable[[], int]]) -> int:
    """Serve requests until TERM or INT; returns the exit status.

    `commands`: the main function of each program that is served, by its name.

    Raises:
        ShimError: The fifos cannot be made, another zygote serves them, or descriptors of another
            process cannot be taken here.
    """
    _try_to_take()
    own_likeness()
    for name in _LATER:
        __import__(name)
    zygote = _Zygote(directory, commands)
    lean.set_title("forkshim: zygote")
    # Those that live on are not looked at again: a collection would write to all their pages.
    gc.collect()
    gc.freeze()
    return zygote.run()


class _Zygote:
    """Owns both fifos."""

    def __init__(self, directory: str, commands: Mapping[str, Callable[[], int]]) -> None:
        self._directory = directory
        self._commands = commands
        self._loop = Loop()
        self._reaper = Reaper()
        self._reaper.forget_strangers()
        self._rest = b""
        self._is_over = False
        self._notifier = Notifier(environment_of_a_main_process())
        self._alive, self._requests = _make_fifos(directory)

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
        return 0

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
        pipe = _inode(stand_in_pid, _STATUS_WFD)
        if not pipe:
            return  # it is gone, or nothing that we know

        def on_end(_termination: Termination) -> None:
            # It closes that end when it has its answer, and has it no more.
            if _inode(stand_in_pid, _STATUS_WFD) == pipe:
                _answer_cold(stand_in_pid)

        try:
            pid = spawn.fork_worker(lambda: _supervise_for(stand_in_pid, self._commands))
        except OSError as error:
            print(f"forkshim: zygote: fork: {reason(error)}", file=sys.stderr)  # noqa: T201
            _answer_cold(stand_in_pid)
            return
        self._reaper.expect(pid, on_end)


def _supervise_for(stand_in_pid: int, commands: Mapping[str, Callable[[], int]]) -> NoReturn:
    """Be the supervisor that the stand-in wants, to its end."""
    signals.hold()  # until they are routed: the stand-in passes them on from its answer on
    status = 1
    stand_in = None
    try:
        stand_in = _agree(Caller(stand_in_pid), commands)
        if stand_in is not None:
            status = _run(commands[os.path.basename(sys.argv[0])])
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
        os.write(status_wfd.fileno(), b"cold\n")
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


def _make_fifos(directory: str) -> tuple[fds.Fd, fds.Fd]:
    """Make `alive` and `requests`, in this order, and open both; nobody but root gets there."""
    alive, requests = f"{directory}/{ALIVE}", f"{directory}/{REQUESTS}"
    try:
        os.makedirs(directory, 0o700, exist_ok=True)
        status = os.stat(directory)
        if status.st_uid != os.getuid() or status.st_mode & 0o077:
            raise ShimError(f"{directory}: somebody else could ask for supervisors there")
        if _has_server(alive):
            raise ShimError(f"{directory}: another zygote serves it")
        for path in (requests, alive):
            if os.path.lexists(path):
                os.unlink(path)
        os.mkfifo(alive, 0o600)
        flags = os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC
        alive_fd = fds.Fd(os.open(alive, flags))
        os.mkfifo(requests, 0o600)
        return alive_fd, fds.Fd(os.open(requests, flags))
    except OSError as error:
        raise ShimError(f"{error.filename or directory}: {reason(error)}") from error


def _has_server(alive: str) -> bool:
    try:
        probe = fds.Fd(os.open(alive, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError:  # ENOENT; ENXIO: nobody has it open
        return False
    probe.close()
    return True


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


def _inode(pid: int, fd: int) -> int:
    """Return which file a descriptor of another process is; 0 for none."""
    try:
        return os.stat(f"/proc/{pid}/fd/{fd}").st_ino
    except OSError:
        return 0


def _answer_cold(pid: int) -> None:
    """Tell a stand-in to start its own; one that is gone needs no answer."""
    try:
        fd = fds.Fd(os.open(f"/proc/{pid}/fd/{_STATUS_WFD}", os.O_WRONLY | os.O_NONBLOCK))
    except OSError:
        return
    os.write(fd.fileno(), b"cold\n")
    fd.close()
