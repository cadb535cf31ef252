"""The daemon after a reload: it goes on with everything that the program before it had.

Also the dry run of that, in a child: it restores all from copies, and serves nothing.
"""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack

from supervisor.container.restore import place_of
from supervisor.frontends.containerd.group_socket import GroupSocket
from supervisor.frontends.containerd.handover.group_journal import GroupJournal
from supervisor.frontends.containerd.handover.holder_link import HolderLink
from supervisor.frontends.containerd.serve import Daemon, in_group
from supervisor.handover import reexec
from supervisor.handover.own_command import own_command
from supervisor.linux.fds import Fd
from supervisor.state.fd_store import FdStoreError
from supervisor.state.log import Log
from supervisor.wire.call_journal import CallJournal
from supervisor.wire.messages import Envelope
from supervisor.wire.protobuf import WireError, decode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from supervisor.container.container import Container
    from supervisor.container.restore import Place
    from supervisor.frontends.containerd.invocation import Invocation
    from supervisor.state.directory import StateDirectory


def go_on(invocation: Invocation) -> None:
    """Serve the group until the daemon leaves. A dry run ends this process instead.

    Raises:
        ShimError: What the program before this one had cannot be used.
    """
    command = own_command()
    arrival = reexec.arrive()
    if arrival is None:
        raise FdStoreError("handover: no reload has started this program")
    with ExitStack() as stack:
        stack.callback(arrival.contents.close)
        try:
            daemon, containers, places = _restored(arrival, invocation, command, stack)
        except (KeyError, TypeError, ValueError, WireError) as error:
            raise FdStoreError(f"handover: {type(error).__name__}: {error}") from error
        if arrival.is_rehearsal:
            reexec.try_a_worker(places[0].log, f"forkshim: {invocation.container_id}")
            reexec.end_rehearsal()
        daemon.begin(containers, places)
        daemon.run()


def _restored(
    arrival: reexec.Arrival, invocation: Invocation, command: tuple[str, ...], stack: ExitStack
) -> tuple[Daemon, list[Container], list[Place]]:
    environment, contents = dict(os.environ), arrival.contents
    document = contents.document["front_end"]

    def sock_of(index: int) -> socket.socket:
        return socket.socket(fileno=contents.take(index).take())

    def log_of(state_dir: StateDirectory) -> Log:
        if arrival.is_rehearsal:
            return Log(Fd(os.dup(2)))
        return state_dir.open_log(f"forkshim: {invocation.container_id}")

    device, inode = document["identity"]
    found = GroupSocket(document["path"], sock_of(document["listener"]), (device, inode))
    for _topic, _container_id, envelope in document["events"]:
        decode(Envelope, bytes.fromhex(envelope))
    # What a dry run has are copies: it sends no events, and tells and notes nothing.
    is_real = not arrival.is_rehearsal
    link = HolderLink.restore(document["link"], contents, command) if is_real else None
    noted = CallJournal(contents.take(document["journal"]).take()) if is_real else None
    daemon = Daemon(
        found,
        invocation,
        environment,
        command,
        link=link,
        journal=GroupJournal(noted, noted.read()) if noted else None,
        events=document["events"] if is_real else [],
    )
    places = [
        in_group(place_of(each, environment, stack, log_of, command=command), link)
        for each in arrival.containers
    ]
    socks = [sock_of(each) for each in document["socks"]]
    taken = [contents.take(each).take() for each in document["journals"]] if is_real else []
    daemon.server.restore(socks, document["connections"], [*map(CallJournal, taken)])
    daemon.keep_connections()
    return daemon, daemon.restore(document["tasks"], places, stack), places
