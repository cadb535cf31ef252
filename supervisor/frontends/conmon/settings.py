"""From conmon's options to the core's: which sinks the streams have. Pure."""

from __future__ import annotations

from supervisor.frontends.conmon.options import Driver
from supervisor.io.stdio import ATTACH, ATTACH_KEPT_OPEN
from supervisor.oci.process_json import ProcessConfig

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from supervisor.frontends.conmon.options import LogTarget, Options


def process_config(
    options: Options, targets: Sequence[LogTarget], *, log_path: str, uid: int, gid: int
) -> ProcessConfig:
    """Return what the core needs to know of the process and its streams.

    Args:
        options: The engine's.
        targets: What its `--log-path` mean.
        log_path: The absolute path of the k8s-file, "" for none.
        uid: The owner of the container's pipes.
        gid: Its group.
    """
    sink = log_setting(options, targets, log_path)
    return ProcessConfig(
        terminal=options.terminal,
        is_exec=options.exec,
        stdin=stdin_setting(options, targets),
        stdout=sink,
        stderr="" if options.terminal else sink,
        root_uid=uid,
        root_gid=gid,
    )


def stdin_setting(options: Options, targets: Sequence[LogTarget]) -> str:
    """Return the setting of `supervisor.io.stdio` for the input.

    A terminal has input without `--stdin`, too; only with it a client's end is the input's.
    """
    is_passed = any(target.driver is Driver.PASSTHROUGH for target in targets)
    if is_passed or not (options.stdin or options.terminal):
        return ""
    return ATTACH if options.stdin and not options.leave_stdin_open else ATTACH_KEPT_OPEN


def log_setting(options: Options, targets: Sequence[LogTarget], log_path: str) -> str:
    """Return the setting of `supervisor.sinks.spec` for an output."""
    drivers = {target.driver for target in targets}
    if Driver.PASSTHROUGH in drivers:
        return ""
    if Driver.K8S_FILE in drivers:
        return f"cri:{log_path}"
    if Driver.JOURNALD in drivers:
        return f"journal,tag={options.log_tag}" if options.log_tag else "journal"
    return "attach" if options.has_clients else "path:/dev/null"
