"""A supervisor that goes on where another one was: after a reload, or after that one was killed.

Also the dry run of a reload, in a child: it restores all from copies, and serves nothing.
"""

from __future__ import annotations

import os
import time
from contextlib import ExitStack

from supervisor.container.restore import place_of
from supervisor.frontends.conmon import monitor
from supervisor.frontends.conmon.bundle_files import STATE_NAME, BundleFiles, open_log
from supervisor.frontends.conmon.engine import Engine
from supervisor.frontends.conmon.guardian import blind
from supervisor.frontends.conmon.guardian.exit_command import leave
from supervisor.frontends.conmon.guardian.link import GuardianLink
from supervisor.handover import discover, reexec, successor
from supervisor.handover.manager import Leftovers
from supervisor.handover.own_command import is_handed_over, own_command
from supervisor.linux import fds
from supervisor.linux.errors import ShimError, describe_calls
from supervisor.oci.engine_call import EngineCall
from supervisor.state.directory import StateDirectory
from supervisor.state.fd_store import FdStore, FdStoreError
from supervisor.state.log import Log
from workers.common.records import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from supervisor.container.restore import Place
    from supervisor.frontends.conmon.options import LogTarget, Options
    from supervisor.state.fd_store import FdReader

_SHORT_LIFE_S, _PAUSE_S = 0.5, 1.0


def go_on(options: Options, targets: Sequence[LogTarget]) -> int:
    """Supervise the container to its end; returns the exit status, as `monitor.supervise`.

    A dry run ends this process instead.

    Raises:
        ShimError: What the supervisor before a reload had cannot be used.
    """
    if is_handed_over():
        return _reloaded(options, targets)
    link = GuardianLink.arrive()
    with ExitStack() as stack:
        stack.callback(link.close)
        state_dir = StateDirectory.open(os.path.join(options.bundle_path, STATE_NAME))
        stack.callback(state_dir.close)
        log = open_log(state_dir, options)
        stack.callback(log.close)
        if not _is_too_often(link, log):
            try:
                return _adopted(options, targets, link, stack)
            except ShimError as error:
                log.error(f"not adopted: {error}")
            except Exception as error:
                log.error(describe_calls(error))
                raise
        return _over(link, blind.wait(options, options.bundle_path, link, log, state_dir))


def _over(link: GuardianLink, status: int) -> int:
    link.over(status)
    return status


def _is_too_often(link: GuardianLink, log: Log) -> bool:
    """Tell the guardian of this start, and wait if there were others lately."""
    now_s, limit = time.monotonic(), successor.limit(os.environ)
    starts = [at_s for at_s in link.starts if now_s - at_s < successor.WINDOW_S]
    link.started([*starts, now_s])
    log.warning(f"supervisor was killed, or has failed; successor {len(starts) + 1} goes on")
    if len(starts) >= limit:
        log.warning(
            f"{limit} successors in {successor.WINDOW_S:g} s have not lasted: the log goes on, "
            "and the exit files are written at the end"
        )
        return True
    if starts and now_s - starts[-1] < _SHORT_LIFE_S:
        time.sleep(_PAUSE_S)  # nothing is adopted yet, so there is no event that could end this
    return False


def _adopted(
    options: Options, targets: Sequence[LogTarget], link: GuardianLink, stack: ExitStack
) -> int:
    """Adopt the container that the guardian's store has.

    Raises:
        ShimError: It cannot be adopted.
    """
    outer = link.store.look()
    stack.callback(outer.close)
    try:
        front, back = (outer.take(end).take() for end in outer.document["ends"])
        store = FdStore(ends=(front, back))
        contents = store.look()
        counters = contents.inode(contents.document["container"]["stream_set"]["counters"])
        packed = outer.document["front_end"]
    except (KeyError, TypeError, ValueError) as error:
        raise FdStoreError(f"handover: {type(error).__name__}: {error}") from error
    left = Leftovers(store, discover.workers_with(str(counters), options.cid), [])
    made, place = _restored(options, targets, link, (packed, outer), contents, left, stack)
    return leave(options, made.engine, link, made.go_on(place))


def _reloaded(options: Options, targets: Sequence[LogTarget]) -> int:
    arrival = reexec.arrive()
    if arrival is None:
        raise AssertionError("nothing was handed over")
    with ExitStack() as stack:
        stack.callback(arrival.contents.close)
        try:
            packed = arrival.contents.document["front_end"]
            link = GuardianLink.restore(packed["link"], arrival.contents)
        except (KeyError, TypeError, ValueError) as error:
            raise FdStoreError(f"handover: {type(error).__name__}: {error}") from error
        stack.callback(link.close)
        (contents,) = arrival.containers
        front_end = (packed, arrival.contents)
        made, place = _restored(
            options, targets, link, front_end, contents, None, stack, is_dry=arrival.is_rehearsal
        )
        if arrival.is_rehearsal:
            reexec.try_a_worker(place.log, f"forkshim: {options.cid}")
            reexec.end_rehearsal()
        return leave(options, made.engine, link, made.go_on(place))


def _restored(
    options: Options,
    targets: Sequence[LogTarget],
    link: GuardianLink,
    front_end: tuple[Mapping[str, Any], FdReader],
    contents: FdReader,
    leftovers: Leftovers | None,
    stack: ExitStack,
    *,
    is_dry: bool = False,
) -> tuple[monitor.Monitor, Place]:
    """Return the monitor with the container, which is not served yet."""

    def log_of(state_dir: StateDirectory) -> Log:
        return Log(fds.Fd(os.dup(2))) if is_dry else open_log(state_dir, options)

    environment, (packed, of_front_end) = dict(os.environ), front_end
    place = place_of(
        contents, environment, stack, log_of, command=own_command(), leftovers=leftovers
    )
    try:
        engine = Engine.restore(options, environment, packed["engine"], of_front_end)
        files = BundleFiles(options.bundle_path)
        made = monitor.Monitor(options, targets, engine, place.log, place.state_dir, files, link)
        call = EngineCall(lambda _console: [], "", environment)  # the creation is over
        spec = replace(place.request.spec, engine_call=call)
        place = replace(place, request=replace(place.request, spec=spec, origin=made.origin()))
        made.restore(packed, of_front_end, place, stack)
    except (KeyError, TypeError, ValueError) as error:
        raise FdStoreError(f"handover: {type(error).__name__}: {error}") from error
    return made, place
