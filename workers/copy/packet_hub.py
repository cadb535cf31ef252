"""The worker that sends one output, as packets, to many SEQPACKET clients.

    source --splice--> staging pipe --readv--> ring --send--> clients

`workers.lines.reader` explains the protocol up to the ring. There are two kinds of clients:

- A consumer has connected before the first byte. It gets every byte, and the container waits for
  it, as for the reader of a pipe.
- A listener has connected later. The container waits for it while it takes packets. If the ring is
  full and the listener has taken nothing for 2 s, it is behind: the worker drops and counts its
  queue, and does not wait for it until it has everything. It stays connected.

Without a client the output is discarded.

send(2) wakes the client, which may run before the worker commits. So a kill often hits that moment,
and a packet is repeated. The supervisor replaces the worker for each new client. So it first sends
`LEAVE_SIGNAL`, and the worker exits after the commit.
"""

from __future__ import annotations

import errno
import math
import os
import select
import signal
import socket
import time
from typing import NamedTuple

from workers.common import ring as rings
from workers.common.fd_state import pending_bytes
from workers.copy import discard, staging
from workers.copy.route import CopyError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from workers.common.ring import Ring
    from workers.copy.route import Route
    from workers.process.context import WorkerContext

LEAVE_SIGNAL = signal.SIGUSR2
"""Asks the worker to exit without a report. Any other exit without a report is a death."""

PATIENCE_S = 2.0
READ_BYTES = 256 << 10
_SMALL_BYTES = 32 << 10
_GONE = frozenset({errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN})


class HubClient(NamedTuple):
    """A client, passed to the worker across fork(2).

    Attributes:
        number: Index of its cursor in the ring.
        serial: Distinguishes it from an earlier client with the same number.
        fd: Its socket, SEQPACKET and non-blocking.
        is_consumer: It has connected before the first byte.
    """

    number: int
    serial: int
    fd: int
    is_consumer: bool


def work(context: WorkerContext, route: Route, ring: Ring, clients: Sequence[HubClient]) -> None:
    """Send until the source is at end of file and each awaited client has everything, then report.

    Args:
        context: The worker's context.
        route: The source and the staging pipe. The sink is not used.
        ring: The ring of this stream, which the supervisor owns.
        clients: All connected clients.
    """
    context.enter((*route.source_fds, ring.fd, *(client.fd for client in clients)))
    if context.is_to_count:
        context.send_last(discard.count(context, route))
        return
    leaving = _Leaving()
    signal.signal(LEAVE_SIGNAL, leaving.on_signal)
    try:
        Hub(context, route, ring, clients, leaving).run()
    except CopyError as error:
        context.send_last(context.make_report(error.errno, error.side))
    else:
        context.send_last(context.make_report())


class _Leaving:
    """Exits when the supervisor sends `LEAVE_SIGNAL`, but not between `hold` and `release`."""

    def __init__(self) -> None:
        self._is_held = False
        self._is_asked = False

    def on_signal(self, _signum: int, _frame: object) -> None:
        self._is_asked = True
        if not self._is_held:
            os._exit(0)

    def hold(self) -> None:
        self._is_held = True

    def release(self) -> None:
        self._is_held = False
        if self._is_asked:
            os._exit(0)


