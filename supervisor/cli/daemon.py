"""Detaching from the caller with python-daemon, and telling the caller how it went.

Never under systemd (NOTIFY_SOCKET is set): daemon(7) asks a service not to fork away, systemd
watches the process that it started. Elsewhere `forkshim run --detach` forks, the child becomes a
daemon (own session, no controlling terminal) and supervises; the caller waits until
the container runs, or until the daemon has said why not. End of file without a word: it died.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress

import orjson

from supervisor.linux import fds, signals, spawn
from supervisor.linux.errors import ShimError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

UMASK = 0o022

_STARTED = b"started\n"
_MOST_BYTES = 65536


class Herald:
    """The daemon's way to its caller: one word, then nothing. Owns the pipe's write end."""

    def __init__(self, wfd: fds.Fd) -> None:
        """Take the pipe."""
        self._wfd = wfd

    def started(self) -> None:
        """Say that the container runs."""
        self._say(_STARTED)

    def failed(self, error: ShimError) -> None:
        """Say why it does not."""
        self._say(orjson.dumps([error.exit_status, str(error)]))

    def _say(self, message: bytes) -> None:
        if self._wfd.is_open:
            with suppress(BrokenPipeError):  # the caller was killed while it waited
                os.write(self._wfd.fileno(), message)
            self._wfd.close()


class DetachError(ShimError):
    """There is no daemon: the machine refuses what it takes to become one."""

    exit_status = 71  # OSERR of systemd-analyze exit-status


class DetachedError(ShimError):
    """The daemon's error, in its caller; with the daemon's exit status."""

    def __init__(self, exit_status: int, message: str) -> None:
        """Take over what the daemon said."""
        super().__init__(message)
        self.exit_status = exit_status


def detach(
    supervise: Callable[[Herald], None], *, working_directory: str, preserve_fds: Sequence[int]
) -> None:
    """Run `supervise` in a daemon, and return when it has said that the container runs.

    Args:
        supervise: Called in the daemon; the daemon ends when it returns.
        working_directory: The daemon's; a state directory.
        preserve_fds: What the daemon keeps open, beside the pipe to us.

    Raises:
        DetachedError: The daemon failed, or died before it said anything.
    """
    rfd, wfd = fds.pipe(_MOST_BYTES)
    # The daemon is nobody's child, but the process between it and us has to be reaped.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        spawn.fork_worker(lambda: _be_daemon(supervise, working_directory, preserve_fds, wfd))
        wfd.close()
        signals.release()  # the daemon's are its own: who waits for it may be stopped
        said = b""
        while chunk := os.read(rfd.fileno(), _MOST_BYTES):
            said += chunk
    finally:
        rfd.close()
    if said == _STARTED:
        return
    if not said:
        raise DetachedError(70, "the supervisor died before the container ran; see shim-log.json")
    exit_status, message = orjson.loads(said)
    raise DetachedError(exit_status, message)


def _be_daemon(
    supervise: Callable[[Herald], None],
    working_directory: str,
    preserve_fds: Sequence[int],
    wfd: fds.Fd,
) -> None:
    # Imported here: only who detaches pays for it.
    from daemon import DaemonContext
    from daemon.daemon import DaemonError

    context = DaemonContext(
        chroot_directory=None,
        working_directory=working_directory,
        umask=UMASK,  # python-daemon's 0 would make every file we create writable for all
        uid=os.getuid(),
        gid=os.getgid(),
        initgroups=False,
        prevent_core=False,  # RLIMIT_CORE is inherited by the runtime and by the container
        detach_process=True,  # the default guesses, by looking for init among the parents
        files_preserve=[*preserve_fds, wfd.fileno()],  # a list of ours: it is extended in place
        pidfile=None,  # supervisor.pid, which follows the lock
        stdin=None,
        stdout=None,
        stderr=None,
        signal_map={},  # `supervisor.linux.signals` routes them
    )
    herald = Herald(wfd)
    try:
        context.open()
    except DaemonError as error:  # its fork(2) was refused, say
        herald.failed(DetachError(f"detach: {error}"))
        return
    supervise(herald)
