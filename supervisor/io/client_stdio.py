"""The client's side of the streams once it is open: its owner, its snapshot and its restore."""

from __future__ import annotations

import os
from functools import partial

from supervisor.linux import fds
from supervisor.sinks.spec import SinkKind, SinkSpec, parse_sink
from supervisor.state.trusted_file import open_log_file
from workers.common.records import dataclass, field

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from supervisor.oci.process_json import ProcessConfig
    from supervisor.sinks.sink import Sink
    from supervisor.state.fd_store import FdReader, FdWriter


@dataclass(slots=True)
class Stdio:
    """The client's side, opened. A stream that is missing here is null: no pipe, no worker.

    Attributes:
        stdin: The source of the container's input.
        unopened_stdin: A stdin fifo before `open_stdin`; O_PATH.
        stdin_closer: The supervisor's write end of a stdin fifo: a client may leave and come back.
        is_stdin_closed: A client has closed stdin by `close_stdin`.
        sinks: Descriptors by stream name, "stdout" and "stderr".
        line_sinks: By stream name, for a log file or the journal. Owned; the streams borrow them.
        reopeners: By stream name, for a file that may be renamed: opens its name again.
        names: By stream name, the setting for log lines.
        passthrough: Names of the streams whose sink the supervisor has inherited.
        stderr_joins_stdout: Both are the same regular file. They share one pipe and one worker: two
            file offsets would overwrite each other.
    """

    SNAPSHOT = (
        "unopened_stdin", "stdin_closer", "is_stdin_closed", "line_sinks", "passthrough",
        "stderr_joins_stdout",
    )  # fmt: skip
    TRANSIENT = (
        "stdin",  # the streams own these two
        "sinks",
        "reopeners",  # `restore` makes these two from the settings
        "names",
    )

    stdin: fds.Fd | None = None
    unopened_stdin: fds.Fd | None = None
    stdin_closer: fds.Fd | None = None
    is_stdin_closed: bool = False
    sinks: dict[str, fds.Fd] = field(default_factory=dict)
    line_sinks: dict[str, Sink] = field(default_factory=dict)
    reopeners: dict[str, Callable[[], fds.Fd]] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    passthrough: set[str] = field(default_factory=set)
    stderr_joins_stdout: bool = False

    def snapshot(self, fd_writer: FdWriter) -> dict[str, Any]:
        """Return what `restore` needs. The streams have snapshots of their own."""
        unopened, closer = self.unopened_stdin, self.stdin_closer
        return {
            "unopened_stdin": -1 if unopened is None else fd_writer.add(unopened.fileno()),
            "stdin_closer": -1 if closer is None else fd_writer.add(closer.fileno()),
            "is_stdin_closed": self.is_stdin_closed,
            "line_sinks": {
                name: line_sink.snapshot(fd_writer) for name, line_sink in self.line_sinks.items()
            },
            "passthrough": sorted(self.passthrough),
            "stderr_joins_stdout": self.stderr_joins_stdout,
        }

    @property
    def has_stdin(self) -> bool:
        """Whether the container has an input."""
        return self.stdin is not None or self.unopened_stdin is not None

    def open_stdin(self) -> None:
        """Open the stdin fifo. A second call does nothing.

        Raises:
            OSError: EMFILE, ENFILE.
        """
        if self.unopened_stdin is None:
            return
        fifo = self.unopened_stdin.fileno()
        # Non-blocking, so that open(2) does not wait for a writer: the next line opens one.
        stdin = fds.reopen(fifo, os.O_RDONLY | os.O_NONBLOCK)
        try:
            self.stdin_closer = fds.reopen(fifo, os.O_WRONLY)
        except OSError:
            stdin.close()
            raise
        os.set_blocking(stdin.fileno(), True)
        self.stdin = stdin
        self.unopened_stdin.close()
        self.unopened_stdin = None
        if self.is_stdin_closed:
            self.close_stdin()

    def close_stdin(self) -> None:
        """Close the supervisor's write end: stdin then ends when the last client closes its own."""
        self.is_stdin_closed = True
        if self.stdin_closer is not None:
            self.stdin_closer.close()
            self.stdin_closer = None

    def close(self) -> None:
        """Close every descriptor that no stream has taken."""
        stdin = (self.stdin, self.unopened_stdin, self.stdin_closer)
        for owner in (*stdin, *self.sinks.values(), *self.line_sinks.values()):
            if owner is not None:
                owner.close()


def restore(
    packed: Mapping[str, Any],
    contents: FdReader,
    record: ProcessConfig,
    container_id: str,
    bundle: str,
) -> Stdio:
    """Return the client's side from the snapshot of an earlier supervisor. Opens nothing.

    Raises:
        ShimError: The settings in `record` differ from those of that supervisor.
    """
    closer = contents.take(packed["stdin_closer"])
    unopened = contents.take(packed.get("unopened_stdin", -1))  # an earlier version has none
    stdio = Stdio(
        unopened_stdin=unopened if unopened.is_open else None,
        stdin_closer=closer if closer.is_open else None,
        is_stdin_closed=packed.get("is_stdin_closed", False),
        passthrough=set(packed["passthrough"]),
        stderr_joins_stdout=packed["stderr_joins_stdout"],
    )
    sinks = {"stdout": parse_sink(record.stdout), "stderr": parse_sink(record.stderr)}
    for name, sink in sinks.items():
        stdio.names[name] = str(sink)
        if sink.kind is SinkKind.FILE and not sink.has_line_sink:
            stdio.reopeners[name] = partial(open_log_file, sink.path)
    sinks |= second_sinks(record)
    if packed["line_sinks"]:
        from supervisor.sinks.open import InheritedSinks, open_sinks

        of_branch = SinkSpec(SinkKind.ATTACH)
        wanted = {name: sinks.get(name, of_branch) for name in packed["line_sinks"]}
        for name, sink in wanted.items():
            stdio.names.setdefault(name, str(sink))
        stdio.line_sinks = open_sinks(
            wanted,
            container_id,
            bundle,
            is_console=record.terminal,
            inherited=InheritedSinks(packed["line_sinks"], contents),
        )
    return stdio


def second_sinks(record: ProcessConfig) -> dict[str, SinkSpec]:
    """Return the second sinks by the names of their streams, which are branches of the outputs.

    Raises:
        UsageError: The setting is wrong.
    """
    if not record.second:
        return {}
    from supervisor.io.attach.branch import SECOND_SUFFIX  # few containers have such sinks

    sink = parse_sink(record.second)
    outputs = ("console",) if record.terminal else ("stdout", "stderr")
    return {name + SECOND_SUFFIX: sink for name in outputs}
