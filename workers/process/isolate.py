"""First actions of a forked worker: it drops the supervisor's signals, descriptors and title.

Close-on-exec has no effect on fork(2) without execve(2). A worker that kept the write end of
another worker's pipe would hide that worker's end of file. A worker ignores the signals that stop a
service, so that it copies the last output of a stopping container. It exits at end of file, or when
the supervisor kills it.
"""

from __future__ import annotations

import os
import signal

from workers.process.title import set_title

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
"""Signals that the supervisor handles or forwards: a terminal or systemd sends them to the whole
process group. Also the signals of EPIPE and EFBIG, which the worker reports as errors."""


def enter_worker(title: str, keep_fds: Iterable[int], null_fd: int) -> None:
    """Turn this forked process into the worker `title`, with /dev/null as descriptors 0 to 2.

    Args:
        title: Process title for ps(1).
        keep_fds: Descriptors that stay open, each above 2. All others are closed.
        null_fd: /dev/null, open for reading and writing.

    Raises:
        ValueError: A descriptor of `keep_fds` is 0, 1 or 2.
    """
    for signum in IGNORED_SIGNALS:
        signal.signal(signum, signal.SIG_IGN)
    for fd in range(3):
        os.dup2(null_fd, fd)
    lowest = 3
    for fd in sorted(set(keep_fds)):
        if fd < lowest:
            raise ValueError(f"descriptor {fd} cannot be kept: it is /dev/null now")
        os.closerange(lowest, fd)
        lowest = fd + 1
    os.closerange(lowest, os.sysconf("SC_OPEN_MAX"))
    set_title(title)
