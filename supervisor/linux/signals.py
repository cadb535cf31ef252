"""Signals: which request a stop, which are forwarded, and how they reach the loop.

The handlers only note the number, and `signal.set_wakeup_fd` wakes the loop. The note counts, not
the byte in the pipe: a pipe that a flood of SIGWINCH has filled cannot lose a SIGTERM.

Rejected: signalfd(2), which Python lacks, and whose blocked mask each child would have to undo; a
handler that acts, because it runs between any two byte codes.
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
"""They request a stop of the container."""

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
"""Forwarded to the container's process unchanged. With a terminal, SIGWINCH resizes it instead."""

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
"""They have no meaning for the supervisor when another process sends them. For a real fault the
kernel resets an ignored signal to its default (force_sig_info), and abort(3) does so itself. A
handler would return to the same fault without end."""

JOB_CONTROL_SIGNALS = frozenset({signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU})
"""At their default under a shell, which stops and continues its jobs. Ignored without a shell."""

EVERY_SIGNAL = signal.valid_signals()
_CATCHABLE_SIGNALS = EVERY_SIGNAL - {signal.SIGKILL, signal.SIGSTOP}


def block() -> None:
    """Block the stop signals and the forwarded signals until `SignalRouter` or `unblock`.

    A stop must not end this process while it prepares a container.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS | FORWARDED_SIGNALS)


def block_all() -> None:
    """Block these signals and SIGCHLD, until another program routes them."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS | FORWARDED_SIGNALS | {signal.SIGCHLD})


def unblock_all() -> None:
    """Undo `block_all`: the router of this process gets the signals."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def pending_stop() -> int | None:
    """Return a blocked stop signal that is pending; None without one. Source: sigpending(2)."""
    return min(STOP_SIGNALS & signal.sigpending(), default=None)


def unblock() -> None:
    """Undo `block`."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS | FORWARDED_SIGNALS)


def drop_handlers() -> None:
    """Reset each signal to its default. Called in a child."""
    signal.set_wakeup_fd(-1)
    for signum in _CATCHABLE_SIGNALS:
        signal.signal(signum, signal.SIG_DFL)


class SignalRouter:
    """Delivers signals to the loop: one number at a time, lowest first, each once per round."""

    def __init__(self, *, has_job_control: bool, has_watchdog: bool = False) -> None:
        """Route every signal of this module and SIGCHLD. Owns a pipe until `close`.

        This replaces a signal mask and dispositions that the caller has left: with SIGCHLD ignored
        the kernel would reap the children. `has_job_control`: a shell may stop this process.
        `has_watchdog`: systemd sends SIGABRT to a supervisor that hangs, which ends it.
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
        """Return the descriptor to watch, borrowed."""
        return self._rfd.fileno()

    @property
    def has_notes(self) -> bool:
        """Whether a signal has arrived and was not dispatched yet."""
        return bool(self._noted)

    def dispatch(self, deliver: Callable[[int], None]) -> None:
        """Call `deliver` with each signal number noted since the last call."""
        try:
            while len(os.read(self._rfd.fileno(), 4096)) == 4096:
                pass
        except BlockingIOError:
            pass  # the bytes only wake the loop
        while self._noted:
            signum = min(self._noted)
            self._noted.discard(signum)
            deliver(signum)

    def close(self) -> None:
        """Stop routing, and ignore later signals: this process must still report the exit status.

        The interpreter's end would reset handlers to the default action, but keeps SIG_IGN.
        """
        for signum in (*STOP_SIGNALS, *FORWARDED_SIGNALS):
            signal.signal(signum, signal.SIG_IGN)
        signal.set_wakeup_fd(-1)
        self._rfd.close()
        self._wfd.close()


def parse_signal(text: str) -> int:
    """Return the number of `TERM`, `SIGTERM`, `15`, `RTMIN+3` or `SIGRTMAX-1`.

    Raises:
        ValueError: `text` names no signal from 1 to 64.
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
