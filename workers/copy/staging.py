"""The staging pipe: the supervisor's pipe between a source and a sink that are not both pipes.

Between a pipe and any other file, splice(2) holds the pipe's lock while it sleeps in the other file
(seen in Linux 6.18: splice_file_to_pipe, iter_file_splice_write). A process that then calls
read(2), write(2) or FIONREAD on that pipe sleeps, too, and uninterruptibly: a client of a silent
console could not even be killed. So the bytes go through a pipe that no other process uses. A
source that is not a pipe is spliced only when poll(2) reports that the call will not sleep.

The supervisor owns the staging pipe. The next worker first moves what a killed worker left there.
"""

from __future__ import annotations

import errno
import os
import select
import stat

from workers.common import fd_state
from workers.common.fd_state import pending_bytes
from workers.copy import branch
from workers.copy.route import CHUNK_BYTES, SPLICE_BYTES, CopyError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from workers.copy.route import Progress, Route

_TTY_BYTES = 1 << 12


def fill(
    route: Route, staging: tuple[int, int], progress: Progress, limit_bytes: int = SPLICE_BYTES
) -> int:
    """Move bytes of the readable source into the empty staging pipe, and tee them to the clients.

    Args:
        route: Has the source.
        staging: The staging pipe.
        progress: Gets the number of bytes in flight.
        limit_bytes: The most bytes to move; at least CHUNK_BYTES.

    Returns:
        The number of bytes; 0 at end of file.

    Raises:
        BlockingIOError: The source had no bytes: the event of poll(2) was stale.
        CopyError: The source failed.
    """
    if route.branches:
        branch.begin_fill(route, progress)
    # Before the bytes move: a supervisor that finds an empty source must find bytes in flight.
    progress.set_in_flight(1)
    if route.attach_clients:
        progress.set_teed(is_teed=False)
    moved = 0
    try:
        moved = _fill(route, staging, limit_bytes)
    finally:
        progress.set_in_flight(moved)
    tee_to_clients(route, staging, progress)
    return moved


def tee_to_clients(route: Route, staging: tuple[int, int], progress: Progress) -> None:
    """Tee the content of the staging pipe to the attach clients, once. Never waits for a client.

    A client whose pipe has no room skips the rest. If the worker is killed in this function, its
    successor tees some of the bytes a second time.
    """
    if route.tee is None or not route.attach_clients or progress.is_teed:
        return
    pending = pending_bytes(staging[0])
    for number, fd in route.attach_clients:
        try:
            delivered = route.tee(staging[0], fd, pending) if pending else 0
        except BlockingIOError:
            delivered = 0
        except BrokenPipeError:  # a client that has left skips nothing
            continue
        if delivered < pending:
            progress.add_skipped(number, pending - delivered)
    progress.set_teed(is_teed=True)


def _fill(route: Route, staging: tuple[int, int], limit_bytes: int) -> int:
    try:
        moved = os.splice(route.source_fd, staging[1], limit_bytes, flags=os.SPLICE_F_NONBLOCK)
        return _fill_up(route, staging, moved) if route.source_is_console else moved
    except BlockingIOError:
        raise
    except OSError as error:
        if route.source_is_console and error.errno == errno.EIO:
            return 0
        if error.errno != errno.EINVAL:
            raise CopyError(error, "source") from error
    try:
        return os.write(staging[1], os.read(route.source_fd, CHUNK_BYTES) or b"")
    except BlockingIOError:
        raise
    except OSError as error:
        raise CopyError(error, "source") from error


def _fill_up(route: Route, staging: tuple[int, int], moved: int) -> int:
    """Add more bytes of a console after the first `moved`: it gives 4095 at a time (tty_read).

    An error, such as EIO, ends the loop; the next call meets it again.
    """
    while 0 < moved <= CHUNK_BYTES - _TTY_BYTES and fd_state.is_readable(route.source_fd):
        try:
            more = os.splice(route.source_fd, staging[1], _TTY_BYTES, flags=os.SPLICE_F_NONBLOCK)
        except OSError:
            break
        if more == 0:
            break
        moved += more
    return moved


def empty(
    route: Route,
    staging: tuple[int, int],
    progress: Progress,
    to_position: Callable[[], object] = lambda: None,
) -> None:
    """Move the content of the staging pipe to the sink, waiting for room.

    `to_position` is called before each move, see `workers.common.position`.

    Raises:
        CopyError: The sink failed; the rest stays in the staging pipe.
    """
    most_bytes = _most_at_once(route.sink_fd)
    while pending := branch.ready_bytes(route, staging, progress):
        progress.set_in_flight(pending)
        to_position()
        try:
            progress.add_copied(os.splice(staging[0], route.sink_fd, min(pending, most_bytes)))
        except BlockingIOError:
            fd_state.wait_for(route.sink_fd, select.POLLOUT)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise CopyError(error, "sink") from error
            _write_all(route.sink_fd, staging, pending, progress)
    progress.set_in_flight(0)


def _most_at_once(sink_fd: int) -> int:
    """Return the most bytes of one splice(2) to the sink: fewer if the sink has a reader.

    splice(2) to a socket sleeps until the whole length is sent, and the worker counts nothing until
    then. A journald that needs 5 s for 512 KiB would look like a reader that has left.
    """
    return SPLICE_BYTES if stat.S_ISREG(os.fstat(sink_fd).st_mode) else CHUNK_BYTES


def _write_all(sink_fd: int, staging: tuple[int, int], pending: int, progress: Progress) -> None:
    """Move the whole content with read(2) and write(2). On an error put the rest back.

    It reads the whole content, so that the pipe is empty and the rest comes first again. A stream
    with such a sink gets no branch.
    """
    rest = memoryview(os.read(staging[0], pending))
    while rest:
        try:
            written = os.write(sink_fd, rest)
        except BlockingIOError:
            fd_state.wait_for(sink_fd, select.POLLOUT)
            continue
        except OSError as error:
            os.write(staging[1], rest)
            raise CopyError(error, "sink") from error
        progress.add_copied(written)
        rest = rest[written:]
