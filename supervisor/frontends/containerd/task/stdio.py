"""The streams that a client names, as settings of `supervisor.sinks.spec`."""

from __future__ import annotations

import os

from supervisor.frontends.containerd.log_uri import (
    FifoTarget,
    FileTarget,
    LoggerTarget,
    parse_target,
)
from supervisor.linux.errors import ShimError, UsageError, reason

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any


def logger_of(request: Mapping[str, Any]) -> LoggerTarget | None:
    """Return the program that logs both outputs; None if they go elsewhere.

    Raises:
        UsageError: The scheme is not known, or the URI is malformed.
    """
    target = parse_target(request["stdout"])
    return target if isinstance(target, LoggerTarget) else None


def settings_of(request: Mapping[str, Any], logger_directory: str) -> dict[str, Any]:
    """Return the fields of a ProcessConfig that a request says.

    Args:
        request: Has `stdin`, `stdout`, `stderr` and `terminal`.
        logger_directory: Has the fifos of the program that logs, by the names of the streams.

    Raises:
        UsageError: As `logger_of`, or only stderr goes to a program.
    """
    is_terminal = request["terminal"]
    stdout, stderr = request["stdout"], request["stderr"]
    if not isinstance(parse_target(stdout), FifoTarget):
        stderr = stdout  # the scheme of stdout decides for both
    return {
        "terminal": is_terminal,
        "stdin": request["stdin"],
        "stdout": _setting(stdout, logger_directory, "stdout", stdout),
        "stderr": "" if is_terminal else _setting(stderr, logger_directory, "stderr", stdout),
    }


def _setting(uri: str, logger_directory: str, name: str, stdout: str) -> str:
    target = parse_target(uri)
    if isinstance(target, FifoTarget):
        return target.path
    if isinstance(target, FileTarget):
        return f"file:{target.path}"
    if uri != stdout:
        raise UsageError(f"{uri}: a program logs both outputs or none")
    return os.path.join(logger_directory, name)


def make_directory(request: Mapping[str, Any]) -> None:
    """Make the directory of a log file, as the stock shim does.

    Raises:
        ShimError: It cannot be made.
    """
    target = parse_target(request["stdout"])
    if isinstance(target, FileTarget):
        try:
            os.makedirs(os.path.dirname(target.path), 0o755, exist_ok=True)
        except OSError as error:
            raise ShimError(f"mkdir {error.filename}: {reason(error)}") from error
