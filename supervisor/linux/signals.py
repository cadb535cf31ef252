"""Signals: which mean stop, which are passed on, and how they reach the loop.

Strategies looked at: signalfd(2) is not in Python, and its blocked mask would have to be undone
in each child; a handler that acts runs between any two byte codes. Kept: handlers that only note
the number, and `signal.set_wakeup_fd` to wake the loop. The note, not the byte in the pipe,
is what counts: a pipe filled by a flood of SIGWINCH cannot swallow a SIGTERM.
"""

from __future__ import annotations

import os
import signal

from supervisor.linux import fds, syscalls
from supervisor.linux.exit_status import signal_number

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

STOP_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT})
"""The supervisor's order to stop the container."""

FORWARDED_SIGNALS = frozenset(
    {
        signal.SIGHUP,
        signal.SIGQUIT,
        signal.SIGUSR1,
        signal.SIGUSR2,
        signal.SIGWINCH,
        signal.SIGALRM,
        signal.SIGIO,
        signal.SIGPWR,
        *range(signal.SIGRTMIN, signal.SIGRTMAX + 1),
    }
)
"""Passed on to the container's process as they are; with a terminal SIGWINCH resizes it instead."""

IGNORED_SIGNALS = frozenset(
    {
        signal.SIGILL,
        signal.SIGTRAP,
        signal.SIGBUS,
        signal.SIGFPE,
        signal.SIGSEGV,
        signal.SIGPIPE,
        signal.SIGSTKFLT,
        signal.SIGURG,
        signal.SIGXCPU,
        signal.SIGXFSZ,
        signal.SIGVTALRM,
        signal.SIGPROF,
        signal.SIGSYS,
    }
)
"""Without a meaning for the supervisor when another process sends them. For a real fault the kernel
takes an ignored signal back to its default (force_sig_info), and abort(3) does so itself. A handler
would return to the same fault, for ever."""

JOB_CONTROL_SIGNALS = frozenset({signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU})
"""Left alone at a shell, which stops and continues us; ignored where there is no shell."""

EVERY_SIGNAL = signal.valid_signals()
_CATCHABLE_SIGNALS = EVERY_SIGNAL - {signal.SIGKILL, signal.SIGSTOP}


def hold() -> None:
    """Let what will be routed wait until it is: a stop must not end us halfway in our preparations.

    A `SignalRouter` lets them through, or `release`.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS | FORWARDED_SIGNALS)


def hold_all() -> None:
    """Let every signal wait, those of our children too: until another program routes them."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS | FORWARDED_SIGNALS | {signal.SIGCHLD})


def release_all() -> None:
    """Let them through to the router that is there."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def held_stop() -> int | None:
    """Return a stop signal that waits, if there is one."""
    return min(STOP_SIGNALS & signal.sigpending(), default=None)


def release() -> None:
    """Let them through again, to what they do by default."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS | FORWARDED_SIGNALS)


def drop_handlers() -> None:
    """Reset each signal that has a handler or is ignored to its default; called in a child."""
    signal.set_wakeup_fd(-1)
    for signum in _CATCHABLE_SIGNALS:
        signal.signal(signum, signal.SIG_DFL)


class SignalRouter:
    """Brings signals to the loop, one number at a time, lowest first, each once per round."""

    def __init__(self, *, has_job_control: bool, has_watchdog: bool = False) -> None:
        """Route every signal of this module and SIGCHLD. Owns a pipe until `close`.

        `has_watchdog`: systemd sends SIGABRT to a supervisor that hangs, which has to end then.

        A mask or a disposition inherited from the caller is undone: with SIGCHLD ignored the
        kernel would reap our children for us.
        """
        self._noted: set[int] = set()
        rfd, wfd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._rfd, self._wfd = fds.Fd(rfd), fds.Fd(wfd)
        signal.set_wakeup_fd(wfd, warn_on_full_buffer=False)
        for signum in (*STOP_SIGNALS, *FORWARDED_SIGNALS, signal.SIGCHLD):
            signal.signal(signum, self._note)
        for signum in IGNORED_SIGNALS:
            signal.signal(signum, signal.SIG_IGN)
        signal.signal(signal.SIGABRT, signal.SIG_DFL if has_watchdog else signal.SIG_IGN)
        for signum in syscalls.C_LIBRARY_SIGNALS:
            syscalls.set_ignored(signum, is_ignored=True)
        for signum in JOB_CONTROL_SIGNALS:
            signal.signal(signum, signal.SIG_DFL if has_job_control else signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())

    def _note(self, signum: int, _frame: FrameType | None) -> None:
        self._noted.add(signum)

    def fileno(self) -> int:
        """Lend the descriptor to watch."""
        return self._rfd.fileno()

    @property
    def has_notes(self) -> bool:
        """Whether a signal has come that was not dispatched yet."""
        return bool(self._noted)

    def dispatch(self, deliver: Callable[[int], None]) -> None:
        """Call `deliver` with each signal number noted since the last call."""
        try:
            while len(os.read(self._rfd.fileno(), 4096)) == 4096:
                pass
        except BlockingIOError:
            pass  # emptied: the bytes only wake us, the notes below say what came
        while self._noted:
            signum = min(self._noted)
            self._noted.discard(signum)
            deliver(signum)

    def close(self) -> None:
        """Stop routing, and ignore what comes late: the status has still to be told.

        Ignored, since the interpreter's end would take our handlers back to the default action.
        """
        for signum in (*STOP_SIGNALS, *FORWARDED_SIGNALS):
            signal.signal(signum, signal.SIG_IGN)
        signal.set_wakeup_fd(-1)
        self._rfd.close()
        self._wfd.close()


def parse_signal(text: str) -> int:
    """Return the number of `TERM`, `SIGTERM`, `15`, `RTMIN+3` or `SIGRTMAX-1`.

    Raises:
        ValueError: It names no signal that can be sent, 1 to 64.
    """
    name = text.upper().removeprefix("SIG")
    for base, start in (("RTMIN", signal.SIGRTMIN), ("RTMAX", signal.SIGRTMAX)):
        if name.startswith(base):
            offset = name.removeprefix(base)
            if offset and not (offset[0] in "+-" and offset[1:].isdecimal()):
                raise ValueError(text)
            return _in_range(start + int(offset or "0"), text)
    if name.isascii() and name.isdecimal():
        return _in_range(int(name), text)
    try:
        return signal_number("SIG" + name)
    except KeyError:
        raise ValueError(text) from None


def _in_range(signum: int, text: str) -> int:
    if not 1 <= signum <= signal.SIGRTMAX:
        raise ValueError(text)
    return signum
