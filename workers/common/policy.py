"""The policies of a stream, for a time when its sink accepts nothing."""

from __future__ import annotations

BLOCK, DROP_NEW, DROP_OLD = "block", "drop-new", "drop-old"
"""With BLOCK the container waits. With the others the worker drops lines, see `lines.drop`."""
