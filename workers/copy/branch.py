"""A branch: copies one output to a second worker, without a byte lost or repeated.

    source --splice--> staging pipe --splice or readv--> sink
    staging pipe --tee--> tee_pipe --splice--> out pipe, which another worker reads

The worker of the stream commits TEEING and tees the staging pipe into the empty tee pipe. It then
commits how many bytes at the end of the staging pipe had no room there: nearly always 0. A
successor that finds TEEING looks at the tee pipe: if it is empty, nothing was teed.

The sink gets only bytes that were teed, and gets them first. Then the worker moves the tee pipe's
content to the out pipe, and waits for room there. So a slow branch delays the sink's next bytes
only.
"""

from __future__ import annotations

import os

from workers.common.fd_state import pending_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from workers.copy.route import BranchPipes, Progress, Route

TEEING = 1 << 63
"""In place of a number of bytes: a tee(2) has begun. All may have been teed, or nothing."""


def begin_fill(route: Route, progress: Progress) -> None:
    """Prepare for the next bytes. Called before a worker fills the empty staging pipe."""
    flush(route)
    for branch in route.branches:
        progress.set_unteed_bytes(branch.number, TEEING)


def ready_bytes(route: Route, staging: tuple[int, int], progress: Progress) -> int:
    """Return how many bytes of the staging pipe the sink may get. Tee more if there are none."""
    pending = pending_bytes(staging[0])
    if not pending or not route.branches:
        return pending
    unteed = (_tee(route, staging, branch, progress, pending) for branch in route.branches)
    return pending - max(list(unteed))


def _tee(
    route: Route, staging: tuple[int, int], branch: BranchPipes, progress: Progress, pending: int
) -> int:
    """Return how many bytes at the end of the staging pipe were not teed yet."""
    unteed = progress.unteed_bytes(branch.number)
    if unteed < pending:
        return unteed
    if unteed != TEEING:
        _flush(branch)
        progress.set_unteed_bytes(branch.number, TEEING)
    if route.tee is None:
        raise ValueError("a branch needs tee(2)")
    teed = pending_bytes(branch.tee_pipe[0]) or route.tee(staging[0], branch.tee_pipe[1], pending)
    unteed = max(0, pending - teed)
    progress.set_unteed_bytes(branch.number, unteed)
    return unteed


def flush(route: Route) -> None:
    """Move the content of the tee pipes to the branches, and wait for room there."""
    for branch in route.branches:
        _flush(branch)


def _flush(branch: BranchPipes) -> None:
    tee_rfd = branch.tee_pipe[0]
    while pending := pending_bytes(tee_rfd):
        try:
            os.splice(tee_rfd, branch.out_wfd, pending)
        except BrokenPipeError:  # the branch has ended
            os.read(tee_rfd, pending)
