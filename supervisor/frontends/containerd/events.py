"""Events to containerd: one queue in order, each event at least once, for as long as it takes.

containerd may be down for an hour; its clients learn of a container's exit from these events alone.
So an event stays in the queue until containerd has acknowledged it. Answers to requests never wait
for events; only Shutdown does, by `flush`, for 5 s. The queue is bounded: see `MOST_EVENTS`.

The way is ttrpc's Forward. `containerd publish`, a process per event, serves a containerd that
names no ttrpc socket or does not know Forward.

Source: the events service in api/services/ttrpc/events/v1 of containerd, 1.3 and later.
"""

from __future__ import annotations

import os
import socket
import time

from supervisor.linux.errors import ShimError, reason
from supervisor.linux.exit_status import shell_status
from supervisor.linux.fds import Fd
from supervisor.wire.frames import Code
from supervisor.wire.messages import (
    EVENT_TOPICS,
    EVENTS_SERVICE,
    Envelope,
    ForwardRequest,
    timestamp,
)
from supervisor.wire.messages import Any as AnyMessage
from supervisor.wire.protobuf import decode, encode, pack_any
from supervisor.wire.ttrpc import ClientConnection
from workers.common.records import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from supervisor.frontends.containerd.handover.group_journal import GroupJournal
    from supervisor.linux.event_loop import Loop
    from supervisor.linux.exit_status import Termination
    from supervisor.oci.invoke import RuntimeInvoker
    from supervisor.state.log import Log
    from supervisor.wire.call_journal import CallJournal

MOST_EVENTS = 4096
"""A full queue loses its oldest event of the first of these kinds that it has."""
_LOST_FIRST = (
    ("/tasks/oom", "/tasks/create"),
    ("/tasks/exec-added", "/tasks/exec-started", "/tasks/paused", "/tasks/resumed"),
    ("/tasks/start", "/tasks/checkpointed"),
    ("/tasks/delete",),
    ("/tasks/exit",),
)

CALL_LIMIT_S = 5.0
FLUSH_LIMIT_S = 5.0
_LONGEST_PAUSE_S = 5
_NOTED_EVERY = 64
"""A note has the whole queue. While 4096 events move, a note of each would take 25 s; a kill
repeats at most so many events instead."""


@dataclass(frozen=True, slots=True)
class QueuedEvent:
    """`envelope` is an encoded `Envelope`, stamped when the event happened."""

    topic: str
    container_id: str
    envelope: bytes


class PublishCommand:
    """`containerd publish`: the event's Any on its stdin, one process per event."""

    def __init__(self, invoker: RuntimeInvoker, binary: str, address: str) -> None:
        """Borrow the invoker. `binary` and `address` are the shim's flags of these names."""
        self._invoker = invoker
        self._binary = binary
        self._address = address

    def run(self, event: QueuedEvent, on_end: Callable[[str], None]) -> None:
        """Start it; `on_end` gets what failed, empty if nothing has.

        Raises:
            ShimError: It could not be started.
            OSError: memfd_create(2) failed.
        """
        envelope = decode(Envelope, event.envelope)
        words = ["--topic", event.topic, "--namespace", envelope["namespace"]]
        # A file, not a pipe: the command reads it at its own pace, and the shim does not wait.
        stdin = Fd(os.memfd_create("event", os.MFD_CLOEXEC))
        null = Fd(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC))
        try:
            os.write(stdin.fileno(), encode(AnyMessage, envelope["event"]))
            os.lseek(stdin.fileno(), 0, os.SEEK_SET)

            def on_exit(termination: Termination) -> None:
                status = shell_status(termination)
                on_end(f"{self._binary} publish: exit status {status}" if status else "")

            self._invoker.run(
                [self._binary, "--address", self._address, "publish", *words],
                on_exit,
                cwd="/",
                stdio=(stdin.fileno(), null.fileno(), null.fileno()),
                limit_s=CALL_LIMIT_S,
                program=self._binary,
            )
        finally:
            stdin.close()
            null.close()


