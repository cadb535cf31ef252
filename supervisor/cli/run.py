"""`forkshim run`: prepares a state directory, supervises, and exits with the container's status.

This process is client and supervisor in one. As a client it writes process.json, makes the fifos
and runs the runtime's `start`. The container's output goes to this process's stdout and stderr, or
to the sink that --log names.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from functools import partial

from supervisor.cli import daemon, exit_record, foreground, leftovers
from supervisor.container.host import supervise
from supervisor.container.request import ContainerSpec, Origin, Outcome, StartRequest, StopPolicy
from supervisor.handover import discover
from supervisor.handover.own_command import own_command
from supervisor.linux import paths, signals
from supervisor.linux.errors import (
    BundleError,
    MachineError,
    ShimError,
    StoppedError,
    UsageError,
    reason_of_access,
)
from supervisor.linux.exit_status import signal_name
from supervisor.oci import config_overlay, process_json
from supervisor.oci.bundle import Addition, Bundle, destinations, modified_config, read_bundle
from supervisor.sinks.spec import check_typed, parse_sink
from supervisor.state import claim
from supervisor.state.container_id import check_id
from supervisor.state.directory import StateDirectory
from supervisor.state.fd_store import FdStoreError
from supervisor.state.journal_log import Kind
from supervisor.systemd import delegation
from supervisor.systemd.notify import SOCKET_VARIABLE, Notifier
from supervisor.systemd.socket_activation import take as take_activation_fds
from workers.common.records import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from supervisor.cli.commands import RunRequest
    from supervisor.io.user_terminal import UserTerminal
    from supervisor.state.log import Log
    from supervisor.systemd.notify_proxy import NotifyProxy
    from supervisor.systemd.socket_activation import ActivationFds

_CONFIG = "config.json"


def run(request: RunRequest) -> int:
    """Run a container to its end. Returns the exit status; with `detach` 0 once it runs.

    Raises:
        ShimError: The runtime was not executed, or the container never ran.
    """
    command = own_command()
    check_id(request.container_id)
    check_typed(request.log or "")
    request = _settle_detach(request)
    bundle = read_bundle(_bundle_path(request.bundle))
    terminal = bundle.terminal or request.terminal
    if request.exit_dir is not None:
        request = replace(request, exit_dir=exit_record.make_directory(request.exit_dir))
    if request.detach:  # the fd holder starts successors only of daemons
        from supervisor.handover import successor

        successor.limit(os.environ)
    kept = discover.take_kept(os.environ)
    activation_fds = take_activation_fds(os.environ, discover.KEPT_NAMES)
    signals.block()
    claimed = claim.claim(request.root, request.container_id)
    try:
        store, why_not = None, None
        if request.adopt or kept is not None:
            from supervisor.cli import adopt  # it imports io.stream_set: 8 ms of a start

            if request.adopt:
                try:
                    store = adopt.find_store(claimed, kept)
                except FdStoreError as error:  # matters only if the container still lives
                    why_not = error
            else:
                adopt.discard_kept(kept)
            if store is not None:
                activation_fds.close()  # the running container has its own copies
                return adopt.take_over(claimed, store, detach=request.detach, command=command)
        leftovers.clear(claimed, request, why_not)
        try:
            claimed.check_room()
            if request.exit_dir is not None:
                exit_record.remove(request.exit_dir, request.container_id)
            runtime_bundle, config = _prepare(
                claimed, request, bundle, activation_fds, terminal=terminal
            )
            # Owned by this process until its end.
            notify_proxy = _open_notify_proxy(bundle) if _has_notify_proxy(request) else None
        except Exception:  # also of a bug: nothing was created
            claimed.remove()
            raise
    except OSError as error:
        raise MachineError(
            f"{error.filename or claimed.path}: {reason_of_access(error)}"
        ) from error
    start_request = StartRequest(
        ContainerSpec(
            container_id=request.container_id,
            bundle=runtime_bundle,
            runtime=request.runtime,
            config=config,
            activation_fds=activation_fds,
            starts_container=True,
            notify_proxy=notify_proxy,
        ),
        StopPolicy(request.stop_signal, request.stop_timeout_s),
        Origin(
            path=claimed.path,
            exit_dir=request.exit_dir,
            is_daemon=request.detach,
            began_ns=time.time_ns(),
            write_pid=claimed.write_pid,
            lock_fd=claimed.lock_fd,
            command=command,
            is_adoptable=True,
            is_kept=request.adopt,
            environment=dict(os.environ),
        ),
    )
    signum = signals.pending_stop()
    if signum is not None:
        claimed.remove()
        raise StoppedError(f"stopped by {signal_name(signum)} before its creation")
    if request.detach:
        try:
            daemon.detach(
                lambda report: _supervise_in_daemon(claimed, start_request, report),
                working_directory=claimed.state_dir,
                preserve_fds=[claimed.lock_fd, *activation_fds.filenos()],
                is_start=True,
            )
        except StoppedError:
            claimed.remove()
            raise
        return 0
    user_terminal = None
    if terminal:
        from supervisor.io.user_terminal import find_terminal

        user_terminal = find_terminal(is_input=request.interactive)
    if foreground.has_controlling_terminal():
        # SIGHUP is then the terminal's hang-up, not a reload. The worker that restores a raw
        # terminal does so when this process ends, so no other process may adopt the container.
        start_request = replace(
            start_request, origin=replace(start_request.origin, command=(), is_adoptable=False)
        )
    is_chosen = bool(bundle.cgroups_path) or request.adopt or _is_made_by_systemd(request)
    return _supervise_in_foreground(
        claimed, start_request, user_terminal, is_place_chosen=is_chosen
    )


def _settle_detach(request: RunRequest) -> RunRequest:
    if not request.detach:
        return request
    if SOCKET_VARIABLE in os.environ:
        foreground.say("--detach: systemd supervises this process, which stays in the foreground")
        return replace(request, detach=False)
    if request.interactive:
        raise UsageError("--detach with --interactive: a daemon has no stdin to read from")
    if request.log in (None, "passthrough"):
        raise UsageError(
            "--detach needs --log: where the output goes (journal, file:PATH, null, ...)"
        )
    return request


def _bundle_path(path: str) -> str:
    absolute = paths.absolute(path)
    try:
        is_directory = stat.S_ISDIR(os.stat(absolute).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        is_directory = False
    except (OSError, ValueError) as error:  # ValueError: a NUL
        why = reason_of_access(error) if isinstance(error, OSError) else str(error)
        raise BundleError(f"bundle {absolute}: {why}") from error
    if not is_directory:
        raise BundleError(f"bundle {absolute}: no such directory")
    return absolute


def _prepare(
    claimed: claim.Claim,
    request: RunRequest,
    bundle: Bundle,
    activation_fds: ActivationFds,
    *,
    terminal: bool,
) -> tuple[str, str]:
    """Make the state directory, which is the working directory afterwards.

    The bundle is the user's. A modified config.json is in the state directory, and is mounted over
    the user's for `create`. A process that may not mount makes a bundle in the state directory.

    Returns:
        The bundle for the runtime, and the config.json that replaces the bundle's ("" for none).
    """
    request, scope = _with_scope(request, bundle)
    # First, because the working directory changes below.
    sink = _with_absolute_path(request.log or "passthrough")
    record = process_json.ProcessConfig(
        terminal=terminal,
        stdin="passthrough" if request.interactive else "",
        stdout=sink,
        stderr=sink,
        runtime_args=request.runtime_args,
        no_pivot_root=request.no_pivot,
        root_uid=bundle.root_uid,
        root_gid=bundle.root_gid,
    )
    modified = modified_config(
        bundle,
        terminal=terminal,
        cgroups_path=scope or _choose_cgroup(request),
        addition=_notify_mount(claimed, bundle) if _has_notify_proxy(request) else None,
        environment=activation_fds.environment(),
        is_elsewhere=not (can_overlay := config_overlay.is_possible()),
    )
    runtime_bundle, config = bundle.path, ""
    if modified is not None and can_overlay:
        config = os.path.join(claimed.state_dir, _CONFIG)
    elif modified is not None:
        runtime_bundle = os.path.join(claimed.state_dir, "bundle")
    claimed.make_state_dir(
        {
            "bundle": runtime_bundle,
            "runtime": request.runtime,
            "runtimeArgs": list(request.runtime_args),
            "noPivotRoot": request.no_pivot,
        }
    )
    with contextlib.closing(claimed.open_state_dir()) as state_dir:
        if config and modified is not None:
            state_dir.write(_CONFIG, modified, 0o600)
        elif modified is not None:
            _make_bundle(runtime_bundle, modified, bundle.path)
        process = bundle.document.get("process") or {}
        state_dir.write("process.json", process_json.encode_process(process, record), 0o600)
        state_dir.make_fifos()
        os.fchdir(state_dir.fileno())  # else the caller's directory could not be unmounted
    return runtime_bundle, config


def _with_absolute_path(sink: str) -> str:
    path = parse_sink(sink).path
    return sink.removesuffix(path) + paths.joined(path) if path else sink


def _make_bundle(path: str, config: bytes, of_path: str) -> None:
    """Make a bundle of `config` and links to the other files of the user's bundle."""
    os.mkdir(path, 0o700)
    with contextlib.closing(StateDirectory.open(path)) as directory:
        directory.write(_CONFIG, config, 0o600)
        for name in os.listdir(of_path):
            if name != _CONFIG:
                os.symlink(os.path.join(of_path, name), name, dir_fd=directory.fileno())


