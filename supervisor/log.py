"""shim-log.json: what the supervisor says of itself, one valid JSON object a line.

The engine reads the records of level `error`; a person reads all of them. In the foreground the
warnings and errors also go to stderr, where systemd's journal or a terminal takes them.
"""

from __future__ import annotations

import os
import select
import time

import orjson

from supervisor import fds
from supervisor.text import printable

LOG_NAME = "shim-log.json"
_LONGEST_MESSAGE = 4096


class Log:
    """Appends records. Owns its descriptor until `close`."""

    def __init__(self, fd: fds.Fd, mirror_prefix: str | None = None) -> None:
        """Write to `fd`, opened O_APPEND; with a prefix also to descriptor 2, as plain text."""
        self._fd = fd
        self._mirror_prefix = mirror_prefix

    def info(self, message: str) -> None:
        """Note what went as it should."""
        self._write("info", message)

    def notice(self, message: str) -> None:
        """Note what is as it should be, and what an operator may look for all the same."""
        self._write("info", message)
        self._mirror(message)

    def warning(self, message: str) -> None:
        """Note what an operator may want to know, while we go on."""
        self._write("warn", message)
        self._mirror(message)

    def error(self, message: str) -> None:
        """Note why the shim ends without a container; the engine shows it to its client."""
        self._write("error", message)

    def _mirror(self, message: str) -> None:
        if self._mirror_prefix is not None:
            line = f"{self._mirror_prefix}: {printable(message)}\n".encode()
            # A pipe with room for PIPE_BUF bytes takes them without waiting; one without has a
            # reader who is slow or stopped, for whom the supervisor does not wait.
            if not fds.is_writable(2):
                return
            try:
                os.write(2, line[-select.PIPE_BUF :])
            except OSError:
                return  # EIO, EPIPE: nobody is left to read it, and the file has it

    def _write(self, level: str, message: str) -> None:
        clean = printable(message[:_LONGEST_MESSAGE])
        record = {"level": level, "msg": clean, "time": rfc3339(time.time_ns())}
        try:
            os.write(self._fd.fileno(), orjson.dumps(record) + b"\n")
        except OSError:
            self._mirror(f"{LOG_NAME}: could not be written; {clean}")  # ENOSPC, EDQUOT

    def close(self) -> None:
        """Close the file."""
        self._fd.close()


def rfc3339(time_ns: int) -> str:
    """Format nanoseconds since the epoch in UTC: 2016-11-09T12:00:00.000000001Z."""
    seconds, fraction = divmod(time_ns, 10**9)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{fraction:09}Z"
