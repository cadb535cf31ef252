"""What a successor needs of the front end beside descriptors, kept where a kill -9 does not reach.

One record has all of it: the events that containerd has not acknowledged, and each task with the
requests that wait for it. So the two agree: an event is queued, and its task past it, or neither.
The record is JSON, and each part of it is encoded only when it has changed.
"""

from __future__ import annotations

import json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from supervisor.wire.call_journal import CallJournal


class GroupJournal:
    """Owns its `CallJournal` until `close`."""

    def __init__(self, journal: CallJournal, state: Mapping[str, Any] | None = None) -> None:
        """Begin with the parts of `state`; nothing is written before `write`."""
        self._journal = journal
        self._parts: dict[str, bytes] = {}
        self.put(state or {})

    def fileno(self) -> int:
        """Lend the descriptor."""
        return self._journal.fileno()

    def put(self, parts: Mapping[str, Any]) -> None:
        """Replace parts of the next record; None removes one."""
        for name, value in parts.items():
            if value is None:
                self._parts.pop(name, None)
            else:
                self._parts[name] = _encoded(value)

    def write(self, parts: Mapping[str, Any]) -> None:
        """Write a record in which these parts are replaced, too.

        Raises:
            OSError: ENOSPC: no memory.
        """
        self.put(parts)
        pairs = (_encoded(name) + b":" + part for name, part in self._parts.items())
        self._journal.write_content(b"{" + b",".join(pairs) + b"}")

    def close(self) -> None:
        """Close the journal; a second call does nothing."""
        self._journal.close()


def _encoded(value: Any) -> bytes:  # noqa: ANN401 -- JSON
    return json.dumps(value, separators=(",", ":")).encode()