def _has_notify_proxy(request: RunRequest) -> bool:
    """Return whether the container gets a notify socket: `request` wants it, and systemd waits."""
    return request.sdnotify == "container" and foreground.is_main_process_with_manager()


def _open_notify_proxy(bundle: Bundle) -> NotifyProxy:
    from supervisor.systemd.notify_proxy import NotifyProxy  # 4 ms, only with --sdnotify=container

    return NotifyProxy.make(uid=bundle.root_uid, gid=bundle.root_gid)


def _notify_mount(claimed: claim.Claim, bundle: Bundle) -> Addition:
    from supervisor.systemd import notify_proxy

    place = notify_proxy.place_for(destinations(bundle))
    environment = {SOCKET_VARIABLE: notify_proxy.address_in(place)}
    if "WATCHDOG_USEC" in os.environ:
        environment["WATCHDOG_USEC"] = os.environ["WATCHDOG_USEC"]
    return Addition(os.path.join(claimed.state_dir, notify_proxy.DIRECTORY), place, environment)


def _with_scope(request: RunRequest, bundle: Bundle) -> tuple[RunRequest, str]:
    """Return the request with --systemd-cgroup, and the scope that systemd makes then.

    Only where the unit's cgroup must stay undivided. Elsewhere: the unchanged request and "".
    """
    if not request.adopt or _is_made_by_systemd(request):
        return request, ""
    scope = delegation.scope_beside_unit(os.environ, request.container_id)
    if not scope or bundle.cgroups_path:
        return request, ""
    return replace(request, runtime_args=(*request.runtime_args, "--systemd-cgroup")), scope


