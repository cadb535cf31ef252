"""Open the sinks that are more than a descriptor; called in the supervisor.

Imported only for a setting that needs such a sink: the import takes 35 ms.
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


class InheritedSinks(NamedTuple):
    """The snapshots of an earlier supervisor's sinks by stream, and their descriptors."""

    packed: Mapping[str, dict[str, Any]]
    contents: FdReader


def open_sinks(
    wanted: Mapping[str, SinkSpec],
    container_id: str,
    bundle: str,
    *,
    is_console: bool,
    inherited: InheritedSinks | None = None,
) -> dict[str, Sink]:
    """Open the sinks of the streams "stdout" and "stderr"; the caller owns them.

    Streams with the same log file share it. With `inherited` the sinks of an earlier supervisor are
    restored, and nothing is opened.

    Raises:
        BundleError: The setting has annotations, and config.json cannot be read.
        ShimError: A file cannot be opened; journald does not run.
        UsageError: The settings of the streams differ for the same file.
    """
    opened: dict[str, Sink] = {}
    who = Origin(container_id, name=container_id, epoch=os.urandom(16).hex())
    try:
        for name, sink in wanted.items():
            if name in opened:
                continue
            packed: dict[str, Any] = {}
            kept: tuple[int, ...] = ()
            if inherited is not None:
                packed = inherited.packed[name]
                kept = tuple(inherited.contents.take(number).take() for number in packed["fds"])
            if sink.kind is SinkKind.JOURNAL:
                origin = unpacked(packed["origin"]) if packed else described(who, sink, bundle)
                opened[name] = open_journal(name, sink, origin, kept, is_console=is_console)
            elif sink.kind is SinkKind.JOURNAL_STREAM:
                opened[name] = open_journal_stream(name, sink, container_id, kept)
            elif sink.is_descriptor:
                opened[name] = open_buffered(name, sink, kept)
            else:
                names = [name for name, other in wanted.items() if is_same_file(sink, other)]
                opened.update(open_log(names, sink, kept))
    except BaseException:
        for sink_object in opened.values():
            sink_object.close()
        raise
    return opened
