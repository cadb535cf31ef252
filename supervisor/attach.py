"""`forkshim attach`: hear what a running container says from now on, to its end or to Ctrl-C.

It owns two fifos in the container's state directory and reads them; see `supervisor.listeners`.
Nobody waits for it, and nothing of the container's depends on it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal

from supervisor import fds
from supervisor.errors import ShimError, reason
from supervisor.ids import check_id

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_CHUNK_BYTES = 1 << 20
_STDOUT, _STDERR = 1, 2


def attach(container_id: str, root: str) -> int:
    """Copy the container's stdout and stderr to ours until both have ended; returns 0.

    Our own end, by a signal or because nobody reads us, is none of the container's business.

    Raises:
        ShimError: It does not run, or has no output that could be heard.
    """
    check_id(container_id)
    state_dir = os.path.join(os.path.abspath(root), container_id, "init")
    try:
        os.chdir(state_dir)
    except OSError as error:
        raise ShimError(f"nothing to attach to: {state_dir}: {reason(error)}") from error
    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, _interrupted)
    with contextlib.suppress(KeyboardInterrupt), _fifos() as sources:
        _tell(sources)
        _copy(sources)
        if all(os.fstat(each.fileno()).st_mode & 0o777 == 0 for each in sources.values()):
            raise ShimError("nothing to attach to: its outputs go nowhere, or the log says why not")
    return 0


def _name(stream: str) -> str:
    return f"attach.{os.getpid()}.{stream}"


def _interrupted(_signum: int, _frame: object) -> None:
    raise KeyboardInterrupt


@contextlib.contextmanager
def _fifos() -> Iterator[dict[str, fds.Fd]]:
    """Make and open a fifo for each stream, and remove them at the end."""
    names = {stream: _name(stream) for stream in ("stdout", "stderr")}
    sources: dict[str, fds.Fd] = {}
    try:
        for stream, name in names.items():
            os.mkfifo(name, 0o600)
            sources[stream] = fds.Fd(os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
        yield sources
    finally:
        for name in names.values():
            with contextlib.suppress(OSError):  # the directory may be gone, too
                os.unlink(name)
        for source in sources.values():
            source.close()


def _tell(streams: dict[str, fds.Fd]) -> None:
    lines = "".join(f"attach {stream} {_name(stream)}\n" for stream in streams)
    try:
        control = fds.Fd(os.open("control", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError as error:
        gone = error.errno == errno.ENXIO
        why = "no supervisor: `forkshim adopt` brings one" if gone else f"control: {reason(error)}"
        raise ShimError(f"nothing to attach to: {why}") from error
    try:
        os.write(control.fileno(), lines.encode())  # one write(2), which is not torn: pipe(7)
    finally:
        control.close()


def _copy(sources: dict[str, fds.Fd]) -> None:
    """Copy to end of file, or until nobody reads us any more."""
    sinks = {sources["stdout"].fileno(): _STDOUT, sources["stderr"].fileno(): _STDERR}
    poller = select.poll()
    for fd in sinks:
        poller.register(fd, select.POLLIN)
    while sinks:
        for fd, _events in poller.poll():
            try:
                chunk = os.read(fd, _CHUNK_BYTES)
            except BlockingIOError:
                continue
            if not chunk:
                poller.unregister(fd)
                del sinks[fd]
                continue
            if not _write(sinks[fd], chunk):
                return


def _write(fd: int, content: bytes) -> bool:
    """Write all of it; False if nobody reads us any more."""
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
