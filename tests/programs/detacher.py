"""Detaches with `daemonize.detach`; the daemon then does what the first argument names.

Its result goes to stdout as JSON: null, or the exit status and the message of the error.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from supervisor.cli import daemon
from supervisor.linux.errors import ShimError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable


def _facts() -> dict[str, object]:
    umask = os.umask(0)
    os.umask(umask)
    try:
        os.close(os.open("/dev/tty", os.O_RDWR))
        has_tty = True
    except OSError:
        has_tty = False
    return {
        "pid": os.getpid(),
        "sid": os.getsid(0),
        "cwd": os.getcwd(),
        "umask": umask,
        "has_tty": has_tty,
        "fds": {
            fd: os.readlink(f"/proc/self/fd/{fd}")
            for fd in os.listdir("/proc/self/fd")
            if os.path.lexists(f"/proc/self/fd/{fd}")
        },
        "sigchld_is_default": signal.getsignal(signal.SIGCHLD) is signal.SIG_DFL,
    }


def _daemon(report: daemon.StartReport) -> None:
    behaviour = sys.argv[1]
    if behaviour in ("runs", "is interrupted"):
        facts_path = Path("facts.json")
        facts_path.with_suffix(".new").write_text(json.dumps(_facts()))
        facts_path.with_suffix(".new").rename(facts_path)
        report.started()
        report.failed(UsageError("said too late: nobody hears it"))
    elif behaviour == "fails":
        report.failed(UsageError("wrong " + "x" * 200_000))
    elif behaviour == "is killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif behaviour == "has a bug":
        raise ZeroDivisionError


def _refuse_the_second(fork: Callable[[], int]) -> Callable[[], int]:
    forks: list[int] = []

    def refuse() -> int:
        forks.append(1)
        if len(forks) == 2:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return fork()

    return refuse


def _interrupt_the_group(setsid: Callable[[], None]) -> Callable[[], None]:
    """Be interrupted as by Ctrl-C in the last moment in which the terminal reaches the daemon."""

    def interrupt() -> None:
        os.killpg(0, signal.SIGINT)
        setsid()

    return interrupt


def main() -> None:
    """Run."""
    if sys.argv[1] == "is interrupted":
        os.setsid = _interrupt_the_group(os.setsid)
    if sys.argv[1] == "cannot fork":
        os.fork = _refuse_the_second(os.fork)
    preserved = os.open(os.devnull, os.O_RDONLY)
    os.open(os.devnull, os.O_RDONLY)  # not preserved
    try:
        daemon.detach(
            _daemon, working_directory=sys.argv[2], preserve_fds=[preserved], is_start=True
        )
    except ShimError as error:
        print(json.dumps([error.exit_status, str(error)]))
    else:
        print(json.dumps(None))


if __name__ == "__main__":
    main()
