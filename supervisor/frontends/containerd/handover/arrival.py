"""The successor of a killed shim: it goes on with the connections and containers of the dead one.

Its fd holder has started it, with every descriptor that the dead shim had named. The journal says
the rest. What the dead shim was doing is done to its end, or refused with UNAVAILABLE: no client is
left waiting, and none is told what is not known.
"""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack

from supervisor.container.restore import place_of
from supervisor.frontends.containerd.group_socket import GroupSocket
from supervisor.frontends.containerd.handover import aftermath, group_holder
from supervisor.frontends.containerd.handover.group_holder import CONNECTION, JOURNAL, LISTENER
from supervisor.frontends.containerd.handover.group_journal import GroupJournal
from supervisor.frontends.containerd.handover.holder_link import HolderLink
from supervisor.frontends.containerd.serve import Daemon, in_group
from supervisor.handover import discover
from supervisor.handover.manager import Leftovers
from supervisor.handover.own_command import own_command
from supervisor.linux.errors import ShimError
from supervisor.linux.fds import Fd
from supervisor.state.fd_store import FdStore, FdStoreError
from supervisor.wire.call_journal import CallJournal
from supervisor.wire.protobuf import WireError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from supervisor.container.restore import Place
    from supervisor.frontends.containerd.invocation import Invocation
    from supervisor.state.directory import StateDirectory
    from supervisor.state.log import Log


def succeed(invocation: Invocation) -> None:
    """Serve the group of a killed shim until this one leaves.

    Raises:
        ShimError: What the dead shim had cannot be used.
    """
    command = own_command()
    passed = group_holder.arrive()
    with ExitStack() as stack:
        for each in (fd for kept in passed.kept.values() for fd in kept):
            stack.callback(each.close)
        try:
            _succeed(invocation, command, passed, stack)
        except (KeyError, TypeError, ValueError, WireError) as error:
            raise FdStoreError(f"handover: {type(error).__name__}: {error}") from error


def _succeed(
    invocation: Invocation, command: tuple[str, ...], passed: group_holder.Passed, stack: ExitStack
) -> None:
    kept = {name: tuple(fd.fileno() for fd in fds) for name, fds in passed.kept.items()}
    link = HolderLink(command, passed.channel, Fd(-1), kept).below(passed.holder_pid)
    journal = CallJournal(passed.kept[JOURNAL][0].take())
    state = journal.read()
    if state is None:
        raise FdStoreError("handover: the journal is empty")
    environment = dict(os.environ)
    listener = socket.socket(fileno=passed.kept[LISTENER][0].take())
    device, inode = state["socket"]["identity"]
    found = GroupSocket(state["socket"]["path"], listener, (device, inode))
    daemon = Daemon(
        found,
        invocation,
        environment,
        command,
        link=link,
        journal=GroupJournal(journal, state),
        events=state["events"],
    )
    numbers = sorted(
        int(name.removeprefix(CONNECTION)) for name in kept if name.startswith(CONNECTION)
    )
    pairs = [passed.kept[f"{CONNECTION}{number}"] for number in numbers]
    places = [
        in_group(each, link)
        for each in _places(passed.kept, invocation, environment, command, stack)
    ]
    daemon.server.take_over(
        numbers,
        [socket.socket(fileno=sock.take()) for sock, *_journal in pairs],
        [CallJournal(each[0].take()) if each else CallJournal.create() for _sock, *each in pairs],
    )
    daemon.keep_connections()
    containers = daemon.restore(state, places, stack)
    daemon.begin(containers, places)
    aftermath.settle(daemon.tasks, daemon.server, daemon.log)
    link.tell_serves()  # a request that kills each successor is served no more after five of them
    daemon.run(is_leaving=state["is_leaving"])


def _places(
    kept: Mapping[str, Sequence[Fd]],
    invocation: Invocation,
    environment: Mapping[str, str],
    command: tuple[str, ...],
    stack: ExitStack,
) -> Iterator[Place]:
    """Return the places of the containers whose stores can be read, an init before its execs."""

    def log_of(state_dir: StateDirectory) -> Log:
        return state_dir.open_log(f"forkshim: {invocation.container_id}")

    found = []
    for path in sorted(name for name in kept if name.startswith("/")):
        front, back = kept[path]
        store = FdStore(ends=(front.take(), back.take()))
        stack.callback(store.close)
        try:
            contents = store.look()
        except FdStoreError:
            continue  # killed before the first publication
        found.append((store, contents))
    # Sorted by path only for an order; an exec's document says that it is one.
    found.sort(key=lambda each: bool(each[1].document["container"]["config"]["is_exec"]))
    for store, contents in found:
        counters = contents.document["container"]["stream_set"]["counters"]
        container_id = contents.document["request"]["container_id"]
        left = discover.workers_with(str(contents.inode(counters)), container_id)
        try:
            yield place_of(
                contents,
                environment,
                stack,
                log_of,
                command=command,
                leftovers=Leftovers(store, left, []),
            )
        except ShimError:
            continue  # its bundle is gone
