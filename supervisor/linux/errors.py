"""Errors that end a command with one line instead of a traceback, and their exit statuses.

The statuses are names of `systemd-analyze exit-status`. A failed system call stays an `OSError`.
The classes here say what the failure means to the user of the command. `forkshim-shim` exits with 1
for each of them: the 2016 protocol knows no other number.
"""

from __future__ import annotations

import errno
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

_MOST_CAUSES = 4


class ShimError(Exception):
    """The command fails. The message is one line for its user."""

    exit_status = 1
    is_told = False
    """Whether the journal has the message already, and stderr is the journal."""


class UsageError(ShimError):
    """The arguments or the environment are wrong (INVALIDARGUMENT)."""

    exit_status = 2


class RuntimeMissingError(ShimError):
    """The OCI runtime is not installed (NOTINSTALLED)."""

    exit_status = 5


class BundleError(ShimError):
    """The bundle or its config.json is missing or not valid (NOTCONFIGURED)."""

    exit_status = 6


class RecordError(ShimError):
    """process.json or a checkpoint's config.json is missing or not valid (DATAERR)."""

    exit_status = 65


class AlreadySupervisedError(ShimError):
    """Another supervisor, or a container without a supervisor, holds the id (TEMPFAIL)."""

    exit_status = 75


class UntrustedError(ShimError):
    """Another user can create names in a trusted directory (TEMPFAIL until that is repaired)."""

    exit_status = 75


class MachineError(ShimError):
    """The machine or a limit of this process forbids the operation (OSERR)."""

    exit_status = 71


class AbandonedError(ShimError):
    """A bug ended the supervisor. It has killed no process (SOFTWARE)."""

    exit_status = 70


class RuntimeFailedError(ShimError):
    """The OCI runtime failed. Its log.json has the reason.

    Attributes:
        said: The bytes that it has written to stderr, for an engine that shows them to its client.
    """

    said: bytes = b""


class StoppedError(ShimError):
    """A stop was requested before the container existed. 143 is 128 + SIGTERM, as in sh(1)."""

    exit_status = 143


def describe_bug(error: Exception) -> str:
    """Return one line about an unforeseen exception, and where it was raised."""
    function, line = _place(error)
    return f"bug: {type(error).__name__}: {error} ({function}, line {line})"


def describe_calls(error: BaseException) -> str:
    """Return the calls that led to an error, outermost first: `module.function:line > ...`.

    Its causes follow, at most four in all. The module traceback would take 7 ms and 270 kB to
    import.
    """
    told: list[str] = []
    cause: BaseException | None = error
    while cause is not None and len(told) < _MOST_CAUSES:
        calls, frame = [], cause.__traceback__
        while frame is not None:
            calls.append(f"{_function(frame)}:{frame.tb_lineno}")
            frame = frame.tb_next
        told.append(f"{type(cause).__name__}: {cause} ({' > '.join(calls)})")
        cause = cause.__cause__ or cause.__context__
    return "; caused by ".join(told)


def describe(error: ShimError | OSError) -> str:
    """Return one line about an error: its message, or where and why a system call failed.

    The place of a system call is the file's name, or the function that called it.
    """
    if isinstance(error, ShimError):
        return str(error)
    what = str(error.filename) if error.filename is not None else _place(error)[0]
    return f"{what}: {reason_of_access(error)}"


def _place(error: Exception) -> tuple[str, int]:
    """Return the function that raised the error, as `module.function`, and the line."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    if frame is None:
        return "somewhere", 0
    return _function(frame), frame.tb_lineno


def _function(frame: TracebackType) -> str:
    code = frame.tb_frame.f_code
    return f"{os.path.basename(code.co_filename).removesuffix('.py')}.{code.co_name}"


def reason(error: OSError) -> str:
    """Return strerror(3) of an error with a small first letter, as in Go's messages."""
    text = error.strerror or str(error)
    return text[:1].lower() + text[1:]


def reason_of_access(error: OSError) -> str:
    """Return `reason` for a file of the bundle or ROOT/ID, with a hint for users but root."""
    is_denied = error.errno in (errno.EACCES, errno.EPERM) and os.geteuid() != 0
    hint = ", forkshim needs root or rootless runc" if is_denied else ""
    return reason(error) + hint