class Hub:
    """One worker's run. Borrows everything."""

    def __init__(
        self,
        context: WorkerContext,
        route: Route,
        ring: Ring,
        clients: Sequence[HubClient],
        leaving: _Leaving,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """Continue where a killed worker stopped. `route.staging` is required."""
        if route.staging is None:
            raise ValueError("a hub needs a staging pipe")
        self._context = context
        self._route = route
        self._ring = ring
        self._staging = route.staging
        self._clock_ns = clock_ns
        self._batching = route.batching(READ_BYTES, _SMALL_BYTES)
        self._staged_bytes = pending_bytes(self._staging[0])
        ring.accept(self._staged_bytes)
        self._is_ended = False
        self._queues = [_Queue(ring, client, leaving, clock_ns()) for client in clients]
        self._count()
        context.copied_bytes = 0

    def run(self) -> None:
        """Send to the end of the stream.

        Raises:
            CopyError: The source failed.
        """
        while True:
            for queue in self._queues:
                if queue.has_packets and not queue.is_full:
                    queue.send(self._clock_ns)
            self._queues = [queue for queue in self._queues if not queue.is_gone]
            self._count()
            if self._is_ended and self._staged_bytes == 0:
                if not any(queue.has_packets for queue in self._awaited):
                    return
                self._wait_for_clients()
            elif not self._has_room():
                self._wait_for_clients()
            elif self._staged_bytes:
                self._pull()
            else:
                self._fill()

    @property
    def _awaited(self) -> list[_Queue]:
        """The clients that the container waits for."""
        return [queue for queue in self._queues if queue.is_awaited]

    def _has_room(self) -> bool:
        kept = self._ring.oldest_kept(self._ring.read().head)
        return all(queue.position >= kept for queue in self._awaited)

    def _wait_for_clients(self) -> None:
        """Wait until an awaited client has room. A listener that takes nothing is behind then."""
        now_ns = self._clock_ns()
        late = [queue for queue in self._awaited if queue.is_late(now_ns)]
        if late:
            for queue in late:
                queue.drop()
            return
        waits_s = [queue.patience_s(now_ns) for queue in self._awaited if queue.has_packets]
        self._poll(min(waits_s, default=math.inf), with_source=False)

    def _fill(self) -> None:
        if not any(queue.is_full for queue in self._queues):
            self._batching.pause_when_due()
        if not self._poll(math.inf, with_source=True):
            return
        try:
            self._staged_bytes = staging.fill(self._route, self._staging, self._context, READ_BYTES)
        except BlockingIOError:  # another process of a shared terminal has read it
            return
        self._is_ended = self._staged_bytes == 0
        self._batching.record(self._staged_bytes)

    def _pull(self) -> None:
        """Make a packet of staged bytes. A client that is behind may lose its queue."""
        kept = self._ring.oldest_kept(self._ring.read().head)
        for queue in self._queues:
            if queue.position < kept:
                queue.drop()
        room = self._ring.begin(self._staged_bytes)
        self._staged_bytes -= os.readv(self._staging[0], [room])
        self._ring.accept(self._staged_bytes)

    def _poll(self, timeout_s: float, *, with_source: bool) -> bool:
        """Wait for room of the clients, and for the source. Return whether the source is ready."""
        poller = select.poll()
        if with_source:
            poller.register(self._route.source_fd, select.POLLIN)
        full = {queue.fd: queue for queue in self._queues if queue.is_full}
        for fd in full:
            poller.register(fd, select.POLLOUT)
        timeout_ms = None if math.isinf(timeout_s) else math.ceil(timeout_s * 1000)
        is_ready = False
        for fd, _events in poller.poll(timeout_ms):
            if fd in full:
                full[fd].is_full = False
            else:
                is_ready = True
        return is_ready

    def _count(self) -> None:
        """Count the bytes that every awaited client has received."""
        total = self._ring.read().total_bytes
        delivered = min((queue.seen_bytes for queue in self._awaited), default=total)
        copied = self._context.counters.copied_bytes(self._context.slot)
        self._context.add_copied(max(0, delivered - copied))
        self._context.set_in_flight(self._staged_bytes + total - delivered)


class _Queue:
    """The packets that one client has not received yet."""

    def __init__(self, ring: Ring, client: HubClient, leaving: _Leaving, now_ns: int) -> None:
        self._ring = ring
        self._leaving = leaving
        self._client = client
        self._socket = socket.socket(fileno=client.fd)
        cursor = ring.join(client.number, client.serial)
        if cursor is None:
            state = ring.read()
            cursor = rings.Cursor(client.serial, state.head, state.total_bytes, 0, 0, now_ns)
            ring.commit_cursor(client.number, cursor)
        self._cursor = cursor
        self.is_full = False
        self.is_gone = False

    @property
    def fd(self) -> int:
        return self._client.fd

    @property
    def position(self) -> int:
        return self._cursor.position

    @property
    def seen_bytes(self) -> int:
        return self._cursor.seen_bytes

    @property
    def has_packets(self) -> bool:
        return self._cursor.position != self._ring.read().head

    @property
    def is_awaited(self) -> bool:
        return not (self.is_gone or self._cursor.is_behind)

    def patience_s(self, now_ns: int) -> float:
        """Return how many seconds the client may still take nothing; infinite for a consumer."""
        if self._client.is_consumer:
            return math.inf
        return max(0.0, PATIENCE_S - (now_ns - self._cursor.took_at_ns) / 1e9)

    def is_late(self, now_ns: int) -> bool:
        return self.is_full and self.patience_s(now_ns) == 0

    def send(self, clock_ns: Callable[[], int]) -> None:
        """Send packets until the socket has no room or there are no more."""
        head = self._ring.read().head
        while self._cursor.position != head:
            packet, end = self._ring.packet(self._cursor.position)
            # Computed before send(2): a kill between send(2) and its commit repeats the packet.
            after = self._cursor._replace(
                position=end,
                seen_bytes=self._cursor.seen_bytes + len(packet) - 1,
                is_behind=self._cursor.is_behind and int(end != head),
                took_at_ns=clock_ns(),
            )
            self._leaving.hold()
            self._ring.set_sending(self._client.number, self._cursor.position)
            try:
                self._socket.send(packet, socket.MSG_DONTWAIT)
                self._commit(after)
            except BlockingIOError:
                self._ring.set_sending(self._client.number, -1)
                self.is_full = True
                return
            except OSError as error:
                if error.errno not in _GONE:
                    raise CopyError(error, "sink") from error
                self.is_gone = True
                return
            finally:
                self._leaving.release()

    def drop(self) -> None:
        """Drop all packets of the queue. The client is behind then."""
        state = self._ring.read()
        self._commit(
            self._cursor._replace(
                position=state.head,
                seen_bytes=state.total_bytes,
                skipped_bytes=self._cursor.skipped_bytes
                + state.total_bytes
                - self._cursor.seen_bytes,
                is_behind=1,
            )
        )

    def _commit(self, cursor: rings.Cursor) -> None:
        self._ring.commit_cursor(self._client.number, cursor)
        self._cursor = cursor
