"""Joins the container's pipes, or its console, to the clients' side of the streams.

The stream set owns both ends of every copy afterwards. The caller closes the container's side of
each pipe once the runtime has inherited it.
"""

from __future__ import annotations

import errno
import os
import stat
import termios

from supervisor.io.stdio import ATTACH, ATTACH_KEPT_OPEN
from supervisor.linux import fds, syscalls
from supervisor.linux.errors import MachineError, reason_of_access
from supervisor.oci.engine_call import MOST_STDERR_BYTES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    from supervisor.io.client_stdio import Stdio
    from supervisor.io.stream import Stream
    from supervisor.io.stream_set import StreamSet
    from supervisor.io.user_terminal import UserTerminal
    from supervisor.oci.engine_call import EngineCall
    from supervisor.oci.process_json import ProcessConfig
    from supervisor.state.fd_store import FdReader, FdWriter
    from workers.copy.packet_stdin import PacketInput


_NULL_DEVICE = os.makedev(1, 3)


def open_own_null() -> fds.Fd:
    """Make and open a null device for one container; the caller owns it.

    crun before 1.23 calls fchown(2) on it, for the container's root. With the machine's /dev/null a
    user would then own that. The device is in a detached tmpfs, because /run is mounted nodev.
    Without the privilege to mount it is the machine's /dev/null, which crun cannot chown then.

    Raises:
        OSError: EMFILE.
    """
    try:
        root = fds.Fd(syscalls.mount_detached("tmpfs"))
        try:
            os.mknod("null", stat.S_IFCHR | 0o666, _NULL_DEVICE, dir_fd=root.fileno())
            return fds.Fd(os.open("null", os.O_RDWR | os.O_CLOEXEC, dir_fd=root.fileno()))
        finally:
            root.close()
    except OSError:  # EPERM; ENOSYS, of a seccomp filter
        return fds.Fd(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))


def packet_input(setting: str) -> PacketInput | None:
    """Return the sources of a stdin that attach clients write to. None for any other stdin."""
    if setting not in (ATTACH, ATTACH_KEPT_OPEN):
        return None
    from workers.copy.packet_stdin import PacketInput  # only conmon's front end has such clients

    return PacketInput(ends_with_client=setting == ATTACH)


