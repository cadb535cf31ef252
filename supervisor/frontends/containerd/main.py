"""`containerd-shim-forkshim-v2`: the runtime-v2 shim's program, `start` and `delete`.

Source: docs/runtime-v2.md of containerd.
"""

from __future__ import annotations

import os
import sys

from supervisor import __version__
from supervisor.frontends.containerd import invocation, options
from supervisor.handover.own_command import is_handed_over, is_successor, own_command
from supervisor.linux import fd_limit, fds
from supervisor.linux.errors import ShimError, describe
from supervisor.linux.process_exit import exit_process
from supervisor.linux.text import printable
from supervisor.state.container_id import check_id
from supervisor.wire.protobuf import WireError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from supervisor.frontends.containerd.group_socket import GroupSocket
    from supervisor.frontends.containerd.handover.holder_link import HolderLink
    from supervisor.frontends.containerd.invocation import Invocation

_PROGRAM = "containerd-shim-forkshim-v2"
_MOST_STDIN = 1 << 20


def main() -> NoReturn:
    """Run the command and end the process with its exit status."""
    exit_process(run_command())


def run_command() -> int:
    """Run the command with `sys.argv`; returns its exit status."""
    fds.ensure_stdio()
    try:
        return _run(invocation.parse(sys.argv[1:]))
    except (ShimError, OSError) as error:
        why = describe(error)
    except WireError as error:
        why = f"options: {error}"
    print(f"{_PROGRAM}: {printable(why)}", file=sys.stderr)  # noqa: T201 -- containerd reads it
    return 1


def _run(wanted: Invocation) -> int:
    if wanted.wants_version:
        print(f"{_PROGRAM}: version {__version__}")  # noqa: T201 -- the answer
        return 0
    if wanted.wants_info:
        _print_info()
        return 0
    if wanted.action == "start":
        _start(wanted)
        return 0
    if wanted.action == "delete":
        _delete(wanted)
        return 0
    raise ShimError("nothing to do: there are start and delete")


def _print_info() -> None:
    from supervisor.frontends.containerd.info import runtime_info  # no container needs it

    with open(0, "rb", closefd=False) as stdin:
        given = stdin.read(_MOST_STDIN)
    os.write(1, runtime_info(given, version=__version__, environment=dict(os.environ)))


def _start(wanted: Invocation) -> None:
    from supervisor.frontends.containerd.handover import holder_link
    from supervisor.frontends.containerd.handover.group_holder import JOURNAL, LISTENER
    from supervisor.frontends.containerd.handover.group_journal import GroupJournal
    from supervisor.frontends.containerd.start import start
    from supervisor.wire.call_journal import CallJournal

    check_id(wanted.container_id)
    fd_limit.raise_soft()
    if is_handed_over():
        from supervisor.frontends.containerd.reload import go_on  # `start` has no use for it

        go_on(wanted)
        return
    if is_successor():
        from supervisor.frontends.containerd.handover.arrival import succeed  # as above

        succeed(wanted)
        return
    environment, command = dict(os.environ), own_command()
    with open(0, "rb", closefd=False) as stdin:
        given = options.of_start(stdin.read(_MOST_STDIN), wanted.container_id)

    def serve(found: GroupSocket) -> None:
        journal = GroupJournal(CallJournal.create())
        kept = {LISTENER: (found.listener.fileno(),), JOURNAL: (journal.fileno(),)}
        holder_link.fork_shim(
            command,
            kept,
            title=f"forkshim: {wanted.container_id}",
            null_fd=0,
            serve=lambda link: run_daemon(found, link, journal),
        )

    def run_daemon(found: GroupSocket, link: HolderLink, journal: GroupJournal) -> None:
        # In the shim alone: the fd holder has no use for it, and its pages would be its own soon.
        from supervisor.frontends.containerd.serve import Daemon

        Daemon(found, wanted, environment, command, link=link, journal=journal).run()

    address = start(
        wanted,
        os.getcwd(),
        shim_cgroup=given.shim_cgroup,
        environment=environment,
        serve=serve,
    )
    os.write(1, address.encode())


def _delete(wanted: Invocation) -> None:
    from supervisor.frontends.containerd.delete import clean_up

    check_id(wanted.container_id)
    bundle = wanted.bundle or os.getcwd()
    given = options.read(bundle)
    _root, root, *global_args = given.runtime_args(wanted.namespace)
    reply = clean_up(
        bundle,
        wanted.container_id,
        runtime=given.runtime,
        root=root,
        global_args=global_args,
        environment=dict(os.environ),
    )
    os.write(1, reply)
