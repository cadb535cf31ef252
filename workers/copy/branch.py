"""A branch: a second way for the bytes of one output, without a byte lost or repeated.

    source --splice--> staging pipe --splice or readv--> sink
    staging pipe --tee--> voice --splice--> out pipe, which another worker reads

The worker of the stream commits TEEING, tees the staging pipe into the empty voice, and commits how
many bytes at the end of the staging pipe the voice has no room for: nearly always none. A successor
that finds TEEING asks how many bytes the voice holds: none, then nothing was teed. The sink gets
only what was teed, and it gets it first. Then the voice moves to the out pipe, and the worker waits
for room there. So the sink never waits for bytes that the branch does not take, but for the next.
"""

from __future__ import annotations

import os

from workers.common.fd_state import pending_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from workers.copy.route import BranchPipes, Progress, Route

TEEING = 1 << 63
"""Instead of a number of bytes: the whole content may have been teed, or nothing."""


def begin_fill(route: Route, progress: Progress) -> None:
    """Prepare for the next bytes. Called before a worker fills the empty staging pipe."""
    flush(route)
    for branch in route.branches:
        progress.set_unteed_bytes(branch.number, TEEING)


def ready_bytes(route: Route, staging: tuple[int, int], progress: Progress) -> int:
    """Return how many bytes of the staging pipe the sink may get; tee the next ones if none."""
    pending = pending_bytes(staging[0])
    if not pending or not route.branches:
        return pending
    unteed = (_tee(route, staging, branch, progress, pending) for branch in route.branches)
    return pending - max(list(unteed))


def _tee(
    route: Route, staging: tuple[int, int], branch: BranchPipes, progress: Progress, pending: int
) -> int:
    """Return how many bytes at the end of the staging pipe the branch has still to get."""
    unteed = progress.unteed_bytes(branch.number)
    if unteed < pending:
        return unteed
    if unteed != TEEING:
        _flush(branch)
        progress.set_unteed_bytes(branch.number, TEEING)
    if route.tee is None:
        raise ValueError("a branch needs tee(2)")
    teed = pending_bytes(branch.voice[0]) or route.tee(staging[0], branch.voice[1], pending)
    unteed = max(0, pending - teed)
    progress.set_unteed_bytes(branch.number, unteed)
    return unteed


def flush(route: Route) -> None:
    """Move what was teed to the branches, and wait for room there."""
    for branch in route.branches:
        _flush(branch)


def _flush(branch: BranchPipes) -> None:
    voice_rfd = branch.voice[0]
    while pending := pending_bytes(voice_rfd):
        try:
            os.splice(voice_rfd, branch.out_wfd, pending)
        except BrokenPipeError:  # the branch has ended
            os.read(voice_rfd, pending)
