"""Opens the sinks that are more than a descriptor. Called in the supervisor.

The module of a kind is imported only for a setting that names the kind: the journal needs orjson.
CPU time of a start with `cri:` before the runtime is executed (16 starts on a busy machine): median
91 ms, minimum 62 ms. With all kinds imported: 98 and 85 ms.
"""

from __future__ import annotations

import os

from supervisor.sinks.spec import SinkKind
from workers.common.records import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from supervisor.sinks.sink import Sink
    from supervisor.sinks.spec import SinkSpec
    from supervisor.state.fd_store import FdReader


@dataclass(frozen=True, slots=True)
class InheritedSinks:
    """The sinks of an earlier supervisor.

    Attributes:
        packed: The snapshot of each stream's sink.
        contents: The fd store with their descriptors.
    """

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
    """Open the sinks of the outputs, and of branches ("stdout.attach"). The caller owns them.

    Streams with the same log file share it. With `inherited` this restores the sinks of an earlier
    supervisor, and opens nothing.

    Raises:
        BundleError: The setting has annotations, and config.json cannot be read.
        ShimError: A file cannot be opened; journald does not run.
        UsageError: The settings of the streams differ for the same file.
    """
    opened: dict[str, Sink] = {}
    epoch = os.urandom(16).hex()
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
                from supervisor.sinks import journal_sink

                origin = (
                    journal_sink.unpacked(packed["origin"])
                    if packed
                    else journal_sink.origin_of(container_id, epoch, sink, bundle)
                )
                stream = "stderr" if name.startswith("stderr") else "stdout"
                opened[name] = journal_sink.open_journal(
                    stream, sink, origin, kept, is_console=is_console
                )
            elif sink.kind is SinkKind.JOURNAL_STREAM:
                from supervisor.sinks import journal_sink

                opened[name] = journal_sink.open_journal_stream(name, sink, container_id, kept)
            elif sink.kind is SinkKind.ATTACH:
                from supervisor.sinks import attach_sink

                opened[name] = attach_sink.AttachSink(name, kept)
            elif sink.is_descriptor:
                from supervisor.sinks import buffered_sink

                opened[name] = buffered_sink.open_buffered(name, sink, kept)
            else:
                from supervisor.sinks import file_sink

                names = [
                    name for name, other in wanted.items() if file_sink.is_same_file(sink, other)
                ]
                opened.update(file_sink.open_log(names, sink, kept))
    except BaseException:
        for sink_object in opened.values():
            sink_object.close()
        raise
    return opened
