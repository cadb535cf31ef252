"""The control fifo: its lines become verbs of `supervisor.container.api`, and nothing else."""

from __future__ import annotations

import os

from supervisor.container.api import VerbError
from supervisor.linux.errors import ShimError
from supervisor.state import control_protocol

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Never

    from supervisor.container.api import ContainerApi
    from supervisor.linux import fds
    from supervisor.linux.event_loop import Loop
    from supervisor.state.log import Log

_FEATURE = "control"
_MOST_BYTES = 4096


class ControlChannel:
    """Translates what clients write to `control`. Borrows the fifo, which may be closed."""

    SNAPSHOT = ("_parser",)
    TRANSIENT = ("_loop", "_log", "_fifo", "_api", "_is_open")

    def __init__(self, loop: Loop, log: Log, fifo: fds.Fd, api: ContainerApi) -> None:
        """Read nothing before `open`: what a client writes earlier waits in the fifo."""
        self._loop = loop
        self._log = log
        self._fifo = fifo
        self._api = api
        self._parser = control_protocol.ControlParser()
        self._is_open = False

    @property
    def rest(self) -> str:
        """The begin of a line whose end has not come."""
        return self._parser.rest

    def restore(self, rest: str) -> None:
        """Continue with the begin of a line that an earlier supervisor has read."""
        self._parser.feed(rest.encode("latin-1"))

    def open(self) -> None:
        """Serve the fifo from now on."""
        if self._fifo.is_open and not self._is_open:
            self._is_open = True
            self._loop.watch(self._fifo.fileno(), self._serve, feature=_FEATURE)

    def _serve(self) -> None:
        try:
            data = os.read(self._fifo.fileno(), _MOST_BYTES)
        except BlockingIOError:
            return
        for message in self._parser.feed(data):
            try:
                self._carry_out(message)
            except VerbError as error:  # too late: the container has ended
                self._log.info(f"control: {error}")
            except ShimError as error:  # EMFILE, for example: the next word may succeed
                self._log.warning(f"control: {error}")

    def _carry_out(self, message: control_protocol.Message) -> None:
        if isinstance(message, control_protocol.Resize):
            self._api.resize(message.columns, message.rows)
        elif isinstance(message, control_protocol.Reopen):
            self._api.reopen_logs()
        elif isinstance(message, control_protocol.Attach):
            self._api.attach(message.stream, message.fifo)
        elif isinstance(message, control_protocol.CloseStdin):
            self._api.close_stdin()
        else:
            unknown: Never = message
            raise TypeError(unknown)

    def close(self) -> None:
        """Stop serving. The owner of the fifo closes it."""
        if self._is_open:
            self._is_open = False
            self._loop.forget(self._fifo.fileno())
