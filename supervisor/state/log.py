"""shim-log.json: the supervisor's own log, one JSON object per line.

The engine reads the records of level `error`; operators read all of them. Notices and warnings also
go to the journal if the container's lines go there (`use_journal`). In the foreground they go to
stderr, too. If stderr is the journal, lines have a priority `<N>`, and no message is sent twice.
The system's log gets what `use_syslog` asks for.
"""

from __future__ import annotations

import os
import select
import time

from supervisor.linux import fds, plain_json
from supervisor.linux.errors import reason
from supervisor.linux.text import printable
from supervisor.state.journal_log import ERR, JOURNAL_SOCKET, NOTICE, WARNING, JournalLog, Kind
from supervisor.state.syslog import SYSLOG_SOCKET, Syslog

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection

LOG_NAME = "shim-log.json"
_LONGEST_MESSAGE = 4096


class Log:
    """Appends records. Owns its descriptor until `close`."""

    def __init__(self, fd: fds.Fd, mirror_prefix: str | None = None) -> None:
        """Own `fd`, opened with O_APPEND. With a prefix, write to descriptor 2, too, as text."""
        self._fd = fd
        self._mirror_prefix = mirror_prefix
        self._journal: JournalLog | None = None
        self._syslog: Syslog | None = None

    @property
    def fds(self) -> tuple[int, ...]:
        """The descriptors that a forked process keeps to write records itself; borrowed."""
        others = (each.fileno() for each in (self._journal, self._syslog) if each is not None)
        return (self._fd.fileno(), *others)

    def use_journal(self, container_id: str, path: str = JOURNAL_SOCKET) -> None:
        """Also send notices, warnings and `tell` to the journal, as records about the container."""
        try:
            self._journal = JournalLog(container_id, path)
        except OSError as error:  # EMFILE
            self.warning(f"journal: create socket: {reason(error)}; messages go to stderr")

    def use_syslog(
        self, container_id: str, levels: Collection[str], path: str = SYSLOG_SOCKET
    ) -> None:
        """Also send messages to the system's log; `levels`: see `Syslog`."""
        try:
            self._syslog = Syslog(container_id, levels, path)
        except OSError as error:  # EMFILE
            self.warning(f"syslog: create socket: {reason(error)}; messages go to {LOG_NAME} alone")

    def info(self, message: str) -> None:
        """Log a normal event."""
        self._write("info", message)

    def notice(self, message: str, kind: Kind = Kind.OTHER) -> None:
        """Log a normal event that is of interest to an operator."""
        self._write("info", message)
        self._mirror(message, NOTICE, kind)

    def warning(self, message: str, kind: Kind = Kind.OTHER) -> None:
        """Log a problem that the supervisor survives."""
        self._write("warn", message)
        self._mirror(message, WARNING, kind)

    def error(self, message: str) -> None:
        """Log why the shim ends without a container. The engine shows the message to its client."""
        self._write("error", message)

    def tell(self, message: str) -> bool:
        """Send an error to the journal. Return False if stderr needs the message, too."""
        sent = self._journal is not None and self._journal.send(printable(message), ERR, Kind.OTHER)
        return sent and is_journal(2)

    def _mirror(self, message: str, priority: int, kind: Kind = Kind.OTHER) -> None:
        sent = self._journal is not None and self._journal.send(printable(message), priority, kind)
        if self._mirror_prefix is None or (sent and is_journal(2)):
            return
        line = line_for_stderr(f"{self._mirror_prefix}: {message}", priority)
        # write(2) to a pipe with room for PIPE_BUF bytes does not block. If there is no room, the
        # reader is slow or stopped, and the supervisor drops the message.
        if not fds.is_writable(2):
            return
        try:
            os.write(2, line.encode(errors="replace")[: select.PIPE_BUF - 1] + b"\n")
        except OSError:
            return  # EIO, EPIPE: stderr has no reader; the file has the message

    def _write(self, level: str, message: str) -> None:
        clean = printable(message[:_LONGEST_MESSAGE])
        if self._syslog is not None:
            self._syslog.send(level, clean)
        record = {"level": level, "msg": clean, "time": rfc3339(time.time_ns())}
        try:
            os.write(self._fd.fileno(), plain_json.dumps(record) + b"\n")
        except OSError:
            self._mirror(f"{LOG_NAME}: cannot write; {clean}", WARNING)  # ENOSPC, EDQUOT

    def close(self) -> None:
        """Close the file and the sockets."""
        self._fd.close()
        if self._syslog is not None:
            self._syslog.close()
            self._syslog = None
        if self._journal is not None:
            self._journal.close()
            self._journal = None


def is_journal(fd: int) -> bool:
    """Return whether a descriptor is systemd's connection to the journal.

    Source: systemd.exec(5), JOURNAL_STREAM: device and inode of stdout or stderr.
    """
    try:
        stat = os.fstat(fd)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{stat.st_dev}:{stat.st_ino}"


def line_for_stderr(line: str, priority: int) -> str:
    """Return a printable line for stderr, with a priority if stderr is the journal.

    Source: sd-daemon(3); SyslogLevelPrefix= in systemd.exec(5).
    """
    head = f"<{priority}>" if is_journal(2) else ""
    return head + printable(line)


def rfc3339(time_ns: int) -> str:
    """Format nanoseconds since the epoch in UTC: 2016-11-09T12:00:00.000000001Z."""
    seconds, fraction = divmod(time_ns, 10**9)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{fraction:09}Z"