def journaled(journal: CallJournal) -> list[list[str]]:
    """Return the events of a killed process that are not acknowledged, for `restored`."""
    state = journal.read()
    return [] if state is None else [[*event] for event in state["events"]]


class EventQueue:
    """Sends events in order, one at a time; a lost connection or an error repeats the event.

    After a failure the queue pauses 1, 2, ... 5 s, then 5 s each time. The log has one line when
    events begin to wait, and one when they move again.

    Many attributes: the queue, its connection, its journal and the command in their place.
    """

    def __init__(
        self,
        loop: Loop,
        log: Log,
        *,
        namespace: str,
        ttrpc_address: str,
        command: PublishCommand | None = None,
        restored: Sequence[Sequence[str]] = (),
        journal: CallJournal | GroupJournal | None = None,
    ) -> None:
        """Borrow everything.

        `ttrpc_address` is the path of containerd's socket, with or without unix://; it may be
        empty. `command` is the way without ttrpc, None if there is none. `restored` is what
        `snapshot` has returned, or `journaled` of the journal of a killed process. `journal` gets
        each event before its first try; it is owned.
        """
        self._loop = loop
        self._log = log
        self._namespace = namespace
        self._path = ttrpc_address.removeprefix("unix://")
        self._command = command
        self._uses_command = command is not None and not self._path
        self._events = [
            QueuedEvent(topic, container_id, bytes.fromhex(envelope))
            for topic, container_id, envelope in restored
        ]
        self._journal = journal
        self._client: ClientConnection | None = None
        self._is_sending = False
        self._failures = 0
        self._lost = 0
        self._limit = loop.timer(lambda: self._disconnect("no answer"))
        self._pause = loop.timer(self._send_next)
        self._flush_limit = loop.timer(self._end_flush)
        self._on_flushed: Callable[[int], None] | None = None
        self._send_next()

    def __len__(self) -> int:
        """Return how many events are not acknowledged."""
        return len(self._events)

    @property
    def is_sending(self) -> bool:
        """Whether an event is sent and not acknowledged: who sends it again may send it twice."""
        return self._is_sending

    def snapshot(self) -> list[list[str]]:
        """Return the events that are not acknowledged, in values that JSON has."""
        return [[event.topic, event.container_id, event.envelope.hex()] for event in self._events]

    def publish(self, topic: str, values: Mapping[str, Any]) -> None:
        """Queue an event. `values` are those of `EVENT_TOPICS[topic]`, with a container_id."""
        envelope = encode(
            Envelope,
            {
                "timestamp": timestamp(time.time_ns()),
                "namespace": self._namespace,
                "topic": topic,
                "event": pack_any(EVENT_TOPICS[topic], values),
            },
        )
        if len(self._events) >= MOST_EVENTS:
            self._lose_one()
        self._events.append(QueuedEvent(topic, values["container_id"], envelope))
        self._note()
        self._send_next()

    def forget(self, container_id: str) -> None:
        """Drop the waiting events of a container that `delete` has cleaned up.

        containerd publishes its own exit for it; a second one would confuse its clients.
        """
        sending = self._events[:1] if self._is_sending else []
        waiting = self._events[len(sending) :]
        self._events = sending + [each for each in waiting if each.container_id != container_id]
        self._note()
        self._check_flushed()

    def _note(self) -> None:
        if self._journal is not None:
            self._journal.write({"events": self.snapshot()})

    def flush(self, on_flushed: Callable[[int], None], limit_s: float = FLUSH_LIMIT_S) -> None:
        """Call back when the queue is empty or the time is over, with the number of events left."""
        self._on_flushed = on_flushed
        self._flush_limit.start(limit_s)
        self._check_flushed()

    def close(self) -> None:
        """Close the connection and stop every timer. What is queued stays queued."""
        for timer in (self._limit, self._pause, self._flush_limit):
            timer.cancel()
        if self._client is not None:
            self._client.close()
            self._client = None
        if self._journal is not None:
            self._journal.close()
            self._journal = None

    def _send_next(self) -> None:
        if self._is_sending or self._pause.is_running or not self._events:
            return
        self._is_sending = True
        event = self._events[0]
        if self._uses_command and self._command is not None:
            try:
                self._command.run(event, self._on_published)
            except ShimError as error:
                self._fail(str(error))
            except OSError as error:
                self._fail(f"publish: {reason(error)}")
            return
        try:
            client = self._client or self._connect()
        except OSError as error:
            self._fail(f"connect to {self._path}: {reason(error)}")
            return
        self._limit.start(CALL_LIMIT_S)
        client.call(
            EVENTS_SERVICE,
            "Forward",
            # The envelope is field 1 of the request: its bytes are stored, not its values.
            encode(ForwardRequest, {"envelope": decode(Envelope, event.envelope)}),
            self._on_answer,
            timeout_ns=int(CALL_LIMIT_S * 1e9),
            metadata={"containerd-namespace-ttrpc": self._namespace},
        )

    def _connect(self) -> ClientConnection:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # Not blocking: a full backlog is EAGAIN, and the next try comes in a second.
            sock.setblocking(False)
            sock.connect(self._path)
            self._client = ClientConnection(self._loop, sock, self._disconnect)
        except OSError:
            sock.close()
            raise
        return self._client

    def _disconnect(self, why: str) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None
        if self._is_sending:
            self._fail(why)

    def _on_answer(self, code: int, message: str, _payload: bytes) -> None:
        if code == Code.OK:
            self._acknowledge()
        elif code == Code.INVALID_ARGUMENT:
            topic = self._events[0].topic
            self._log.warning(f"event {topic}: containerd refuses it, dropped: {message}")
            self._acknowledge()
        elif code == Code.UNIMPLEMENTED and self._command is not None:
            self._log.info(f"events: {message}; using containerd publish")
            self._uses_command = True
            self._limit.cancel()
            self._is_sending = False
            self._send_next()
        else:
            self._fail(f"containerd answers {message} (code {code})")

    def _on_published(self, failure: str) -> None:
        if failure:
            self._fail(failure)
        else:
            self._acknowledge()

    def _acknowledge(self) -> None:
        self._limit.cancel()
        self._is_sending = False
        del self._events[0]
        if len(self._events) % _NOTED_EVERY == 0:
            self._note()
        if self._failures:
            self._log.info(f"events: containerd takes them again, {len(self._events)} waiting")
            self._failures = 0
        if self._lost and not self._events:
            self._log.warning(f"events: {self._lost} were dropped, the queue was full")
            self._lost = 0
        self._send_next()
        self._check_flushed()

    def _fail(self, why: str) -> None:
        self._limit.cancel()
        self._is_sending = False
        if not self._failures:
            self._log.warning(f"events: {why}; {len(self._events)} waiting, trying again")
        self._failures += 1
        self._pause.start(min(self._failures, _LONGEST_PAUSE_S))

    def _lose_one(self) -> None:
        waiting = range(1 if self._is_sending else 0, len(self._events))
        for topics in _LOST_FIRST:
            found = next((at for at in waiting if self._events[at].topic in topics), None)
            if found is not None:
                event = self._events.pop(found)
                if not self._lost:
                    words = f"dropped {event.topic} of {event.container_id}"
                    self._log.warning(f"events: {MOST_EVENTS} are waiting; {words}")
                self._lost += 1
                return

    def _check_flushed(self) -> None:
        if self._on_flushed is not None and not self._events:
            self._end_flush()

    def _end_flush(self) -> None:
        self._flush_limit.cancel()
        on_flushed, self._on_flushed = self._on_flushed, None
        if on_flushed is not None:
            on_flushed(len(self._events))
