"""Reads a JSON document of an engine or a user, and checks the types of its fields.

Only the fields that the supervisor uses are checked. The runtime reads the same file and checks the
rest. `capabilities`, for example, has two valid shapes.
"""

from __future__ import annotations

import os
import stat
from functools import partial

from supervisor.linux import fds, plain_json
from supervisor.linux.errors import ShimError, reason_of_access

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

MOST_JSON_BYTES = 16 << 20
"""More than any valid process.json needs: execve(2) accepts at most 6 MiB of arguments."""

_MOST_UID = 2**32 - 2  # (uid_t)-1 means "leave as it is" to chown(2)


def read_object(
    path: str, error_class: type[ShimError], dir_fd: int | None = None
) -> dict[str, Any]:
    """Return the JSON object in a file. A relative path starts at `dir_fd`.

    Raises:
        ShimError: An `error_class`: the file is missing, larger than 16 MiB, not a regular file, or
            not a JSON object.
    """
    try:
        with open(path, "rb", opener=partial(fds.open_without_waiting, dir_fd=dir_fd)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise error_class(f"open {path}: not a regular file")
            content = file.read(MOST_JSON_BYTES + 1)
    except OSError as error:
        raise error_class(f"open {path}: {reason_of_access(error)}") from error
    if len(content) > MOST_JSON_BYTES:
        raise error_class(f"{path}: larger than {MOST_JSON_BYTES} bytes")
    try:
        document = plain_json.loads(content)
    except ValueError as error:
        raise error_class(f"{path}: not JSON: {error}") from error
    if not isinstance(document, dict):
        raise error_class(f"{path}: not a JSON object")
    return document


class Fields:
    """The fields of an object. Each is checked when it is read. null counts as absent.

    Every method raises the error class of `__init__` if the field has another type.
    """

    def __init__(
        self, path: str, document: Mapping[str, Any], error_class: type[ShimError]
    ) -> None:
        self._path = path
        self._document = document
        self._error_class = error_class

    def wrong(self, name: str, wanted: str, value: object) -> ShimError:
        """Return the error that names the file, the field and its value."""
        shown = repr(value)
        shown = shown if len(shown) <= 60 else shown[:60] + "..."
        return self._error_class(f"{self._path}: {name}: not {wanted}: {shown}")

    def boolean(self, name: str) -> bool:
        """Return a boolean field; False if it is absent."""
        value = self._document.get(name)
        if value is None:
            return False
        if not isinstance(value, bool):
            raise self.wrong(name, "a boolean", value)
        return value

    def path(self, name: str) -> str:
        """Return a path without a NUL byte; "" if it is absent."""
        value = self._document.get(name)
        if value is None:
            return ""
        if not isinstance(value, str):
            raise self.wrong(name, "a string", value)
        if "\0" in value:
            raise self.wrong(name, "a path, it has a NUL byte", value)
        return value

    def strings(self, name: str) -> tuple[str, ...]:
        """Return a list of strings without NUL bytes; empty if it is absent."""
        value = self._document.get(name)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.wrong(name, "a list of strings", value)
        if any("\0" in item for item in value):
            raise self.wrong(name, "usable as arguments, one has a NUL byte", value)
        return tuple(value)

    def uid(self, name: str) -> int:
        """Return a user or group id; 0 if it is absent."""
        value = self._document.get(name)
        if value is None:
            return 0
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MOST_UID:
            raise self.wrong(name, f"an id from 0 to {_MOST_UID}", value)
        return value
