"""Taking over a container that runs: after a reload of this process, or by adoption.

Adoption is asked for by a person (`forkshim adopt`) or by systemd, which starts the same
`forkshim run --adopt` again. Either way a claim on the container's home comes first.
"""

from __future__ import annotations

import os
from contextlib import ExitStack

from supervisor.cli import daemon, foreground
from supervisor.container.handover import Leftovers
from supervisor.container.request import Outcome, StartRequest, request_of
from supervisor.handover import discover, reexec, successor
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


_WHY_NOTHING = "it has ended, or its supervisor was killed before it ran"


def adopt(container_id: str, root: str, *, detach: bool) -> int:
    """Go on with a container whose supervisor was killed, to its end or as a daemon; as `run`.

    Raises:
        ShimError: It has a supervisor, or nothing to go on with is left.
    """
    command = own_command()
    check_id(container_id)
    kept = discover.take_kept(os.environ)
    signals.hold()
    claimed = claim.claim(root, container_id)
    is_stale = claimed.is_stale
    try:
        past = find_past(claimed, kept)
    except ShimError:
        claimed.release()
        raise
    if past is None:
        (claimed.release if is_stale else claimed.remove)()
        raise ShimError("nothing to adopt: " + _WHY_NOTHING)
    return take_over(claimed, past, detach=detach, command=command)


def find_past(claimed: claim.Claim, kept: FdStore | None) -> FdStore | None:
    """Return what a killed supervisor has left; None if it has ended, or never was.

    `kept`, if systemd has given it to us, is returned or let go.

    Raises:
        DepositError: It is not to be had, or not to be read. What systemd keeps stays there.
    """
    if not os.path.exists(os.path.join(claimed.state_dir, directory.HANDOVER_NAME)):
        let_go(kept)
        return None
    if kept is not None and discover.is_of(kept, claimed.state_dir):
        past = kept
    else:
        let_go(kept)
        past = discover.find(claimed.state_dir)
    try:
        discover.look(past, claimed.state_dir).close()
    except FdStoreError:
        past.close()
        raise
    return past


def let_go(kept: FdStore | None) -> None:
    """Close what systemd has kept of another run, and have it closed there."""
    if kept is not None:
        kept.close()
        Notifier(foreground.environment_of_a_main_process()).keep_no_more(discover.KEPT_NAMES)


def take_over(
    claimed: claim.Claim, past: FdStore, *, detach: bool, command: tuple[str, ...]
) -> int:
    """Go on with the container that `past` is of, to its end or as a daemon; as `run`.

    Raises:
        ShimError: As `going_on.go_on`.
    """
    os.chdir(claimed.state_dir)
    if detach and SOCKET_VARIABLE not in os.environ:
        daemon.detach(
            lambda report: _adopt_detached(claimed, past, report, command),
            working_directory=claimed.state_dir,
            preserve_fds=[claimed.lock_fd, *past.fds],
        )
        return 0
    notifier = Notifier(foreground.environment_of_a_main_process())
    try:
        if not delegation.scope_beside_unit(os.environ, ""):
            delegation.enter_unit(os.environ)
    except ShimError as error:
        foreground.say(str(error))
    if foreground.has_controlling_terminal():
        command = ()  # a HUP is the terminal's then
    order, supervise_it = _adopter(claimed, past, notifier, command)
    return foreground.supervise_in_foreground(claimed, order, supervise_it, is_successor=True)


def _adopt_detached(
    claimed: claim.Claim, past: FdStore, report: daemon.StartReport, command: tuple[str, ...]
) -> None:
    signals.hold()
    try:
        order, supervise_it = _adopter(claimed, past, SILENT, command, report.started)
    except ShimError as error:
        report.failed(error)
        return
    failed = foreground.supervise_in_daemon(claimed, order, supervise_it, is_successor=True)
    if failed is not None:
        report.failed(failed)


def _adopter(
    claimed: claim.Claim,
    past: FdStore,
    notifier: Notifier,
    command: tuple[str, ...],
    on_started: Callable[[], None] | None = None,
    *,
    starts: Sequence[float] = (),
) -> tuple[StartRequest, foreground.SuperviseIt]:
    """Return the order of the killed supervisor, for this one, and what carries it out.

    With `on_started` this one is a daemon. `starts`: see `Succession`.
    """
    from supervisor.container import restore  # `run` is spared it: it has no past

    is_daemon = on_started is not None
    contents = discover.look(past, claimed.state_dir)
    order = request_of(
        contents.document, notifier=notifier, command=command, environment=dict(os.environ)
    )
    order = replace(
        order,
        lock_fd=claimed.lock_fd,
        has_job_control=not is_daemon,
        on_started=on_started or order.on_started,
        front={**order.front, "is_daemon": is_daemon, "starts": [*starts]},
    )

    def supervise_it(log: Log, state_dir: StateDirectory) -> Outcome:
        claimed.write_pid()
        log.notice(f"adopting, after supervisor {contents.document['pid']}")
        left = discover.workers(claimed.state_dir)
        fd_holders = discover.fd_holders(claimed.state_dir)
        return restore.go_on(order, log, state_dir, contents, Leftovers(past, left, fd_holders))

    return order, supervise_it


def succeed() -> int:
    """Adopt the container of a killed supervisor, as a daemon: its fd holder has started us.

    Returns 0 when the container has ended, or has no use for a supervisor.

    Raises:
        AlreadySupervisedError: Another adopter was first.
        ShimError: The container cannot be adopted; shim-log.json says why.
    """
    command = own_command()
    told = successor.arrive()
    signals.hold()
    claimed = claim.claim(*os.path.split(told.path))
    if not discover.is_of(told.store, claimed.state_dir):  # it has ended
        told.store.close()
        claimed.release()
        return 0
    os.chdir(claimed.state_dir)
    try:
        order, supervise_it = _adopter(
            claimed, told.store, SILENT, command, lambda: None, starts=told.starts
        )
    except ShimError as error:
        with ExitStack() as stack:
            state_dir = claimed.open_state_dir()
            stack.callback(state_dir.close)
            log = state_dir.open_log()
            stack.callback(log.close)
            log.error(str(error))
        raise
    failed = foreground.supervise_in_daemon(claimed, order, supervise_it, is_successor=True)
    return 0 if failed is None else failed.exit_status


def go_on() -> int:
    """Go on as the program that this process was before, to the container's end; as `run`.

    Raises:
        ShimError: As `going_on.go_on`; or what there is cannot be used.
    """
    from supervisor.container import restore

    arrival = reexec.arrive()
    if arrival is None:
        raise AssertionError("nothing was handed over")
    document = arrival.contents.document
    is_daemon = document["front"]["is_daemon"]
    claimed = claim.Claim(document["front"]["path"], arrival.lock)
    environment = {} if is_daemon else foreground.environment_of_a_main_process()
    command = own_command()
    if arrival.is_rehearsal:
        order = request_of(document, notifier=SILENT, command=command, environment=dict(os.environ))
        restore.dry_run(order, claimed.open_state_dir(), arrival.contents)
        reexec.end_rehearsal()
    order = request_of(
        document, notifier=Notifier(environment), command=command, environment=dict(os.environ)
    )
    order = replace(order, lock_fd=claimed.lock_fd, has_job_control=not is_daemon)

    def supervise_on(log: Log, state_dir: StateDirectory) -> Outcome:
        return restore.go_on(order, log, state_dir, arrival.contents)

    if is_daemon:
        foreground.supervise_in_daemon(claimed, order, supervise_on, is_successor=True)
        return 0
    return foreground.supervise_in_foreground(claimed, order, supervise_on, is_successor=True)
