"""The policy of a stream whose sink takes nothing."""

from __future__ import annotations

BLOCK, DROP_NEW, DROP_OLD = "block", "drop-new", "drop-old"
"""The container waits, or lines are dropped, see `workers.lines.drop`."""
