"""`conmon`: what Podman and CRI-O start for each container and each exec session.

This process reads the command line, opens the log, waits for the engine's word, forks the guardian
of the supervisor, or for an exec the supervisor, writes --conmon-pidfile and ends. With --sync it
is the supervisor itself.
Exit status: 0 once the supervisor is forked; 1 for a wrong command line or log. The supervisor's is
that of the container's process.
"""

from __future__ import annotations

import os
import signal
import sys

from supervisor.frontends.conmon import options as command
from supervisor.frontends.conmon.bundle_files import (
    BundleFiles,
    open_log,
    open_state,
    remove_state,
)
from supervisor.frontends.conmon.engine import Engine, take_null_stdio
from supervisor.frontends.conmon.engine_pipes import wait_for_start
from supervisor.frontends.conmon.exit_files import write_whole
from supervisor.frontends.conmon.guardian import start
from supervisor.frontends.conmon.guardian.exit_command import leave
from supervisor.handover.own_command import is_handed_over, is_successor
from supervisor.linux import fds, spawn
from supervisor.linux.errors import ShimError
from supervisor.linux.process_exit import exit_process
from supervisor.linux.text import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

    from supervisor.frontends.conmon.guardian.link import GuardianLink
    from supervisor.frontends.conmon.options import LogTarget, Options

_FAILED = 1


def main() -> NoReturn:
    """Run the command and end the process with its exit status."""
    exit_process(run_command(sys.argv[1:]))


def run_command(words: Sequence[str]) -> int:
    """Run the command; returns its exit status."""
    if is_handed_over() or is_successor():
        return _go_on(words)
    # Podman's restart policies start this program with signals blocked.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signal.signal(signal.SIGTERM, lambda *_: os._exit(_FAILED))
    os.umask(0o022)
    options = None
    try:
        options = command.parse(words)
        targets = _check(options)
        engine = Engine.inherit(options, dict(os.environ))
        if options.exec_attach and not engine.has_attach_pipe:
            raise command.OptionsError("[conmon:e]: --attach specified but _OCI_ATTACHPIPE was not")
        fds.ensure_stdio()
        _make_log_files(targets)
    except command.Ending as text:
        sys.stdout.write(str(text))
        return 0
    except ShimError as error:
        sys.stderr.write(f"{error}\n")
        if options is not None and options.syslog:
            _tell_syslog(options, str(error))
        return _FAILED
    engine.refuse_oom_killer()
    wait_for_start(engine.start)
    if not options.exec_attach:
        engine.start.close()
    if options.sync:
        return _supervise(options, targets, engine)
    return _fork(options, targets, engine)


def _check(options: Options) -> tuple[LogTarget, ...]:
    command.check_first(options)
    runtime = options.runtime
    try:
        os.stat(runtime)
        is_valid = os.access(runtime, os.X_OK)
        why = os.strerror(13)
    except (OSError, ValueError) as error:
        is_valid, why = False, getattr(error, "strerror", "") or str(error)
    if not is_valid:
        raise command.OptionsError(f"[conmon:e]: Runtime path {runtime} is not valid {why}")
    targets = command.check(options)
    if "warn" in options.said_levels:
        for warning in command.warnings(options, targets):
            sys.stderr.write(f"[conmon:w]: {warning}\n")
    return targets


def _tell_syslog(options: Options, message: str) -> None:
    from supervisor.state.syslog import Syslog

    try:
        syslog = Syslog(options.cid, ("error",))
    except OSError:  # EMFILE; stderr has the message
        return
    syslog.send("error", printable(message))
    syslog.close()


def _make_log_files(targets: Sequence[LogTarget]) -> None:
    """Make each log file now, while the engine reads stderr.

    Raises:
        OptionsError: One cannot be opened.
    """
    for target in targets:
        if target.driver is not command.Driver.K8S_FILE:
            continue
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            os.close(os.open(target.path, flags, 0o640))
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", "") or str(error)
            raise command.OptionsError(f"[conmon:e]: Failed to open log file {why}") from error


def _fork(options: Options, targets: Sequence[LogTarget], engine: Engine) -> int:
    sys.stdout.flush()

    def guarded(link: GuardianLink) -> int:
        return _supervise(options, targets, engine, link)

    def work() -> None:
        if options.exec:
            exit_process(_supervise(options, targets, engine))
        start.guard(options, engine, guarded)

    try:
        pid = spawn.fork_worker(work)
    except OSError as error:
        sys.stderr.write(f"[conmon:e]: Failed to fork the supervisor {error.strerror}\n")
        return _FAILED
    if options.conmon_pidfile:
        try:
            write_whole(options.conmon_pidfile, str(pid))
        except OSError as error:
            sys.stderr.write(f"[conmon:e]: Failed to write conmon-pidfile {error.strerror}\n")
            os.kill(pid, signal.SIGTERM)
            return _FAILED
    return 0


def _supervise(
    options: Options,
    targets: Sequence[LogTarget],
    engine: Engine,
    link: GuardianLink | None = None,
) -> int:
    """Run one monitor to its end, then the exit command, if there is one and no guardian."""
    if not any(target.driver is command.Driver.PASSTHROUGH for target in targets):
        take_null_stdio()
    if link is None and (os.getpgrp() != os.getpid() or not options.sync):
        os.setsid()
    status = _FAILED
    files: BundleFiles | None = None
    try:
        bundle = options.bundle_path
        files = BundleFiles(bundle) if bundle else None
        state_dir = open_state(files, options.cid)
        log = open_log(state_dir, options)
    except ShimError as error:
        engine.failed(str(error).encode(errors="surrogateescape"))
        if files is not None:
            files.close()
    else:
        from supervisor.frontends.conmon.monitor import Monitor  # with the core: after the fork

        try:
            status = Monitor(options, targets, engine, log, state_dir, files, link).run()
        finally:
            log.close()
            if files is None:
                remove_state(state_dir)
            state_dir.close()
    return leave(options, engine, link, status)


def _go_on(words: Sequence[str]) -> int:
    """Go on where another supervisor was: a reload or a guardian has executed this program."""
    fds.ensure_stdio()
    options = command.parse(words)
    from supervisor.frontends.conmon.guardian import arrival  # with the core

    return arrival.go_on(options, command.log_targets(options.log_path))
