"""The worker of a stdin that attach clients write to: from many SEQPACKET sockets.

    clients in turn --splice--> empty staging pipe --splice--> container

splice(2) takes one whole packet from a socket if the pipe has room for it. Otherwise it cuts the
packet, and the rest is lost. So the worker empties the staging pipe between two packets. It reads a
packet that is larger than the pipe into memory; a kill may lose only such a packet.

The source of the route is an idle pipe of the supervisor: its end of file closes the container's
stdin, whatever the clients do.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket

from workers.common.records import dataclass, field
from workers.copy import staging
from workers.copy.route import SPLICE_BYTES, CopyError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from workers.copy.route import Route
    from workers.process.context import WorkerContext

_GONE = frozenset({errno.ECONNRESET, errno.ENOTCONN})
_PAGE_BYTES = 4096


@dataclass(slots=True)
class PacketInput:
    """The sources of one stdin.

    Attributes:
        ends_with_client: End of file of one client's input closes stdin for all.
        fds: Sockets of the clients, non-blocking; borrowed.
    """

    ends_with_client: bool
    fds: list[int] = field(default_factory=list)


def work(context: WorkerContext, route: Route, sources: PacketInput) -> None:
    """Copy until the input ends or the container stops reading, then report."""
    context.enter((*route.fds, *sources.fds))
    try:
        _copy(context, route, sources)
    except CopyError as error:
        context.send(context.make_report(error.errno, error.side))
    else:
        context.send(context.make_report())


def _copy(context: WorkerContext, route: Route, sources: PacketInput) -> None:
    if route.staging is None:
        raise ValueError("packets need a staging pipe")
    staging.empty(route, route.staging, context)
    clients = {fd: socket.socket(fileno=fd) for fd in sources.fds}
    poller = select.poll()
    poller.register(route.source_fd, 0)
    poller.register(route.sink_fd, 0)  # only POLLERR and POLLHUP: the last reader has left
    for fd in clients:
        poller.register(fd, select.POLLIN)
    while True:
        ready = dict(poller.poll())
        if ready.get(route.sink_fd, 0) & (select.POLLERR | select.POLLHUP):
            raise CopyError(OSError(errno.EPIPE, os.strerror(errno.EPIPE)), "sink")
        for fd in clients.keys() & ready.keys():
            if _take_packet(context, route, route.staging, clients[fd]):
                continue
            if sources.ends_with_client:
                return
            poller.unregister(fd)
            del clients[fd]
        if route.source_fd in ready and not clients.keys() & ready.keys():
            return


def _take_packet(
    context: WorkerContext, route: Route, pipe: tuple[int, int], client: socket.socket
) -> bool:
    """Move one packet to the container. Return False at the end of the client's input."""
    try:
        size = client.recv_into(bytearray(1), 1, socket.MSG_PEEK | socket.MSG_TRUNC)
        if size > _room(pipe):
            _pass_on(route, pipe, context, client.recv(size))
            return True
        context.set_in_flight(size)
        moved = os.splice(client.fileno(), pipe[1], SPLICE_BYTES, flags=os.SPLICE_F_NONBLOCK)
    except BlockingIOError:  # the event of poll(2) was stale
        return True
    except OSError as error:
        if error.errno not in _GONE:
            raise CopyError(error, "source") from error
        moved = 0
    staging.empty(route, pipe, context)
    if moved == 0:  # a packet without bytes, or end of file
        _refuse_more(client)
    return moved > 0


def _refuse_more(client: socket.socket) -> None:
    """Shut down the client's input, so that a successor reads end of file, too."""
    try:
        client.shutdown(socket.SHUT_RD)
    except OSError as error:
        if error.errno not in _GONE:
            raise CopyError(error, "source") from error


def _room(pipe: tuple[int, int]) -> int:
    """Return the largest packet that the empty pipe can take: splice(2) may begin within a page."""
    return fcntl.fcntl(pipe[1], fcntl.F_GETPIPE_SZ) - _PAGE_BYTES


def _pass_on(route: Route, pipe: tuple[int, int], context: WorkerContext, packet: bytes) -> None:
    """Move a large packet to the container in pieces that the pipe takes."""
    view = memoryview(packet)
    step = fcntl.fcntl(pipe[1], fcntl.F_GETPIPE_SZ)
    for start in range(0, len(view), step):
        os.write(pipe[1], view[start : start + step])
        staging.empty(route, pipe, context)
