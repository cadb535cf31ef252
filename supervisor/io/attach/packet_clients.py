"""Attach clients over SEQPACKET sockets: conmon's attach protocol, as Podman and CRI-O speak it.

A client gets all outputs, and may write to stdin. A worker sends each output
(`workers.copy.packet_hub`). Where the setting is `attach` it is the output's own worker. Otherwise
it is the worker of a branch, which is on while there are clients. Podman connects before it starts
the container. So the supervisor accepts all waiting connections before it forks an output's first
worker.
"""

from __future__ import annotations

import errno
import socket
from functools import partial

from supervisor.io.attach.branch import ATTACH_SUFFIX
from supervisor.linux import fds
from supervisor.linux.errors import ShimError, reason
from supervisor.sinks.attach_sink import AttachSink
from workers.common.records import dataclass
from workers.common.ring import MAX_CLIENTS
from workers.copy.packet_hub import HubClient
from workers.process.counters import MOST_BYTES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from supervisor.io.stream import Stream
    from supervisor.io.stream_set import StreamSet
    from supervisor.linux.event_loop import Loop
    from supervisor.sinks.sink import Sink
    from supervisor.state.fd_store import FdReader, FdWriter
    from supervisor.state.log import Log

_FEATURE = "attach socket"
_QUEUE_BYTES = 1 << 20
"""Kernel memory per client. By default a socket holds 13 packets of 8193 bytes."""

_SO_SNDBUFFORCE = 32
"""Source: asm-generic/socket.h; socket(7)."""

_ACCEPT_AGAIN_S = 1.0
"""Pause after EMFILE. The client waits in the backlog."""


@dataclass(slots=True)
class _Client:
    """A connection.

    Attributes:
        number: Index in the ring's cursors.
        serial: Counts connections, so that a number can be used again.
        is_consumer: It has connected before the first byte, so it gets every byte.
        socket: The connection; owned.
        hears: False once it was hung up: only the bytes that it has sent are of use.
    """

    number: int
    serial: int
    is_consumer: bool
    socket: fds.Fd
    hears: bool = True


