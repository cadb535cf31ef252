"""`forkshim attach`: copies a running container's output from now on, until its end or Ctrl-C.

The attach client makes two fifos in the container's state directory and reads them, see
`supervisor.io.attach.hub`. The container and its workers never wait for it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import time

from supervisor.handover import discover
from supervisor.io.attach.hub import ASKING, NOTHING_TO_HEAR, REJECTED
from supervisor.linux import fds, paths
from supervisor.linux.errors import ShimError, reason_of_access
from supervisor.state import trust
from supervisor.state.claim import PID_NAME
from supervisor.state.container_id import check_id
from supervisor.state.directory import EXIT_STATUS_NAME

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_CHUNK_BYTES = 1 << 20
_STDOUT, _STDERR = 1, 2
_LOOK_MS = 200
_LONGEST_WAIT_S = 15.0
"""For the supervisor's answer. It comes at once; a stopped supervisor never answers."""
_LONGEST_PID = 20
_NO_ANSWER = "its supervisor does not answer"


def attach(container_id: str, root: str) -> int:
    """Copy the container's stdout and stderr to this process's until both end. Returns 0.

    A signal, or a closed stdout, ends this command with 0, too. The container does not notice.

    Raises:
        ShimError: The container does not run or has no output to attach to; or its supervisor
            rejects this client or does not answer.
    """
    check_id(container_id)
    state_dir = os.path.join(paths.absolute(root), container_id, "init")
    try:
        directory = trust.open_directory(state_dir)
        os.fchdir(directory.fileno())
        directory.close()
    except OSError as error:
        raise ShimError(f"nothing to attach to: {state_dir}: {reason_of_access(error)}") from error
    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, _interrupted)
    with contextlib.suppress(KeyboardInterrupt), _fifos() as sources:
        _request(sources)
        _copy(sources)
    return 0


def _name(stream: str) -> str:
    return f"attach.{os.getpid()}.{stream}"


def _interrupted(_signum: int, _frame: object) -> None:
    raise KeyboardInterrupt


@contextlib.contextmanager
def _fifos() -> Iterator[dict[str, fds.Fd]]:
    """Make and open a fifo for each stream; remove them at the end."""
    names = {stream: _name(stream) for stream in ("stdout", "stderr")}
    sources: dict[str, fds.Fd] = {}
    try:
        for stream, name in names.items():
            os.mkfifo(name, ASKING)
            sources[stream] = fds.Fd(os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
        yield sources
    finally:
        for name in names.values():
            with contextlib.suppress(OSError):  # ENOENT: removed already, also with its directory
                os.unlink(name)
        for source in sources.values():
            source.close()


def _request(streams: dict[str, fds.Fd]) -> None:
    lines = "".join(f"attach {stream} {_name(stream)}\n" for stream in streams)
    try:
        control = fds.Fd(os.open("control", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError as error:
        gone = error.errno in (errno.ENXIO, errno.ENOENT)
        why = _why_not() if gone else f"control: {reason_of_access(error)}"
        raise ShimError(f"nothing to attach to: {why}") from error
    try:
        os.write(control.fileno(), lines.encode())  # one write(2) is atomic: PIPE_BUF in pipe(7)
    except BlockingIOError as error:  # full: the supervisor reads nothing
        raise ShimError(_NO_ANSWER) from error
    except BrokenPipeError as error:
        raise ShimError(f"nothing to attach to: {_why_not()}") from error
    finally:
        control.close()


def _copy(sources: dict[str, fds.Fd]) -> None:
    """Copy to end of file, or until stdout or stderr has no reader.

    It looks every 200 ms until the supervisor has answered for each stream: no event tells that an
    answer will not come.
    """
    sinks = {sources["stdout"].fileno(): _STDOUT, sources["stderr"].fileno(): _STDERR}
    streams = {source.fileno(): stream for stream, source in sources.items()}
    asking, empty = set(sinks), set()
    deadline_s = time.monotonic() + _LONGEST_WAIT_S
    poller = select.poll()
    for fd in sinks:
        poller.register(fd, select.POLLIN)
    while sinks:
        came = {fd for fd, _events in poller.poll(_LOOK_MS if asking else None)}
        for fd in came | asking:
            # Before the read: the supervisor may accept the client between the two.
            was_asking = _mode(fd) == ASKING
            chunk = _read(fd)
            if chunk == b"" and was_asking and fd not in came:
                continue
            asking.discard(fd)
            if chunk == b"":
                mode = _mode(fd)
                if mode == REJECTED:
                    raise ShimError(f"attach to {streams[fd]}: rejected, the log says why")
                if mode == NOTHING_TO_HEAR:
                    empty.add(fd)
                poller.unregister(fd)
                del sinks[fd]
            elif chunk and not _write(sinks[fd], chunk):
                return
        if asking:
            _check_for_answer(deadline_s)
    if len(empty) == len(streams):
        raise ShimError("nothing to attach to: its outputs go to null, or have ended")


def _mode(fd: int) -> int:
    return os.fstat(fd).st_mode & 0o777


def _read(fd: int) -> bytes | None:
    """Return the pending bytes. Without any: None if the fifo has a writer, b"" if it has none."""
    try:
        return os.read(fd, _CHUNK_BYTES)
    except BlockingIOError:
        return None


def _check_for_answer(deadline_s: float) -> None:
    """Check that the supervisor can still answer.

    Raises:
        ShimError: It cannot; the message has the reason.
    """
    if os.path.lexists(EXIT_STATUS_NAME) or not os.path.lexists("control") or not _is_supervised():
        raise ShimError(f"nothing to attach to: {_why_not()}")
    if time.monotonic() > deadline_s:
        raise ShimError(_NO_ANSWER)


def _why_not() -> str:
    if os.path.lexists(EXIT_STATUS_NAME) or not os.path.lexists("control"):
        return "the container has ended"
    why_not = discover.why_not(os.getcwd())
    return (
        f"no supervisor, and {why_not}" if why_not else "no supervisor: `forkshim adopt` starts one"
    )


def _is_supervised() -> bool:
    """Return whether the process of supervisor.pid has the container's directory open.

    A supervisor locks that directory as long as it lives.
    """
    try:
        directory = os.path.dirname(os.getcwd())
        with open(os.path.join(directory, PID_NAME), "rb", opener=fds.open_without_waiting) as file:
            fd_dir = f"/proc/{int(file.read(_LONGEST_PID))}/fd"
        for name in os.listdir(fd_dir):
            with contextlib.suppress(FileNotFoundError):
                if os.readlink(f"{fd_dir}/{name}") == directory:
                    return True
    except (OSError, ValueError):  # no such process, or it is starting or ending
        return False
    return False


def _write(fd: int, content: bytes) -> bool:
    """Write all of `content`. Return False if `fd` has no reader any more."""
    rest = memoryview(content)
    while rest:
        try:
            rest = rest[os.write(fd, rest) :]
        except BlockingIOError:
            poller = select.poll()
            poller.register(fd, select.POLLOUT)
            poller.poll()
        except BrokenPipeError:
            return False
    return True
