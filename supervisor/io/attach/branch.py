"""The descriptors of an output's branch, which its stream owns; see `workers.copy.branch`.

The read end of the out pipe is the source of another stream, with its own sink and workers.
"""

from __future__ import annotations

from supervisor.linux import fds
from workers.copy.route import BranchPipes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from supervisor.state.fd_store import FdReader, FdWriter

ATTACH_NAME = "attach"
"""The name of the attach clients as a sink."""

ATTACH_SUFFIX = ".attach"
"""Suffix of a branch's stream: `stdout.attach` copies stdout to the attach clients."""

SECOND_SUFFIX = ".second"
"""Suffix of a branch's stream: `stdout.second` copies stdout to a second sink."""


def is_branch(name: str) -> bool:
    """Return whether the stream of this name copies a branch."""
    return "." in name


def trunk_of(name: str) -> str:
    """Return the name of the stream that a branch belongs to; the name of any other stream."""
    return name.partition(".")[0]


class Branch:
    """Owns the tee pipe and the write end of the out pipe.

    Attributes:
        number: Index of the branch in its stream.
        is_on: Whether the next worker of the stream serves the branch.
    """

    SNAPSHOT = ("number", "is_on", "_tee_pipe", "_out_wfd")
    TRANSIENT = ()

    def __init__(
        self, number: int, tee_pipe: tuple[fds.Fd, fds.Fd], out_wfd: fds.Fd, *, is_on: bool = True
    ) -> None:
        """Own the descriptors."""
        self.number = number
        self.is_on = is_on
        self._tee_pipe = tee_pipe
        self._out_wfd = out_wfd

    @classmethod
    def restore(cls, packed: Mapping[str, Any], contents: FdReader) -> Branch:
        """Return the branch of an earlier supervisor."""
        rfd, wfd = (contents.take(index) for index in packed["voice"])
        out_wfd = contents.take(packed["out"])
        return cls(packed["number"], (rfd, wfd), out_wfd, is_on=packed["is_on"])

    def snapshot(self, fd_writer: FdWriter) -> dict[str, Any]:
        """Return what `restore` needs."""
        return {
            "number": self.number,
            "is_on": self.is_on,
            "voice": [fd_writer.add(end.fileno()) for end in self._tee_pipe],
            "out": fd_writer.add(self._out_wfd.fileno()),
        }

    def switch_on(self) -> None:
        """Serve the branch again. Makes a new tee pipe, because the old one may hold old bytes.

        Raises:
            OSError: EMFILE, ENFILE.
        """
        tee_pipe = fds.pipe()
        for end in self._tee_pipe:
            end.close()
        self._tee_pipe = tee_pipe
        self.is_on = True

    @property
    def pipes(self) -> BranchPipes:
        """What the worker of the stream gets."""
        rfd, wfd = self._tee_pipe
        return BranchPipes(self.number, (rfd.fileno(), wfd.fileno()), self._out_wfd.fileno())

    def has_room(self) -> bool:
        """Return whether the worker need not wait for the branch."""
        return not self.is_on or fds.is_writable(self._out_wfd.fileno())

    def close(self) -> None:
        """Close everything. The branch's stream then reads end of file."""
        self.is_on = False
        for end in (*self._tee_pipe, self._out_wfd):
            end.close()
