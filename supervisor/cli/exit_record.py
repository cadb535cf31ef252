"""DIR/ID.json: how a container ended, for a reader that comes after its state directory is gone.

One a container id, removed when its next run begins, and written whole or not at all. It keeps
apart what a shell's one number joins: an exit with 137, a SIGKILL, and one from the OOM killer.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress

from supervisor.linux import fds, paths
from supervisor.linux.errors import ShimError, reason_of_access
from supervisor.linux.exit_status import Exited, Killed, Unknown, shell_status, signal_name
from supervisor.linux.text import printable
from supervisor.state import trust
from supervisor.state.directory import write_file
from supervisor.state.log import rfc3339

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from supervisor.container.request import Outcome
    from supervisor.linux.exit_status import Termination


def make_directory(path: str) -> str:
    """Make DIR, if it is not there, before there is anything to record; returns it absolute.

    Raises:
        ShimError: It cannot be made or written to.
        UntrustedError: Others can put names there.
    """
    absolute = paths.absolute(path)
    try:
        trust.open_directory(absolute, make=0o755).close()
    except OSError as error:
        raise ShimError(f"--exit-dir {absolute}: {reason_of_access(error)}") from error
    if not os.access(absolute, os.W_OK | os.X_OK):
        denied = OSError(errno.EACCES, os.strerror(errno.EACCES))
        raise ShimError(f"--exit-dir {absolute}: {reason_of_access(denied)}")
    return absolute


def remove(directory: str, container_id: str) -> None:
    """Remove the record of an earlier run: there may be no room for one of this one.

    Raises:
        OSError: It is still there.
    """
    path = os.path.join(directory, f"{container_id}.json")
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
    fds.sync_directory(directory)


def fields(container_id: str, outcome: Outcome, began_ns: int, ended_ns: int) -> dict[str, Any]:
    """Return the record; times in nanoseconds since the epoch. Pure.

    `status` is a shell's number, and if there was never a process that of the error.
    """
    end, error = outcome.termination, outcome.error
    return {
        "id": container_id,
        "pid": outcome.pid or None,
        "status": _status(end, error),
        "exitCode": end.exit_status if isinstance(end, Exited) else None,
        "signal": signal_name(end.signum) if isinstance(end, Killed) else None,
        "coreDumped": isinstance(end, Killed) and end.core_dumped,
        "oomKills": outcome.oom_kills,
        "stopRequested": outcome.was_asked_to_stop,
        "error": f"its end is {end}"
        if isinstance(end, Unknown)
        else error and printable(str(error)),
        "began": rfc3339(began_ns),
        "ended": rfc3339(ended_ns),
        "streams": {
            stream.name: {
                "bytes": stream.copied_bytes,
                "respawned": stream.deaths,
                "droppedBytes": stream.dropped_bytes,
                "droppedLines": stream.dropped_lines,
            }
            for stream in outcome.streams
        },
    }


def _why(end: Termination | None, error: ShimError | None) -> str | None:
    if isinstance(end, Unknown):
        return f"its end is {end}"
    return None if error is None else printable(str(error))


def _status(end: Termination | None, error: ShimError | None) -> int | None:
    if isinstance(end, Unknown):
        return None
    return shell_status(end) if end else error.exit_status if error else None


def write(directory: str, record: dict[str, Any]) -> None:
    """Write the record.

    Raises:
        OSError: There is no new record.
        UntrustedError: The same; others can put names there by now.
    """
    import orjson  # not before the runtime is executed, see linux/plain_json

    name = f"{record['id']}.json"
    there = trust.open_directory(directory)
    try:
        for left in os.listdir(there.fileno()):
            head, _dot, pid = left.rpartition(".")
            if head == f".{name}" and pid.isdecimal():  # of a supervisor that was killed here
                with suppress(FileNotFoundError):
                    os.unlink(left, dir_fd=there.fileno())
        content = orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)
        write_file(there.fileno(), name, content)
    finally:
        there.close()
