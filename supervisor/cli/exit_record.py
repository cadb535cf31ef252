"""DIR/ID.json, the exit record: how a container ended. It outlives the state directory.

There is one record per container id. The next run of the id removes it first. The write is atomic.
The record distinguishes what the shell's status 137 does not: an exit with 137, a SIGKILL, and a
SIGKILL of the OOM killer.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress

from supervisor.linux import fds, paths
from supervisor.linux.errors import MachineError, reason_of_access
from supervisor.linux.exit_status import Exited, Killed, Unknown, shell_status, signal_name
from supervisor.linux.text import printable
from supervisor.state import trust
from supervisor.state.directory import write_file
from supervisor.state.log import rfc3339

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from supervisor.container.request import Outcome
    from supervisor.linux.errors import ShimError
    from supervisor.linux.exit_status import Termination


def make_directory(path: str) -> str:
    """Create DIR if it does not exist; return its absolute path. Called before the container runs.

    Raises:
        MachineError: DIR cannot be created, or is not writable.
        UntrustedError: Other users can create names in it.
    """
    absolute = paths.absolute(path)
    try:
        trust.open_directory(absolute, make=0o755).close()
    except OSError as error:
        raise MachineError(f"--exit-dir {absolute}: {reason_of_access(error)}") from error
    if not os.access(absolute, os.W_OK | os.X_OK):
        denied = OSError(errno.EACCES, os.strerror(errno.EACCES))
        raise MachineError(f"--exit-dir {absolute}: {reason_of_access(denied)}")
    return absolute


def remove(directory: str, container_id: str) -> None:
    """Remove the record of an earlier run: the disk may be full when this run ends.

    Raises:
        OSError: unlink(2) failed, or the removal may not survive a power cut.
    """
    path = os.path.join(directory, f"{container_id}.json")
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
    fds.sync_directory(directory)


def fields(container_id: str, outcome: Outcome, began_ns: int, ended_ns: int) -> dict[str, Any]:
    """Return the record. Pure.

    `began_ns` and `ended_ns` are nanoseconds since the epoch. README lists the fields. `status` is
    the shell's status; without a process, the exit status of the error.
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


def _status(end: Termination | None, error: ShimError | None) -> int | None:
    if isinstance(end, Unknown):
        return None
    return shell_status(end) if end else error.exit_status if error else None


def write(directory: str, record: dict[str, Any]) -> None:
    """Write the record to `directory`, atomically and durably.

    Raises:
        OSError: There is no new record.
        UntrustedError: There is no new record: other users can create names in `directory`.
    """
    import orjson  # not before the runtime is executed, see linux/plain_json

    name = f"{record['id']}.json"
    there = trust.open_directory(directory)
    try:
        for left in os.listdir(there.fileno()):
            head, _dot, pid = left.rpartition(".")
            if head == f".{name}" and pid.isdecimal():  # a killed supervisor has left it
                with suppress(FileNotFoundError):
                    os.unlink(left, dir_fd=there.fileno())
        content = orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)
        write_file(there.fileno(), name, content)
    finally:
        there.close()
