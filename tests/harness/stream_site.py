"""A crew by itself, with pipes where a shim has a container and its clients."""

from __future__ import annotations

import os
import pty
import signal
import tty
from typing import TYPE_CHECKING

from supervisor.children.restart_policy import RestartPolicy
from supervisor.io.stream import Stream
from supervisor.io.stream_set import StreamSet
from supervisor.linux import fds
from tests.harness import waiting
from tests.harness.forked import has_no_children

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from supervisor.io.stream_copy import StreamCopy
    from tests.harness.rig import Rig


class Site:
    """A crew in a yard, with pipes for streams. Owns them all until `close`.

    Attributes:
        on_over: Called at each stream's end, which `overs` counts.
        troubles: How often the crew has said that a stream is worse or better off.
    """

    def __init__(self, rig: Rig, *, counters: fds.Fd | None = None) -> None:
        self.rig = rig
        self.on_over: Callable[[], None] = lambda: None
        self.overs = 0
        self.troubles = 0
        self.stream_set = StreamSet(
            rig.loop,
            rig.reaper,
            rig.log,
            title="forkshim: site",
            null_fd=rig.null.fileno(),
            on_stream_over=self._note_over,
            on_trouble=self._note_trouble,
            counters=counters,
        )
        self._owned: list[fds.Fd] = []

    def _note_over(self) -> None:
        self.overs += 1
        self.on_over()

    def _note_trouble(self) -> None:
        self.troubles += 1

    def own(self, fd: int) -> int:
        self._owned.append(fds.Fd(fd))
        return fd

    def disown(self, fd: int) -> None:
        next(owner for owner in self._owned if owner.fileno() == fd).close()

    def output(self, name: str = "stdout", sink: fds.Fd | None = None) -> tuple[int, int, Stream]:
        """Add an output stream; returns the container's end, the client's end, and the stream."""
        source_rfd, source_wfd = fds.pipe()
        reader = -1
        if sink is None:
            sink_rfd, sink = fds.pipe()
            reader = self.own(sink_rfd.take())
        stream = Stream(name, source_rfd, sink, sink_name="the sink")
        self.stream_set.add(stream)
        return self.own(source_wfd.take()), reader, stream

    def console(self, sink: fds.Fd) -> tuple[int, Stream]:
        """Add a console; returns the container's end and the stream."""
        master, slave = pty.openpty()
        tty.setraw(slave)
        stream = Stream("console", fds.Fd(master), sink, sink_name="the sink")
        self.stream_set.add(stream)
        return self.own(slave), stream

    def stdin(self) -> tuple[int, int, Stream]:
        """Add stdin; returns the client's end, the container's end, and the stream."""
        source_rfd, source_wfd = fds.pipe()
        sink_rfd, sink_wfd = fds.pipe()
        stream = Stream("stdin", source_rfd, sink_wfd)
        self.stream_set.add(stream)
        return self.own(source_wfd.take()), self.own(sink_rfd.take()), stream

    def fifo_sink(self, path: Path) -> tuple[int, fds.Fd]:
        """Make a fifo; returns a client's reading end, and our sink as the stdio opener has it."""
        os.mkfifo(path)
        reader = self.own(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
        return reader, fds.Fd(os.open(path, os.O_RDWR))

    def start(self) -> None:
        """Start the streams with a worker each, as if something could be read of every one."""
        self.stream_set.start()
        for stream in self.stream_set.streams:
            self.slot(stream).begin()

    def slot(self, stream: Stream) -> StreamCopy:
        return self.stream_set.slot(stream)

    def policy(self, longest_pause_s: float) -> None:
        """Have no pause be longer than this; by itself the limit is that of the module."""
        self.stream_set._context.policy = RestartPolicy(longest_pause_s)

    def run_until(self, is_over: Callable[[], bool]) -> None:
        self.rig.run_until(is_over)

    def kill_worker_of(self, stream: Stream) -> None:
        """Kill the worker and serve until another one has its place."""
        killed = self.slot(stream).pid
        worker = self.slot(stream).worker
        if worker is not None and not worker.is_reaped:  # it may have come to its end just now
            os.kill(killed, signal.SIGKILL)
        self.run_until(lambda: stream.is_closed or self.slot(stream).pid not in (0, killed))

    def close(self) -> None:
        self.stream_set.stop()
        self.run_until(lambda: not self.stream_set.has_workers)
        self.stream_set.close()
        for owner in self._owned:
            owner.close()
        assert has_no_children()


def stop_worker(slot: StreamCopy) -> None:
    """Stop its worker, by SIGSTOP."""
    os.kill(slot.pid, signal.SIGSTOP)
    waiting.wait_true(lambda: waiting.state_of(slot.pid) == "T")
