"""Serves `ctl` and `winsz` of one container: lines become verbs of the core."""

from __future__ import annotations

import os

from supervisor.container.api import ContainerApi, VerbError
from supervisor.frontends.conmon.control_lines import ControlLines, Fifo, Reopen, Resize
from supervisor.linux.errors import ShimError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from supervisor.frontends.conmon.bundle_files import BundleFiles
    from supervisor.linux import fds
    from supervisor.linux.event_loop import Loop
    from supervisor.state.log import Log

_FEATURE = "ctl"
_MOST_BYTES = 4096


class Control:
    """Owns both fifos until `close`. What is written before `serve` waits in them."""

    def __init__(self, files: BundleFiles) -> None:
        """Make the fifos.

        Raises:
            ShimError: One cannot be made.
        """
        self._fifos: list[tuple[fds.Fd, ControlLines]] = []
        for fifo in Fifo:
            self._fifos.append((files.make_fifo(fifo.name.lower()), ControlLines(fifo)))
        self._loop: Loop | None = None

    def serve(self, loop: Loop, log: Log, api: ContainerApi) -> None:
        """Serve from now on: the container and its terminal are there."""
        self._loop = loop

        def read(fd: int, lines: ControlLines) -> None:
            try:
                data = os.read(fd, _MOST_BYTES)
            except BlockingIOError:
                return
            for meaning in lines.feed(data):
                try:
                    if isinstance(meaning, Resize):
                        api.resize(meaning.columns, meaning.rows)
                    elif isinstance(meaning, Reopen):
                        api.renew_logs()
                    else:
                        log.warning(f"ctl: {meaning.why}")
                except VerbError as error:  # too late: the container has ended
                    log.info(f"ctl: {error}")
                except ShimError as error:
                    log.warning(f"ctl: {error}")

        for fifo, lines in self._fifos:
            fd = fifo.fileno()
            loop.watch(fd, lambda fd=fd, lines=lines: read(fd, lines), feature=_FEATURE)  # type: ignore[misc]

    def close(self) -> None:
        """Stop serving."""
        for fifo, _lines in self._fifos:
            if self._loop is not None:
                self._loop.forget(fifo.fileno())
            fifo.close()
        self._fifos = []
