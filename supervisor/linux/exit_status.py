"""How a child ended, as values: `Exited` and `Killed` are different types. Pure.

The state-directory protocol has one number for both, 128 + n for signal n. Only `shell_status`
returns that number.
"""

from __future__ import annotations

import os
import signal

from workers.common.records import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class SigInfo(Protocol):
        """The fields of `os.waitid`'s result about how a child ended, waitid(2)."""

        @property
        def si_code(self) -> int:
            """CLD_EXITED, CLD_KILLED or CLD_DUMPED."""

        @property
        def si_status(self) -> int:
            """The exit status or the signal; `si_code` determines which."""


@dataclass(frozen=True, slots=True)
class Exited:
    """The process called _exit(2) with this status, 0 to 255."""

    exit_status: int

    def __str__(self) -> str:
        """Return the text for a log line."""
        return f"exit status {self.exit_status}"


@dataclass(frozen=True, slots=True)
class Killed:
    """A signal ended the process. `signum` is an int: 34 to 64 are not in `signal.Signals`."""

    signum: int
    core_dumped: bool = False

    def __str__(self) -> str:
        """Return the text for a log line."""
        dumped = ", core dumped" if self.core_dumped else ""
        return f"killed by {signal_name(self.signum)}{dumped}"


@dataclass(frozen=True, slots=True)
class Unknown:
    """The process has ended, but its status is unknown; `reason` is the cause."""

    reason: str

    def __str__(self) -> str:
        """Return the text for a log line."""
        return f"unknown ({self.reason})"


@dataclass(frozen=True, slots=True)
class Recorded:
    """The process has ended. Only the number of `shell_status` was recorded."""

    status: int

    def __str__(self) -> str:
        """Return the text for a log line."""
        return f"status {self.status}, from the record"


Termination = Exited | Killed | Unknown | Recorded

_SIGNAL_BASE, _MOST_STATUS = 128, 255
UNKNOWN_STATUS = 69
"""EX_UNAVAILABLE of sysexits.h: the exit status of forkshim for an `Unknown` termination."""


def from_siginfo(info: SigInfo) -> Termination:
    """Return the termination that waitid(2) with WEXITED reported."""
    if info.si_code == os.CLD_EXITED:
        return Exited(info.si_status)
    return Killed(info.si_status, core_dumped=info.si_code == os.CLD_DUMPED)


def from_wait_status(status: int) -> Termination:
    """Return the termination for a wait status of wait(2)."""
    if os.WIFSIGNALED(status):
        return Killed(os.WTERMSIG(status), core_dumped=os.WCOREDUMP(status))
    return Exited(os.WEXITSTATUS(status))


def shell_status(termination: Termination) -> int:
    """Return the number of sh(1): the exit status, or 128 + signal. Unknown: `UNKNOWN_STATUS`."""
    if isinstance(termination, Exited):
        return termination.exit_status
    if isinstance(termination, Unknown):
        return UNKNOWN_STATUS
    if isinstance(termination, Recorded):
        return termination.status
    return 128 + termination.signum


def protocol_status(termination: Termination) -> str:
    """Return the content of `exitStatus`: the shell status in decimal, or `unknown`."""
    return "unknown" if isinstance(termination, Unknown) else str(shell_status(termination))


def from_protocol_status(text: str) -> Termination | None:
    """Return the termination for the content of `exitStatus`; None if it is not 0 to 255.

    A number over 128 may be an exit status or a signal.
    """
    if not (text.isascii() and text.isdecimal()) or int(text) > _MOST_STATUS:
        return None
    status = int(text)
    return Exited(status) if status <= _SIGNAL_BASE else Recorded(status)


def _numbers() -> dict[str, int]:
    """Return the numbers of signals by name. Of two names the usual name comes first."""
    names = (name for name in sorted(dir(signal)) if name.startswith("SIG") and "_" not in name)
    return {name: int(getattr(signal, name)) for name in names}


def signal_number(name: str) -> int:
    """Return 15 for SIGTERM.

    Raises:
        KeyError: There is no such signal.
    """
    return _numbers()[name]


def signal_name(signum: int) -> str:
    """Return SIGTERM for 15, SIGRTMIN+6 for 40 (signal(7))."""
    if signal.SIGRTMIN < signum < signal.SIGRTMAX:
        return f"SIGRTMIN+{signum - signal.SIGRTMIN}"
    for name, number in _numbers().items():
        if number == signum:
            return name
    return f"signal {signum}"  # 32 and 33 belong to the C library
