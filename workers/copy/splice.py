"""Moving bytes from one descriptor to another until end of file.

The first choice is splice(2): the bytes never enter this process, so a worker that is killed at
any instant loses none and repeats none; its successor goes on where the kernel stands.

Directly from pipe to pipe, and only so. Between a pipe and anything else, splice(2) holds the
pipe's lock while it sleeps in the other file (seen in Linux 6.18: splice_file_to_pipe,
iter_file_splice_write), and whoever then reads, writes or asks FIONREAD of that pipe sleeps
with it, uninterruptibly: a client on a silent console could not even be killed. So there the bytes
take a detour through a staging pipe that nobody else touches, and a source that is no pipe is only
spliced when poll(2) has said that it will not sleep. *The parent owns* the staging pipe: what a
killed worker leaves in it is what its successor moves first.

Where the kernel refuses splice
(EINVAL: O_APPEND files, some devices) read(2) and write(2) have to do, and a kill may
then lose what was on its way: what the staging pipe held.

Blocking descriptors are the rule. One that came non-blocking from outside (a shell's stdin) is
waited for with poll(2): its flags are shared with strangers and not ours to change.
"""

from __future__ import annotations

import array
import errno
import fcntl
import os
import select
import stat
import termios

from workers.common import position
from workers.common.records import dataclass
from workers.copy.batching import SMALL_BYTES, Batching

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    class Tally(Protocol):
        """What a copy tells of its progress; see `workers.process.counters`."""

        def add_copied(self, copied_bytes: int) -> None:
            """So many bytes have reached the sink."""

        def set_in_flight(self, in_flight_bytes: int) -> None:
            """So many bytes are between source and sink now."""

        @property
        def is_teed(self) -> bool:
            """Whether the listeners have heard what is in the staging pipe."""

        def set_teed(self, *, is_teed: bool) -> None:
            """They have, or something else comes."""

        def add_skipped(self, client: int, skipped_bytes: int) -> None:
            """So many bytes came too fast for a listener."""


SPLICE_BYTES = 1 << 20
CHUNK_BYTES = 1 << 16
_TTY_BYTES = 1 << 12


@dataclass(frozen=True, slots=True)
class Route:
    """Descriptors of one copy, all borrowed.

    `staging` is the (read, write) pair of the parent's pipe, or None where both sides are pipes and
    nobody listens.
    `source_is_console`: EIO from it is end of file, since nobody has the terminal open (pty(7)).
    `sink_is_log`: the sink is a file that may be opened more than once, and grows at its end.
    `listeners`: numbers and pipes of those who hear what has room there, and `tee` to do that.
    `capacity_bytes`: what the source pipe holds; 0 if it is none. As the parent knows it, because
    F_GETPIPE_SZ takes the pipe's lock: a worker that waits in poll(2) can be killed at least.
    """

    source_fd: int
    sink_fd: int
    staging: tuple[int, int] | None = None
    source_is_console: bool = False
    sink_is_log: bool = False
    attach_clients: tuple[tuple[int, int], ...] = ()
    tee: Callable[[int, int, int], int] | None = None
    capacity_bytes: int = 0

    @property
    def fds(self) -> tuple[int, ...]:
        """Every descriptor that the copy needs."""
        return (self.source_fd, self.sink_fd, *self.source_fds[1:])

    @property
    def source_fds(self) -> tuple[int, ...]:
        """Those that are needed although the sink is another one."""
        return (self.source_fd, *(self.staging or ()), *(fd for _number, fd in self.attach_clients))


class CopyError(Exception):
    """The copy cannot go on; `errno` as the kernel gave it, `side` "source", "sink" or ""."""

    def __init__(self, error: OSError, side: str) -> None:
        """Keep the errno: only a report leaves this process."""
        super().__init__(error.strerror)
        self.errno = error.errno or 0
        self.side = side


def make_batching(
    route: Route, most_bytes: int = SPLICE_BYTES, small_bytes: int = SMALL_BYTES
) -> Batching:
    """Return the batching for a copy that takes `most_bytes` at once; below `small_bytes` is small.

    A console, on either side, gets no pauses: a person types there. Nor is
    there one for stdin, which goes by `workers.copy.stdin`: whatever comes, the container waits for
    it.
    """
    is_console = route.source_is_console or os.isatty(route.sink_fd)
    capacity_bytes = 0 if is_console else min(route.capacity_bytes, most_bytes)
    return Batching(capacity_bytes, small_bytes=small_bytes)


def copy(route: Route, tally: Tally) -> None:
    """Copy to end of file, telling `tally` what has left the source and what has reached the sink.

    Raises:
        CopyError: A side failed for good. What was not copied is still in the source or staging.
    """
    if route.staging is None:
        _splice_to_end(route, tally)
    else:
        _copy_through_staging(route, route.staging, tally)


def _splice_to_end(route: Route, tally: Tally) -> None:
    batching = make_batching(route)
    while True:
        try:
            moved = os.splice(route.source_fd, route.sink_fd, SPLICE_BYTES)
        except BlockingIOError:
            _wait_until_ready(route.source_fd, route.sink_fd)
            continue
        except OSError as error:
            raise CopyError(error, "sink" if error.errno in _SINK_ERRNOS else "") from error
        if moved == 0:
            return
        tally.add_copied(moved)
        if moved < batching.seen_below_bytes:
            batching.record(moved)
            batching.pause_when_due()


