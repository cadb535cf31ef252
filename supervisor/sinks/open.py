"""Open the sinks that are more than a descriptor, log files and the journal: the parent's side.

Imported only when a setting asks for one: what they need takes 35 ms to import.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from supervisor.sinks.buffered_sink import open_buffered
from supervisor.sinks.file_sink import is_same_file, open_log
from supervisor.sinks.journal_sink import described, open_journal, open_journal_stream, unpacked
from supervisor.sinks.spec import SinkKind
from workers.journal.fields import Origin

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from supervisor.sinks.sink import Sink
    from supervisor.sinks.spec import SinkSpec
    from supervisor.state.fd_store import FdReader


class Came(NamedTuple):
    """What was packed of each stream's outlet, and the descriptors that belong to it."""

    packed: Mapping[str, dict[str, Any]]
    contents: FdReader


def open_sinks(
    wanted: Mapping[str, SinkSpec],
    container_id: str,
    bundle: str,
    *,
    is_console: bool,
    came: Came | None = None,
) -> dict[str, Sink]:
    """Open what is wanted of each stream, "stdout" and "stderr"; the caller owns the outlets.

    Streams with the same log file share it. `came`: what an earlier supervisor has packed of the
    same outlets; nothing is opened then.

    Raises:
        BundleError: Annotations are asked for, and config.json cannot be read.
        ShimError: A file cannot be opened; there is no journald.
        UsageError: Two different sinks for one file.
    """
    opened: dict[str, Sink] = {}
    who = Origin(container_id, name=container_id, epoch=os.urandom(16).hex())
    try:
        for name, sink in wanted.items():
            if name in opened:
                continue
            left = {} if came is None else came.packed[name]
            kept = () if came is None else tuple(came.contents.take(n).take() for n in left["fds"])
            if sink.kind is SinkKind.JOURNAL:
                origin = unpacked(left["origin"]) if left else described(who, sink, bundle)
                opened[name] = open_journal(name, sink, origin, kept, is_console=is_console)
            elif sink.kind is SinkKind.JOURNAL_STREAM:
                opened[name] = open_journal_stream(name, sink, container_id, kept)
            elif sink.is_descriptor:
                opened[name] = open_buffered(name, sink, kept)
            else:
                names = [name for name, other in wanted.items() if is_same_file(sink, other)]
                opened.update(open_log(names, sink, kept))
    except BaseException:
        for outlet in opened.values():
            outlet.close()
        raise
    return opened
