"""Copies bytes from one descriptor to another until end of file.

The first choice is splice(2): the bytes never enter this process. A worker that is killed at any
instant loses no byte and repeats none. Its successor continues, because the kernel has every byte.

From pipe to pipe the copy is direct. Between all other files it goes through the staging pipe, for
the reason in `workers.copy.staging`.

Where the kernel refuses splice (EINVAL: O_APPEND files, some devices), the worker uses read(2) and
write(2). A kill may then lose what the staging pipe held.

Descriptors are blocking, as a rule. A descriptor that came non-blocking from outside (a shell's
stdin) is polled: its flags are shared with other processes, so a worker must not change them.
"""

from __future__ import annotations

import errno
import os
import select

from workers.common import fd_state, position
from workers.copy import branch, staging
from workers.copy.route import SPLICE_BYTES, CopyError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from workers.copy.route import Progress, Route

_SINK_ERRNOS = frozenset({errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ECONNRESET})
"""splice(2) does not report which side failed. These errors come only from the sink."""


def copy(route: Route, progress: Progress) -> None:
    """Copy to end of file. Report the bytes in flight and in the sink to `progress`.

    Raises:
        CopyError: A side failed for good. The rest is in the source or in the staging pipe.
    """
    if route.staging is None:
        _splice_to_end(route, progress)
    else:
        _copy_through_staging(route, route.staging, progress)


def _splice_to_end(route: Route, progress: Progress) -> None:
    batching = route.batching()
    while True:
        try:
            moved = os.splice(route.source_fd, route.sink_fd, SPLICE_BYTES)
        except BlockingIOError:
            # EAGAIN does not tell which side. When both are ready, the next splice(2) moves bytes.
            fd_state.wait_for(route.source_fd, select.POLLIN)
            fd_state.wait_for(route.sink_fd, select.POLLOUT)
            continue
        except OSError as error:
            raise CopyError(error, "sink" if error.errno in _SINK_ERRNOS else "") from error
        if moved == 0:
            return
        progress.add_copied(moved)
        if moved < batching.seen_below_bytes:
            batching.record(moved)
            batching.pause_when_due()


def _copy_through_staging(route: Route, pipe: tuple[int, int], progress: Progress) -> None:
    readable = select.poll()
    readable.register(route.source_fd, select.POLLIN)
    batching = route.batching()
    to_position = position.make_positioner(route.sink_fd, is_log=route.sink_is_log)
    staging.tee_to_clients(route, pipe, progress)
    while True:
        # First the content of the pipe: in the first round a killed worker may have left some.
        staging.empty(route, pipe, progress, to_position)
        branch.flush(route)
        batching.pause_when_due()
        readable.poll()
        try:
            moved = staging.fill(route, pipe, progress)
        except BlockingIOError:
            continue
        if moved == 0:
            return
        batching.record(moved)
