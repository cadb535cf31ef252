"""Supervises a container that runs already: by adoption, or after a reload of this process.

An operator asks for an adoption (`forkshim adopt`), or systemd does (it starts `forkshim run
--adopt` again), or the fd holder of a killed daemon does. Each claims the container's lock first.
"""

from __future__ import annotations

import os

from supervisor.cli import daemon, foreground
from supervisor.container.request import Outcome, StartRequest, request_of
from supervisor.handover import discover, reexec, successor
from supervisor.handover.manager import Leftovers
from supervisor.handover.own_command import own_command
from supervisor.linux import signals
from supervisor.linux.errors import ShimError
from supervisor.state import claim, directory
from supervisor.state.container_id import check_id
from supervisor.state.fd_store import FdStore, FdStoreError
from supervisor.systemd import delegation
from supervisor.systemd.notify import SILENT, SOCKET_VARIABLE, Notifier
from workers.common.records import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from supervisor.state.directory import StateDirectory
    from supervisor.state.log import Log


_WHY_NOTHING = "the container has ended, or its supervisor was killed before it ran"


def adopt(container_id: str, root: str, *, detach: bool) -> int:
    """Supervise a container whose supervisor was killed. Returns the exit status, as `run`.

    Raises:
        ShimError: The container has a supervisor, or its fd store is gone.
    """
    command = own_command()
    check_id(container_id)
    kept = discover.take_kept(os.environ)
    signals.block()
    claimed = claim.claim(root, container_id)
    is_stale = claimed.is_stale
    try:
        store = find_store(claimed, kept)
    except ShimError:
        claimed.release()
        raise
    if store is None:
        (claimed.release if is_stale else claimed.remove)()
        raise ShimError("nothing to adopt: " + _WHY_NOTHING)
    return take_over(claimed, store, detach=detach, command=command)


def find_store(claimed: claim.Claim, kept: FdStore | None) -> FdStore | None:
    """Return the fd store of a killed supervisor; None if the container has ended, or never ran.

    `kept`, the store that systemd has passed, is returned or closed.

    Raises:
        FdStoreError: The store is gone or cannot be read. What systemd keeps stays there.
    """
    if not os.path.exists(os.path.join(claimed.state_dir, directory.HANDOVER_NAME)):
        discard_kept(kept)
        return None
    if kept is not None and discover.is_of(kept, claimed.state_dir):
        store = kept
    else:
        discard_kept(kept)
        store = discover.find(claimed.state_dir)
    try:
        discover.look(store, claimed.state_dir).close()
    except FdStoreError:
        store.close()
        raise
    return store


def discard_kept(kept: FdStore | None) -> None:
    """Close the store of an earlier run that systemd has kept, and remove it from systemd."""
    if kept is not None:
        kept.close()
        Notifier(foreground.environment_of_a_main_process()).remove_fds(discover.KEPT_NAMES)


def take_over(
    claimed: claim.Claim, store: FdStore, *, detach: bool, command: tuple[str, ...]
) -> int:
    """Supervise the container of `store`, in the foreground or as a daemon. Returns as `run`.

    Raises:
        ShimError: As `restore.restore`.
    """
    os.chdir(claimed.state_dir)
    if detach and SOCKET_VARIABLE not in os.environ:
        daemon.detach(
            lambda report: _adopt_detached(claimed, store, report, command),
            working_directory=claimed.state_dir,
            preserve_fds=[claimed.lock_fd, *store.fds],
        )
        return 0
    notifier = Notifier(foreground.environment_of_a_main_process())
    try:
        if not delegation.scope_beside_unit(os.environ, ""):
            delegation.enter_unit(os.environ)
    except ShimError as error:
        foreground.say(str(error))
    if foreground.has_controlling_terminal():
        command = ()  # SIGHUP is then the terminal's hang-up, not a reload
    request, supervise_it = _adopter(claimed, store, notifier, command)
    return foreground.supervise_in_foreground(claimed, request, supervise_it, is_restored=True)