class Pipes:
    """Builds the streams of one container. Borrows everything but the console."""

    SNAPSHOT = ("_ptmx", "_peer", "_our_side")
    TRANSIENT = (
        "_record",
        "_terminal",
        "_null_fd",
        "_engine_call",
        "_runtime_stderr",  # only until the runtime has ended
    )

    def __init__(
        self,
        record: ProcessConfig,
        terminal: UserTerminal | None,
        null_fd: int,
        engine_call: EngineCall | None = None,
    ) -> None:
        """Borrow everything.

        `terminal`: the user's terminal, which is joined to the console; None without one. With
        `engine_call` every user of the container may open the pipes: an image whose process is not
        root opens /dev/stdout.
        """
        self._engine_call = engine_call
        self._runtime_stderr = fds.Fd(-1)
        self._record = record
        self._terminal = terminal
        self._null_fd = null_fd
        self._ptmx: fds.Fd | None = None
        self._peer = fds.Fd(-1)
        self._our_side: dict[str, fds.Fd] = {}

    def make_pipes(self, stdio: Stdio, container_side: list[fds.Fd]) -> tuple[int, int, int]:
        """Make a pipe for each stream that has a client's side.

        Args:
            stdio: The clients' side.
            container_side: Gets the ends that the caller closes once the runtime has been started.
                This object owns the other ends until `join_pipes` and `join_stdin`.

        Returns:
            The runtime's descriptors 0, 1 and 2, borrowed.

        Raises:
            OSError: EMFILE, ENFILE.
            MachineError: fchown(2) to the container's root failed.
        """
        ends: dict[str, int] = {}
        call = self._engine_call
        if call is not None and call.stdio is not None:
            return call.stdio
        if call is not None and self._record.terminal:
            self._runtime_stderr, wfd = fds.pipe()
            container_side.append(wfd)
            ends["stderr"] = wfd.fileno()  # the runtime's; the container's is the terminal
        if not self._record.terminal:
            if stdio.has_stdin:
                rfd, wfd = self._make_pipe()
                container_side.append(rfd)
                ends["stdin"] = rfd.fileno()
                self._our_side["stdin"] = wfd
            for name in ("stdout", "stderr"):
                if name == "stderr" and stdio.stderr_joins_stdout:
                    ends["stderr"] = ends["stdout"]
                elif name in stdio.sinks or name in stdio.line_sinks:
                    rfd, wfd = self._make_pipe()
                    container_side.append(wfd)
                    ends[name] = wfd.fileno()
                    self._our_side[name] = rfd
        if len(ends) < 3:
            null = open_own_null()
            container_side.append(null)
            ends = {**dict.fromkeys(("stdin", "stdout", "stderr"), null.fileno()), **ends}
        return ends["stdin"], ends["stdout"], ends["stderr"]

    def runtime_stderr(self) -> bytes:
        """Return what the runtime has written to stderr. Empty unless the container has a terminal.

        With a terminal the runtime's stderr is a pipe of its own; without, it is the container's.
        """
        if not self._runtime_stderr.is_open:
            return b""
        said = fds.take_pending(self._runtime_stderr.fileno(), self._null_fd, MOST_STDERR_BYTES)
        self._runtime_stderr.close()
        return said

    def join_pipes(self, stdio: Stdio, stream_set: StreamSet) -> None:
        """Join the pipes to the clients. The stream set owns all of it afterwards."""
        self.join_stdin(stdio, stream_set)
        for name in ("stdout", "stderr"):
            end = self._our_side.pop(name, None)
            if end is not None:
                self._add_output(self._output(name, end, stdio, name), stdio, stream_set)

    def join_stdin(self, stdio: Stdio, stream_set: StreamSet) -> Stream | None:
        """Join an open stdin to the container. The stream set owns it afterwards.

        Returns:
            None if there is no stdin, if it is not open yet, or if the console is not there yet.

        Raises:
            OSError: EMFILE, ENFILE.
        """
        from supervisor.io.stream import Stream  # while the runtime works

        if stdio.stdin is None:
            return None
        end = self._our_side.pop("stdin", None)
        if end is None and self._ptmx is not None:
            end = fds.Fd(os.dup(self._ptmx.fileno()))
        if end is None:
            return None
        source, stdio.stdin = stdio.stdin, None
        stream = Stream("stdin", source, end, packet_input=packet_input(self._record.stdin))
        stream_set.add(stream)
        return stream

    def _make_pipe(self) -> tuple[fds.Fd, fds.Fd]:
        """Make a pipe that belongs to the container's root: /dev/stdout can then be reopened."""
        rfd, wfd = fds.pipe()
        for end in (rfd, wfd):
            try:
                os.fchown(end.fileno(), self._record.root_uid, self._record.root_gid)
                if self._engine_call is not None:
                    os.fchmod(end.fileno(), 0o777)
            except OSError as error:
                owner = f"{self._record.root_uid}:{self._record.root_gid}"
                raise MachineError(
                    f"fchown of a pipe to {owner}: {reason_of_access(error)}"
                ) from error
        return rfd, wfd

    def join_console(self, ptmx: fds.Fd, stdio: Stdio, stream_set: StreamSet) -> None:
        """Own the console, and join it to the clients and to the user's terminal, if there is one.

        The container's side stays open until `close_peer`: the container may close its last
        descriptor of it and open the terminal again.

        Raises:
            OSError: EMFILE, ENFILE.
        """
        from supervisor.oci.console_socket import peer

        self._ptmx = ptmx
        self._peer = peer(ptmx.fileno())
        if self._terminal is not None:
            self.fit_to_window()
            stream_set.raw_terminal = self._terminal.make_raw()
        self.join_stdin(stdio, stream_set)
        source = fds.Fd(os.dup(ptmx.fileno()))
        self._add_output(self._output("console", source, stdio, "stdout"), stdio, stream_set)

    def _output(self, name: str, source: fds.Fd, stdio: Stdio, setting: str) -> Stream:
        from supervisor.io.stream import Stream

        # A console that no process reads would block the container, so its default is /dev/null.
        sink = stdio.sinks.get(setting) or fds.Fd(os.dup(self._null_fd))
        return Stream(
            name,
            source,
            sink,
            sink_name=stdio.names[setting],
            is_passthrough=setting in stdio.passthrough,
            line_sink=stdio.line_sinks.get(setting),
            reopen=stdio.reopeners.get(setting),
            setting=setting,
        )

    @staticmethod
    def _add_output(trunk: Stream, stdio: Stdio, stream_set: StreamSet) -> None:
        """Add an output. A second sink has the first branch, before attach clients have theirs."""
        from supervisor.io.attach.branch import SECOND_SUFFIX

        name = trunk.name + SECOND_SUFFIX
        sink = stdio.line_sinks.get(name)
        if sink is None:
            stream_set.add(trunk)
            return
        _branch, source = trunk.add_branch()
        stream_set.add(trunk)
        stream_set.null_stream(name, source, sink, stdio.names[name])

    def snapshot(self, fd_writer: FdWriter) -> dict[str, Any]:
        """Return what `restore` needs."""
        unjoined = self._our_side.get("stdin")
        return {
            "console": -1 if self._ptmx is None else fd_writer.add(self._ptmx.fileno()),
            "stdin": -1 if unjoined is None else fd_writer.add(unjoined.fileno()),
        }

    def snapshot_peer(self, fd_writer: FdWriter) -> int:
        """Return the container's side of the console, for a reload of this process only.

        In the fd store it would outlive the container, and the console would never reach end of
        file. A supervisor that adopts the container opens its own.
        """
        return fd_writer.add(self._peer.fileno()) if self._peer.is_open else -1

    def restore(
        self,
        packed: Mapping[str, Any],
        streams: Iterable[Mapping[str, Any]],
        contents: FdReader,
        stdio: Stdio,
        stream_set: StreamSet,
        *,
        is_parent: bool,
    ) -> None:
        """Take the console and the streams of an earlier supervisor.

        Without `is_parent` the workers are not children of this process, see `StreamCopy.restore`.
        """
        from supervisor.io.attach.branch import Branch
        from supervisor.io.stream import Stream
        from supervisor.oci.console_socket import peer

        ptmx = contents.take(packed["console"])
        if ptmx.is_open:
            self._ptmx = ptmx
            self._peer = contents.take(packed.get("peer", -1))
            if not self._peer.is_open:
                self._peer = peer(ptmx.fileno())
        unjoined = contents.take(packed.get("stdin", -1))  # an earlier version has none
        if unjoined.is_open:
            self._our_side["stdin"] = unjoined
        for each in streams:
            setting = each["setting"]
            staging = [contents.take(index) for index in each["staging"]]
            line_sink = stdio.line_sinks.get(setting)
            stream = Stream(
                each["name"],
                contents.take(each["source"]),
                contents.take(each["sink"]),
                sink_name=stdio.names.get(setting, ""),
                is_passthrough=setting in stdio.passthrough,
                line_sink=line_sink,
                reopen=None if line_sink else stdio.reopeners.get(setting),
                setting=setting,
                packed=each,
                staging=(staging[0], staging[1]) if staging else None,
                branches=[Branch.restore(branch, contents) for branch in each.get("branches", ())],
                packet_input=packet_input(self._record.stdin) if each["name"] == "stdin" else None,
            )
            stream_set.restore_stream(
                stream, each, contents.take(each["report"]), is_parent=is_parent
            )

    def resize(self, columns: int, rows: int) -> None:
        """Set the console's size. Does nothing without a console.

        Raises:
            OSError: EIO: the console was hung up.
        """
        if self._ptmx is not None:
            try:
                termios.tcsetwinsize(self._ptmx.fileno(), (rows, columns))
            except termios.error as error:
                raise OSError(*error.args) from error

    def fit_to_window(self) -> None:
        """Give the console the size of the user's terminal."""
        if self._terminal is None:
            return
        try:
            self.resize(*self._terminal.size())
        except OSError as error:
            if error.errno != errno.EIO:  # the user's terminal was hung up, and has no size
                raise

    def close_peer(self) -> None:
        """Close the container's side. The console then ends when the container closes it."""
        self._peer.close()
        self._runtime_stderr.close()

    def close(self) -> None:
        """Close the console and restore the user's terminal."""
        self.close_peer()
        for end in self._our_side.values():
            end.close()
        if self._terminal is not None:
            self._terminal.restore()
        if self._ptmx is not None:
            self._ptmx.close()