def _copy_through_staging(route: Route, staging: tuple[int, int], tally: Tally) -> None:
    readable = select.poll()
    readable.register(route.source_fd, select.POLLIN)
    batching = make_batching(route)
    to_position = position.make_positioner(route.sink_fd, is_log=route.sink_is_log)
    tee_to_clients(route, staging, tally)
    while True:
        # First what is in there: on the first round a killed predecessor may have left it.
        empty_staging(route, staging, tally, to_position)
        batching.pause_when_due()
        readable.poll()
        try:
            moved = fill_staging(route, staging, tally)
        except BlockingIOError:
            continue
        if moved == 0:
            return
        batching.record(moved)


def fill_staging(
    route: Route, staging: tuple[int, int], tally: Tally, limit_bytes: int = SPLICE_BYTES
) -> int:
    """Move what the readable source has into the empty staging pipe; 0 is end of file.

    At most `limit_bytes`, which is not less than CHUNK_BYTES.

    Raises:
        BlockingIOError: The source had nothing after all.
        CopyError: The source failed.
    """
    # Before they move: a supervisor that looks at the empty source must not think us idle.
    tally.set_in_flight(1)
    if route.attach_clients:
        tally.set_teed(is_teed=False)
    moved = 0
    try:
        moved = _fill(route, staging, limit_bytes)
    finally:
        tally.set_in_flight(moved)
    tee_to_clients(route, staging, tally)
    return moved


def tee_to_clients(route: Route, staging: tuple[int, int], tally: Tally) -> None:
    """Let the listeners hear what is in the staging pipe, if they have not; none is waited for.

    A worker that is killed amidst this has some of it heard twice.
    """
    if route.tee is None or not route.attach_clients or tally.is_teed:
        return
    pending = pending_bytes(staging[0])
    for number, fd in route.attach_clients:
        try:
            delivered = route.tee(staging[0], fd, pending) if pending else 0
        except BlockingIOError:
            delivered = 0
        except BrokenPipeError:  # who has left misses nothing
            continue
        if delivered < pending:
            tally.add_skipped(number, pending - delivered)
    tally.set_teed(is_teed=True)


def _fill(route: Route, staging: tuple[int, int], limit_bytes: int) -> int:
    try:
        moved = os.splice(route.source_fd, staging[1], limit_bytes, flags=os.SPLICE_F_NONBLOCK)
        return _fill_up(route, staging, moved) if route.source_is_console else moved
    except BlockingIOError:
        raise
    except OSError as error:
        if _is_console_end(route, error):
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
    """Add what a console has beside the first `moved` bytes: it gives 4095 at a time (tty_read).

    Whatever ends it (EIO: nobody has the terminal open) is met again by whoever asks next.
    """
    readable = select.poll()
    readable.register(route.source_fd, select.POLLIN)
    while 0 < moved <= CHUNK_BYTES - _TTY_BYTES and readable.poll(0):
        try:
            more = os.splice(route.source_fd, staging[1], _TTY_BYTES, flags=os.SPLICE_F_NONBLOCK)
        except OSError:
            break
        if more == 0:
            break
        moved += more
    return moved


def empty_staging(
    route: Route,
    staging: tuple[int, int],
    tally: Tally,
    to_position: Callable[[], object] = lambda: None,
) -> None:
    """Move what the staging pipe holds to the sink, waiting for room.

    `to_position` is called before each move, see `workers.common.position`.

    Raises:
        CopyError: The sink failed; the rest is still in the staging pipe.
    """
    while pending := pending_bytes(staging[0]):
        tally.set_in_flight(pending)
        to_position()
        try:
            tally.add_copied(os.splice(staging[0], route.sink_fd, pending))
        except BlockingIOError:
            _poll_one(route.sink_fd, select.POLLOUT)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise CopyError(error, "sink") from error
            _write_staging(route.sink_fd, staging, pending, tally)
    tally.set_in_flight(0)


def _write_staging(sink_fd: int, staging: tuple[int, int], pending: int, tally: Tally) -> None:
    """Write all that the staging pipe holds with write(2); on an error put the rest back.

    All of it, so that the pipe is empty then, and the rest is again first in line.
    """
    rest = memoryview(os.read(staging[0], pending))
    while rest:
        try:
            written = os.write(sink_fd, rest)
        except BlockingIOError:
            _poll_one(sink_fd, select.POLLOUT)
            continue
        except OSError as error:
            os.write(staging[1], rest)
            raise CopyError(error, "sink") from error
        tally.add_copied(written)
        rest = rest[written:]


_SINK_ERRNOS = frozenset({errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ECONNRESET})
"""splice(2) does not say which side failed; these can only come from writing."""


def _is_console_end(route: Route, error: OSError) -> bool:
    return route.source_is_console and error.errno == errno.EIO


def is_lossy(fd: int) -> bool:
    """Say whether splice(2) into `fd`, which poll(2) finds writable, takes what fits and no more.

    True for pipes, by SPLICE_F_NONBLOCK, for sockets that are non-blocking, and for files.
    """
    mode = os.fstat(fd).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)


def pending_bytes(fd: int) -> int:
    """Return how many bytes a pipe holds (FIONREAD in pipe(7))."""
    count = array.array("i", [0])
    fcntl.ioctl(fd, termios.FIONREAD, count)
    return count[0]


def _wait_until_ready(source_fd: int, sink_fd: int) -> None:
    # EAGAIN does not say whose: when both are ready, the next splice moves at least one byte.
    _poll_one(source_fd, select.POLLIN)
    _poll_one(sink_fd, select.POLLOUT)


def _poll_one(fd: int, events: int) -> None:
    poller = select.poll()
    poller.register(fd, events)
    poller.poll()
