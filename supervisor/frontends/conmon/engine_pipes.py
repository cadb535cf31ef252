"""The descriptors on which an engine talks with conmon(8): start, sync and attach.

The environment names them: `_OCI_STARTPIPE`, `_OCI_SYNCPIPE`, `_OCI_ATTACHPIPE`. They are sockets
of type SOCK_SEQPACKET in Podman, pipes or fifos elsewhere, so only read(2) and write(2) are used;
a write is one whole message.
"""

from __future__ import annotations

import errno
import os

from supervisor.linux import fds
from supervisor.linux.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

SYNC, START, ATTACH = "_OCI_SYNCPIPE", "_OCI_STARTPIPE", "_OCI_ATTACHPIPE"

_MOST_START_BYTES = 8192
_SHORT = {0x22: '\\"', 0x5C: "\\\\", 0x2F: "\\/"}
_SHORT |= {0x08: "\\b", 0x0C: "\\f", 0x0A: "\\n", 0x0D: "\\r", 0x09: "\\t"}


def message(key: str, number: int, words: bytes | None = None) -> bytes:
    """Return one message of the sync pipe, a line of JSON. Pure.

    Args:
        key: `data`; `pid` or `exit_code` for the first version of the interface.
        number: A pid, an exit status, or below 0 for a failure.
        words: Why it failed. Bytes from 0x80 on are passed on as they are.
    """
    if words is None:
        return b'{"%s": %d}\n' % (key.encode(), number)
    return b'{"%s": %d, "message": "%s"}\n' % (key.encode(), number, _escaped(words))


def _escaped(words: bytes) -> bytes:
    """Return the bytes of a JSON string. orjson has other escapes and refuses invalid UTF-8."""
    parts = (
        _SHORT[byte].encode()
        if byte in _SHORT
        else b"\\u%04x" % byte
        if byte < 0x20
        else bytes((byte,))
        for byte in words
    )
    return b"".join(parts)


def inherited(variable: str, environment: Mapping[str, str]) -> fds.Fd:
    """Take the descriptor that a variable names; a closed `Fd` if there is none.

    Raises:
        UsageError: The variable is no number, or the number no open descriptor.
    """
    text = environment.get(variable)
    if text is None:
        return fds.Fd(-1)
    if not (text.isascii() and text.isdecimal()):
        raise UsageError(f"unable to parse {variable}: {text!r} is no descriptor")
    try:
        os.set_inheritable(int(text), False)
    except (OSError, OverflowError):
        raise UsageError(f"unable to parse {variable}: descriptor {text} is not open") from None
    return fds.Fd(int(text))


def wait_for_start(start: fds.Fd) -> None:
    """Wait until the engine lets us go on: it has moved this process to a cgroup by then.

    End of file means the same.
    """
    if start.is_open:
        os.read(start.fileno(), _MOST_START_BYTES)


class EnginePipe:
    """The sync or the attach pipe. Owns its descriptor until `close`."""

    def __init__(self, fd: fds.Fd) -> None:
        """Take the descriptor; with a closed one nothing is ever sent."""
        self._fd = fd

    @property
    def is_open(self) -> bool:
        """Whether there is an engine that listens."""
        return self._fd.is_open

    def fileno(self) -> int:
        """Lend the descriptor; -1 once closed."""
        return self._fd.fileno()

    def send(self, text: bytes) -> None:
        """Send a message. An engine that has hung up misses it: of an exec it reads exit files.

        Raises:
            OSError: EAGAIN, say; not EPIPE.
        """
        if not self._fd.is_open:
            return
        try:
            os.write(self._fd.fileno(), text)
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.ECONNRESET):
                raise
            self._fd.close()

    def close(self) -> None:
        """Hang up."""
        self._fd.close()
