"""Serves `ctl` and `winsz` of one container: lines become verbs of the core."""

from __future__ import annotations

import os

from supervisor.container.api import ContainerApi, VerbError
from supervisor.frontends.conmon.control_lines import ControlLines, Fifo, Reopen, Resize
from supervisor.linux.errors import ShimError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from supervisor.frontends.conmon.bundle_files import BundleFiles
    from supervisor.linux import fds
    from supervisor.linux.event_loop import Loop
    from supervisor.state.fd_store import FdReader, FdWriter
    from supervisor.state.log import Log

_FEATURE = "ctl"
_MOST_BYTES = 4096


class Control:
    """Owns both fifos until `close`. What is written before `serve` waits in them."""

    def __init__(self, fifos: list[tuple[fds.Fd, ControlLines]]) -> None:
        """Own the fifos; see `make` and `restore`."""
        self._fifos = fifos
        self._loop: Loop | None = None

    @classmethod
    def make(cls, files: BundleFiles) -> Control:
        """Make the fifos.

        Raises:
            ShimError: One cannot be made.
        """
        return cls([(files.make_fifo(fifo.name.lower()), ControlLines(fifo)) for fifo in Fifo])

    def snapshot(self, fd_writer: FdWriter) -> list[dict[str, Any]]:
        """Return what `restore` needs."""
        return [
            {"fd": fd_writer.add(fifo.fileno()), **lines.snapshot()} for fifo, lines in self._fifos
        ]

    @classmethod
    def restore(cls, packed: Sequence[Mapping[str, Any]], contents: FdReader) -> Control:
        """Return the fifos of an earlier supervisor."""
        return cls(
            [
                (contents.take(each["fd"]), ControlLines.restore(fifo, each))
                for fifo, each in zip(Fifo, packed, strict=True)
            ]
        )

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
