"""What a forked worker does first: forget its parent's signals, descriptors and name.

Close-on-exec does nothing for a fork without exec: a worker that kept the write end of its
sibling's pipe would hide that sibling's end of file for ever. It ignores the signals that stop a
service, because its parent will stop it by end of file, and the last words of a container that
was asked to end are the ones people need.
"""

from __future__ import annotations

import os
import signal

from setproctitle import setproctitle

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

IGNORED_SIGNALS = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGALRM,
    signal.SIGIO,
    signal.SIGPWR,
    signal.SIGPIPE,
    signal.SIGXFSZ,
    *range(signal.SIGRTMIN, signal.SIGRTMAX + 1),
)
"""What the supervisor acts on or forwards: a terminal or systemd sends it to the whole group.
And what write(2) sends along with EPIPE and EFBIG, which are reported."""


def enter_worker(title: str, keep_fds: Iterable[int], null_fd: int) -> None:
    """Turn this forked process into the worker `title`, with `keep_fds` and /dev/null as 0 to 2.

    Args:
        title: As ps(1) shows it.
        keep_fds: Descriptors that stay as they are; each above 2. All others are closed.
        null_fd: /dev/null, open for reading and writing.
    """
    for signum in IGNORED_SIGNALS:
        signal.signal(signum, signal.SIG_IGN)
    for fd in range(3):
        os.dup2(null_fd, fd)
    lowest = 3
    for fd in sorted(set(keep_fds)):
        if fd < lowest:
            raise ValueError(f"descriptor {fd} cannot be kept, it is /dev/null now")
        os.closerange(lowest, fd)
        lowest = fd + 1
    os.closerange(lowest, os.sysconf("SC_OPEN_MAX"))
    setproctitle(title)