class PacketClients:
    """Owns the listening socket and all clients of one container."""

    SNAPSHOT = ("_listener", "_clients", "_serial")
    TRANSIENT = ("_loop", "_log", "_streams", "_line_sinks", "_accept_again")

    def __init__(
        self, loop: Loop, log: Log, streams: StreamSet, line_sinks: dict[str, Sink]
    ) -> None:
        """Borrow everything. The owner of `line_sinks` owns the sinks of branches in it, too."""
        self._loop = loop
        self._log = log
        self._streams = streams
        self._line_sinks = line_sinks
        self._listener = fds.Fd(-1)
        self._clients: list[_Client] = []
        self._serial = 0
        self._accept_again = loop.timer(self._listen, feature=_FEATURE)

    def listen(self, listener: fds.Fd) -> None:
        """Own and watch the listening socket, which is SEQPACKET and non-blocking."""
        self._listener = listener
        self._listen()

    def _listen(self) -> None:
        if self._listener.is_open:
            self._loop.watch(self._listener.fileno(), self.accept_pending, feature=_FEATURE)

    def accept_pending(self) -> None:
        """Accept all clients that have connected."""
        if not self._listener.is_open or self._accept_again.is_running:
            return
        listener = socket.socket(fileno=self._listener.fileno())
        try:
            while True:
                connected, _address = listener.accept()
                connected.setblocking(False)
                self._take(fds.Fd(connected.detach()))
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno in (errno.ECONNABORTED, errno.EINTR):
                return
            self._log.warning(
                f"attach socket: accept: {reason(error)}; trying again in {_ACCEPT_AGAIN_S:.0f} s"
            )
            self._loop.forget(self._listener.fileno())
            self._accept_again.start(_ACCEPT_AGAIN_S)
        finally:
            listener.detach()

    def _take(self, connected: fds.Fd) -> None:
        taken = {client.number for client in self._clients}
        number = next((each for each in range(MAX_CLIENTS) if each not in taken), None)
        if number is None:
            self._log.warning(
                f"attach socket: rejected, {MAX_CLIENTS} clients are connected already"
            )
            connected.close()
            return
        _enlarge_queue(connected.fileno())
        self._serial += 1
        is_consumer = not self._streams.has_output_begun
        client = _Client(number, self._serial, is_consumer, connected)
        self._clients.append(client)
        self._watch(client)
        self._changed()

    def stream_added(self) -> None:
        """Serve the clients a stream that came after them: the console of an exec'd process."""
        if self._clients:
            self._changed()

    def _watch(self, client: _Client) -> None:
        # Only for POLLHUP: the worker of stdin reads the input.
        self._loop.watch(
            client.socket.fileno(), partial(self._left, client), feature=_FEATURE, is_read=False
        )

    def _left(self, client: _Client) -> None:
        self._loop.forget(client.socket.fileno())
        client.hears = False
        self._tell_of_skipped(client)
        self._changed(is_more=False)

    def _tell_of_skipped(self, client: _Client) -> None:
        for name, sink in self._line_sinks.items():
            if isinstance(sink, AttachSink):
                cursor = sink.ring.cursor(client.number)
                if cursor.serial != client.serial:
                    continue
                of = f"attach client {client.serial}, {name.removesuffix(ATTACH_SUFFIX)}"
                if cursor.skipped_bytes:
                    skipped = min(cursor.skipped_bytes, MOST_BYTES)
                    self._log.info(f"{of}: skipped {skipped} bytes, client too slow")
                if repeats := min(sink.ring.repeats(client.number), MOST_BYTES):
                    self._log.info(
                        f"{of}: {repeats} packets may have been sent twice, workers died"
                    )

    # What the workers get.

    def _changed(self, *, is_more: bool = True) -> None:
        """Give the present clients to the workers and to the fd store."""
        self._forget_useless()
        stdin = next((each for each in self._streams.streams if each.packet_input), None)
        if stdin is not None and stdin.packet_input is not None and not stdin.is_closed:
            stdin.packet_input.fds[:] = [client.socket.fileno() for client in self._clients]
        hearers = self._hearers()
        for sink in self._line_sinks.values():
            if isinstance(sink, AttachSink):
                sink.clients = hearers
        for trunk in self._streams.trunks:
            try:
                self._serve(trunk, is_more=is_more)
            except (OSError, ShimError, ValueError) as error:
                why = reason(error) if isinstance(error, OSError) else error
                self._log.warning(f"attach socket: cannot serve {trunk.name}: {why}")
        if stdin is not None and is_more and not stdin.is_closed:
            self._streams.slot(stdin).begin_or_replace()
        self._streams.changed()

    def _hearers(self) -> tuple[HubClient, ...]:
        return tuple(
            HubClient(each.number, each.serial, each.socket.fileno(), each.is_consumer)
            for each in self._clients
            if each.hears
        )

    def _serve(self, trunk: Stream, *, is_more: bool) -> None:
        """Have the output's worker, or the worker of its branch, send to the clients.

        A worker keeps the socket of a client that has left until the next client comes: replacing
        the worker may repeat a packet to the other clients.
        """
        hearers = self._hearers()
        if isinstance(trunk.line_sink, AttachSink):
            if is_more or not hearers:
                self._streams.slot(trunk).replace()
            return
        heard = self._streams.attach_branch_of(trunk)
        if heard is None:
            if hearers:
                self._add_branch(trunk, hearers)
            return
        branch = trunk.branches[-1]  # a second sink has had its branch from the beginning
        if hearers and not branch.is_on:
            branch.switch_on()
            self._streams.slot(trunk).replace()
        elif not hearers and branch.is_on:
            branch.is_on = False
            self._streams.slot(trunk).replace()
            self._streams.slot(heard).park()
            return
        if is_more:
            self._streams.slot(heard).replace()

    def _add_branch(self, trunk: Stream, hearers: tuple[HubClient, ...]) -> None:
        name = trunk.name + ATTACH_SUFFIX
        sink = AttachSink(trunk.name)
        try:
            _branch, source = trunk.add_branch()
        except (OSError, ValueError):
            sink.close()
            raise
        sink.clients = hearers
        self._line_sinks[name] = sink
        stream = self._streams.null_stream(name, source, sink)
        self._streams.slot(stream).start()
        self._streams.slot(trunk).replace()

    def _forget_useless(self) -> None:
        """Close the sockets of clients that have left, unless stdin may still read from them."""
        stdin = next((each for each in self._streams.streams if each.packet_input), None)
        for client in [each for each in self._clients if not each.hears]:
            sources = None if stdin is None or stdin.is_closed else stdin.packet_input
            is_of_use = sources is not None and (
                sources.ends_with_client or fds.pending_bytes(client.socket.fileno()) > 0
            )
            if not is_of_use:
                self._clients.remove(client)
                client.socket.close()

    # Handing over.

    def snapshot(self, fd_writer: FdWriter) -> dict[str, Any]:
        """Return what `restore` of the next supervisor needs."""
        return {
            "listener": fd_writer.add(self._listener.fileno()) if self._listener.is_open else -1,
            "serial": self._serial,
            "clients": [
                {
                    "number": each.number,
                    "serial": each.serial,
                    "is_consumer": each.is_consumer,
                    "hears": each.hears,
                    "socket": fd_writer.add(each.socket.fileno()),
                }
                for each in self._clients
            ],
        }

    def restore(self, packed: Mapping[str, Any], contents: FdReader) -> None:
        """Take the clients of an earlier supervisor; `StreamSet.renew` forks the workers."""
        self._serial = packed["serial"]
        for each in packed["clients"]:
            client = _Client(
                each["number"],
                each["serial"],
                each["is_consumer"],
                contents.take(each["socket"]),
                each["hears"],
            )
            self._clients.append(client)
            if client.hears:
                self._watch(client)
        hearers = self._hearers()
        for sink in self._line_sinks.values():
            if isinstance(sink, AttachSink):
                sink.clients = hearers
        for stream in self._streams.streams:
            if stream.packet_input is not None:
                stream.packet_input.fds[:] = [each.socket.fileno() for each in self._clients]
        listener = contents.take(packed["listener"])
        if listener.is_open:
            self.listen(listener)

    def close(self) -> None:
        """Close the listening socket and all clients, which then read end of file."""
        self._accept_again.cancel()
        if self._listener.is_open:
            if self._listener.fileno() in self._loop.watches:
                self._loop.forget(self._listener.fileno())
            self._listener.close()
        for client in self._clients:
            if client.hears:
                self._loop.forget(client.socket.fileno())
                self._tell_of_skipped(client)
            client.socket.close()
        self._clients.clear()


def _enlarge_queue(fd: int) -> None:
    """Enlarge the send buffer to 1 MiB, or as far as the user may. Source: socket(7)."""
    connected = socket.socket(fileno=fd)
    try:
        connected.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _QUEUE_BYTES)
    except PermissionError:  # without CAP_NET_ADMIN net.core.wmem_max is the limit
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _QUEUE_BYTES)
    finally:
        connected.detach()
