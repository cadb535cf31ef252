"""Detach from the caller with python-daemon, and report to the caller.

Never under systemd (NOTIFY_SOCKET is set): daemon(7) asks a service not to fork, and systemd
watches the process that it started. Elsewhere `forkshim run --detach` forks. The child becomes a
daemon (own session, no controlling terminal) and supervises. The caller waits on a pipe until the
daemon reports that the container runs, or an error. End of file without a report: the daemon died.
While it waits for a start, INT and TERM to the caller (Ctrl-C) give the start up.
"""

from __future__ import annotations

import json
import os
import select
import signal
from contextlib import suppress

from supervisor.linux import fds, signals, spawn
from supervisor.linux.errors import ShimError, StoppedError
from supervisor.linux.exit_status import signal_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import FrameType

UMASK = 0o022

_STARTED = b"started\n"
_MOST_BYTES = 65536


class StartReport:
    """The daemon's one report to its caller. Owns the write end of the pipe."""

    def __init__(self, wfd: fds.Fd) -> None:
        """Take ownership of the write end."""
        self._wfd = wfd

    def ready(self) -> None:
        """Tell the caller which process this is: a stop signal to the caller is passed on to it."""
        self._write(b"%d\n" % os.getpid())

    def started(self) -> None:
        """Report that the container runs."""
        self._say(_STARTED)

    def failed(self, error: ShimError) -> None:
        """Report why the container does not run."""
        self._say(json.dumps([error.exit_status, str(error)]).encode())

    def _say(self, message: bytes) -> None:
        if self._wfd.is_open:
            self._write(message)
            self._wfd.close()

    def _write(self, message: bytes) -> None:
        with suppress(BrokenPipeError):  # the caller was killed while it waited
            os.write(self._wfd.fileno(), message)


class DetachError(ShimError):
    """The process cannot become a daemon: the machine refused a fork(2) or a descriptor."""

    exit_status = 71  # OSERR of systemd-analyze exit-status


class DetachedError(ShimError):
    """The error that the daemon reported, raised in its caller with the daemon's exit status."""

    def __init__(self, exit_status: int, message: str) -> None:
        """Take the status and the message from the report."""
        super().__init__(message)
        self.exit_status = exit_status


class _Wait:
    """The caller's wait for the report. Owns a pidfd of the daemon.

    Attributes:
        stop_signal: The last one that this process has got; 0 for none.
        has_daemon: Whether the daemon has told which process it is.
    """

    def __init__(self, rfd: fds.Fd) -> None:
        """Borrow the read end of the pipe."""
        self._rfd = rfd
        self._daemon = fds.Fd(-1)
        self.stop_signal = 0
        self.has_daemon = False

    def pass_on(self, signum: int, _frame: FrameType | None = None) -> None:
        """Send a stop signal to the daemon, now or as soon as it is known."""
        self.stop_signal = signum
        if self._daemon.is_open:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._daemon.fileno(), signum)

    def read(self) -> bytes:
        """Return the report; empty if the daemon died without one."""
        report = b""
        while chunk := os.read(self._rfd.fileno(), _MOST_BYTES):
            report += chunk
            first, newline, rest = report.partition(b"\n")
            if newline and first.isdigit():
                self.has_daemon, report = True, rest
                with suppress(ProcessLookupError):
                    self._daemon = fds.Fd(os.pidfd_open(int(first)))
                if self.stop_signal:
                    self.pass_on(self.stop_signal)
        return report

    def until_dead(self) -> None:
        """Wait for the daemon's end."""
        if self._daemon.is_open:
            poller = select.poll()
            poller.register(self._daemon.fileno(), select.POLLIN)
            poller.poll()

    def close(self) -> None:
        """Close the pidfd."""
        self._daemon.close()


def detach(
    supervise: Callable[[StartReport], None],
    *,
    working_directory: str,
    preserve_fds: Sequence[int],
    is_start: bool = False,
) -> None:
    """Run `supervise` in a daemon, and return when the daemon reports that the container runs.

    Args:
        supervise: Called in the daemon; the daemon ends when it returns.
        working_directory: The daemon's current directory: a state directory.
        preserve_fds: Descriptors that the daemon keeps open, beside the pipe.
        is_start: A stop signal to this process stops what the daemon has begun. Without it such a
            signal ends this process alone.

    Raises:
        DetachedError: The daemon failed, or died before its report.
        StoppedError: A stop signal has come, and the daemon, if there was one, has ended.
    """
    rfd, wfd = fds.pipe(_MOST_BYTES)
    wait = _Wait(rfd)
    # The daemon is reparented. The kernel reaps the process between the daemon and this one.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        spawn.fork_worker(lambda: _be_daemon(supervise, working_directory, preserve_fds, wfd))
        wfd.close()
        for signum in signals.STOP_SIGNALS if is_start else ():
            signal.signal(signum, wait.pass_on)
        signals.release()  # the daemon has its own mask
        report = wait.read()
        for signum in signals.STOP_SIGNALS:  # a second Ctrl-C ends the wait for the daemon's end
            signal.signal(signum, signal.SIG_DFL)
        # Without a daemon: the signal was the terminal's, and has killed what was to become one.
        if wait.stop_signal and (report == _STARTED or not (report or wait.has_daemon)):
            wait.until_dead()
            raise StoppedError(f"stopped by {signal_name(wait.stop_signal)}")
    finally:
        rfd.close()
        wait.close()
    if report == _STARTED:
        return
    if not report:
        raise DetachedError(70, "the supervisor died before the container ran; see shim-log.json")
    exit_status, message = json.loads(report)
    raise DetachedError(exit_status, message)


def _be_daemon(
    supervise: Callable[[StartReport], None],
    working_directory: str,
    preserve_fds: Sequence[int],
    wfd: fds.Fd,
) -> None:
    signals.hold()
    # Imported here: a supervisor in the foreground never needs it.
    from daemon import DaemonContext
    from daemon.daemon import DaemonError

    context = DaemonContext(
        chroot_directory=None,
        working_directory=working_directory,
        umask=UMASK,  # python-daemon's default of 0 would make every new file writable for all
        uid=os.getuid(),
        gid=os.getgid(),
        initgroups=False,
        prevent_core=False,  # RLIMIT_CORE is inherited by the runtime and by the container
        detach_process=True,  # the default looks for init among the parents, and guesses
        files_preserve=[*preserve_fds, wfd.fileno()],  # a new list: python-daemon extends it
        pidfile=None,  # the claim writes supervisor.pid, under its lock
        stdin=None,
        stdout=None,
        stderr=None,
        signal_map={},  # `supervisor.linux.signals` routes signals
    )
    report = StartReport(wfd)
    try:
        context.open()
    except DaemonError as error:  # such as EAGAIN of fork(2)
        report.failed(DetachError(f"detach: {error}"))
        return
    report.ready()
    supervise(report)
