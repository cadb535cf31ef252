"""A branch of an output as its stream owns it; see `workers.copy.branch`.

What the branch brings is a stream of its own, with a sink and workers of its own.
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
"""Behind the name of the stream, in the name of the stream that its attach clients hear."""


class Branch:
    """Owns the voice and the write end of the out pipe.

    Attributes:
        is_on: The next worker of the stream serves the branch.
    """

    SNAPSHOT = ("number", "is_on", "_voice", "_out_wfd")
    TRANSIENT = ()

    def __init__(
        self, number: int, voice: tuple[fds.Fd, fds.Fd], out_wfd: fds.Fd, *, is_on: bool = True
    ) -> None:
        """Own the descriptors."""
        self.number = number
        self.is_on = is_on
        self._voice = voice
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
            "voice": [fd_writer.add(end.fileno()) for end in self._voice],
            "out": fd_writer.add(self._out_wfd.fileno()),
        }

    def switch_on(self) -> None:
        """Serve the branch again. The voice is a new one: the old one holds old bytes.

        Raises:
            OSError: EMFILE, ENFILE.
        """
        voice = fds.pipe()
        for end in self._voice:
            end.close()
        self._voice = voice
        self.is_on = True

    @property
    def pipes(self) -> BranchPipes:
        """What the worker of the stream gets."""
        rfd, wfd = self._voice
        return BranchPipes(self.number, (rfd.fileno(), wfd.fileno()), self._out_wfd.fileno())

    def has_room(self) -> bool:
        """Say whether the worker need not wait for the branch."""
        return not self.is_on or fds.is_writable(self._out_wfd.fileno())

    def close(self) -> None:
        """Close everything: the branch comes to its end."""
        self.is_on = False
        for end in (*self._voice, self._out_wfd):
            end.close()
