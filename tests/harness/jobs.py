"""Being a job in the background of a shell, which ignores some signals for it (POSIX.1, sh)."""

from __future__ import annotations

import signal


def hear_the_keyboard() -> None:
    """Give SIGINT and SIGQUIT back what a program in the foreground has, its children too."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGQUIT) is signal.SIG_IGN:
        signal.signal(signal.SIGQUIT, signal.SIG_DFL)