def _adopt_detached(
    claimed: claim.Claim, store: FdStore, report: daemon.StartReport, command: tuple[str, ...]
) -> None:
    try:
        request, supervise_it = _adopter(claimed, store, SILENT, command, report.started)
    except ShimError as error:
        report.failed(error)
        return
    failed = foreground.supervise_in_daemon(claimed, request, supervise_it, is_restored=True)
    if failed is not None:
        report.failed(failed)


def _adopter(
    claimed: claim.Claim,
    store: FdStore,
    notifier: Notifier,
    command: tuple[str, ...],
    on_started: Callable[[], None] | None = None,
    *,
    starts: Sequence[float] = (),
) -> tuple[StartRequest, foreground.SuperviseIt]:
    """Return the start request of the killed supervisor, for this process, and its function.

    With `on_started` this process is a daemon. `starts`: see `successor.Succession`.
    """
    from supervisor.container import restore  # not needed by a plain `run`

    is_daemon = on_started is not None
    contents = discover.look(store, claimed.state_dir)
    request = request_of(
        contents.document, notifier=notifier, command=command, environment=dict(os.environ)
    )
    origin = replace(
        request.origin,
        is_daemon=is_daemon,
        starts=tuple(starts),
        write_pid=claimed.write_pid,
        lock_fd=claimed.lock_fd,
        has_job_control=not is_daemon,
        on_started=on_started or request.origin.on_started,
    )
    request = replace(request, origin=origin)

    def supervise_it(log: Log, state_dir: StateDirectory) -> Outcome:
        log.notice(f"adopting, after supervisor {contents.document['pid']}")
        left = discover.workers(claimed.state_dir)
        fd_holders = discover.fd_holders(claimed.state_dir)
        return restore.restore(
            request, log, state_dir, [contents], Leftovers(store, left, fd_holders)
        )

    return request, supervise_it


def run_as_successor() -> int:
    """Adopt the container of a killed supervisor, as a daemon that the fd holder has started.

    Returns 0 when the container has ended, also if it had ended before.

    Raises:
        AlreadySupervisedError: Another adopter was first.
        ShimError: The container cannot be adopted. The fd holder logs why.
    """
    command = own_command()
    told = successor.arrive()
    signals.block()
    claimed = claim.claim(*os.path.split(told.path))
    if not discover.is_of(told.store, claimed.state_dir):  # the container has ended
        told.store.close()
        claimed.release()
        return 0
    os.chdir(claimed.state_dir)
    request, supervise_it = _adopter(
        claimed, told.store, SILENT, command, lambda: None, starts=told.starts
    )
    os.dup2(0, 2)  # /dev/null: until here stderr was the fd holder's file for an error
    failed = foreground.supervise_in_daemon(claimed, request, supervise_it, is_restored=True)
    return 0 if failed is None else failed.exit_status


def run_after_reload() -> int:
    """Continue after a reload, in which this process has executed a program. Returns as `run`.

    Raises:
        ShimError: As `restore.restore`, or the handover cannot be used.
    """
    from supervisor.container import restore

    arrival = reexec.arrive()
    if arrival is None:
        raise AssertionError("nothing was handed over")
    document = arrival.containers[0].document
    is_daemon = document["origin"]["is_daemon"]
    claimed = claim.Claim(document["origin"]["path"], arrival.lock)
    environment = {} if is_daemon else foreground.environment_of_a_main_process()
    command = own_command()
    if arrival.is_rehearsal:
        request = request_of(
            document, notifier=SILENT, command=command, environment=dict(os.environ)
        )
        restore.dry_run(request, claimed.open_state_dir(), arrival.containers)
        reexec.end_rehearsal()
    request = request_of(
        document, notifier=Notifier(environment), command=command, environment=dict(os.environ)
    )
    origin = replace(
        request.origin,
        write_pid=claimed.write_pid,  # on a full disk the earlier program may not have written it
        lock_fd=claimed.lock_fd,
        has_job_control=not is_daemon,
    )
    request = replace(request, origin=origin)

    def supervise_on(log: Log, state_dir: StateDirectory) -> Outcome:
        return restore.restore(request, log, state_dir, arrival.containers)

    if is_daemon:
        foreground.supervise_in_daemon(claimed, request, supervise_on, is_restored=True)
        return 0
    return foreground.supervise_in_foreground(claimed, request, supervise_on, is_restored=True)