def _is_made_by_systemd(request: RunRequest) -> bool:
    return any("systemd-cgroup" in word for word in request.runtime_args)


def _choose_cgroup(request: RunRequest) -> str:
    """Divide the unit's cgroup; return the container's part, or "" if there is no such unit.

    "" with --systemd-cgroup, too: the runtime would read cgroupsPath as the name of a scope.
    """
    if request.adopt and delegation.scope_beside_unit(os.environ, request.container_id):
        return ""  # the unit stays undivided
    try:
        payload = delegation.enter_unit(os.environ)
    except ShimError as error:
        foreground.say(f"{error}; the runtime chooses the container's cgroup")
        return ""
    return "" if _is_made_by_systemd(request) else payload


def _supervise_in_foreground(
    claimed: claim.Claim,
    start_request: StartRequest,
    user_terminal: UserTerminal | None,
    *,
    is_place_chosen: bool,
) -> int:
    notifier = Notifier(foreground.environment_of_a_main_process())
    start_request = replace(
        start_request, origin=replace(start_request.origin, has_job_control=True, notifier=notifier)
    )
    start_request = replace(start_request, spec=replace(start_request.spec, terminal=user_terminal))

    def supervise_it(log: Log, state_dir: StateDirectory) -> Outcome:
        look = partial(_warn_if_outside, log, state_dir, is_place_chosen=is_place_chosen)
        return supervise(
            replace(start_request, origin=replace(start_request.origin, on_started=look)),
            log,
            state_dir,
        )

    try:
        return foreground.supervise_in_foreground(claimed, start_request, supervise_it)
    finally:
        if user_terminal is not None:
            user_terminal.restore()


def _warn_if_outside(log: Log, state_dir: StateDirectory, *, is_place_chosen: bool) -> None:
    """Log the container's cgroup if it is outside the unit's."""
    place = delegation.cgroup_outside_unit(os.environ, state_dir.read_pid())
    if not place:
        return
    message = f"the container is outside of this unit, in the cgroup {place}"
    # In a delegated unit `_choose_cgroup` has already logged the error.
    if is_place_chosen or delegation.is_delegated(os.environ):
        log.info(message)
    else:
        log.warning(
            f"{message}: the unit's limits and its stop do not cover it; "
            "Delegate=yes in the unit puts it inside (cgroup v2)",
            Kind.OUTSIDE,
        )


def _supervise_in_daemon(
    claimed: claim.Claim, start_request: StartRequest, report: daemon.StartReport
) -> None:
    """Supervise in the daemon, and report the start to the caller."""
    start_request = replace(
        start_request, origin=replace(start_request.origin, on_started=report.started)
    )

    def supervise_it(log: Log, state_dir: StateDirectory) -> Outcome:
        return supervise(start_request, log, state_dir)

    error = foreground.supervise_in_daemon(claimed, start_request, supervise_it)
    if error is not None:
        report.failed(error)
