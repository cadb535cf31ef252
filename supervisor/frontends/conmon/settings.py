"""From conmon's options to the core's: which sinks the streams have."""

from __future__ import annotations

import os

from supervisor.frontends.conmon.options import Driver
from supervisor.io.stdio import ATTACH, ATTACH_KEPT_OPEN
from supervisor.oci.process_json import ProcessConfig
from supervisor.sinks.spec import quoted
from supervisor.systemd.notify import SOCKET_VARIABLE, Notifier
from workers.common.records import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from supervisor.frontends.conmon.options import LogTarget, Options


def process_config(
    options: Options,
    targets: Sequence[LogTarget],
    *,
    log_path: str,
    uid: int,
    gid: int,
    reads_priority: bool = True,
) -> ProcessConfig:
    """Return what the core needs to know of the process and its streams.

    Args:
        options: The engine's.
        targets: What its `--log-path` mean.
        log_path: The absolute path of the k8s-file, "" for none.
        uid: The owner of the container's pipes.
        gid: Its group.
        reads_priority: In the journal, a line's prefix `<0>` to `<7>` is its priority. Podman 4
            fails on each but 3 and 6.
    """
    if options.log_rotate and not may_rotate(log_path, options.log_allowlist_dir):
        options = replace(options, log_size_max=-1, log_rotate=False)
    sink, *second = log_settings(options, targets, log_path, reads_priority=reads_priority)
    return ProcessConfig(
        terminal=options.terminal,
        is_exec=options.exec,
        stdin=stdin_setting(options, targets),
        stdout=sink,
        stderr="" if options.terminal else sink,
        second="".join(second),
        root_uid=uid,
        root_gid=gid,
    )


def notifier(options: Options) -> Notifier:
    """Return the way to the engine's service manager, to which only the container speaks."""
    environment = {SOCKET_VARIABLE: options.sdnotify_socket} if options.sdnotify_socket else {}
    return Notifier(environment, only_forwards=True)


def may_rotate(path: str, allowed: Sequence[str]) -> bool:
    """Say whether a log may be rotated: in one of the directories, if there are any.

    Links are followed on both sides. Elsewhere the log goes on in one file.
    """
    if not allowed:
        return True
    directory = os.path.realpath(os.path.dirname(path))
    roots = (os.path.realpath(each) for each in allowed if each)
    return any(os.path.commonpath((directory, root)) == root for root in roots)


def stdin_setting(options: Options, targets: Sequence[LogTarget]) -> str:
    """Return the setting of `supervisor.io.stdio` for the input.

    A terminal has input without `--stdin`, too; only with it a client's end is the input's.
    """
    is_passed = any(target.driver is Driver.PASSTHROUGH for target in targets)
    if is_passed or not (options.stdin or options.terminal):
        return ""
    return ATTACH if options.stdin and not options.leave_stdin_open else ATTACH_KEPT_OPEN


def log_settings(
    options: Options, targets: Sequence[LogTarget], log_path: str, *, reads_priority: bool = True
) -> list[str]:
    """Return the settings of `supervisor.sinks.spec` for an output: one, or a file and the journal.

    Of several files conmon writes the last one.
    """
    drivers = {target.driver for target in targets}
    if Driver.PASSTHROUGH in drivers:
        return [""]
    settings = []
    if Driver.K8S_FILE in drivers:
        settings.append(f"{','.join(['k8s-file', *_file_options(options)])}:{log_path}")
    if Driver.JOURNALD in drivers:
        words = _journal_options(options, reads_priority=reads_priority)
        settings.append(",".join(["journal", *words]))
    return settings or ["attach" if options.has_clients else "path:/dev/null"]


def _file_options(options: Options) -> Iterator[str]:
    if options.log_size_max > 0:
        yield f"max-size={options.log_size_max}"
    if options.log_rotate:
        yield f"keep={options.log_max_files}"
    if options.log_global_size_max > 0:
        yield f"total={options.log_global_size_max}"
    if not options.no_sync_log:
        yield "sync=yes"


def _journal_options(options: Options, *, reads_priority: bool) -> Iterator[str]:
    if options.name:
        yield f"name={quoted(options.name)}"
    if options.log_tag:
        yield f"log-tag={quoted(options.log_tag)}"
    for label in options.log_label:
        name, _equals, value = label.partition("=")
        yield f"label={name}={quoted(value)}"
    if options.no_container_partial_message:
        yield "partial=no"
    if not reads_priority:
        yield "prefix=no"
