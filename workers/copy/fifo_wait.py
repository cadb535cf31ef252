"""Waiting for a fifo's first reader, in a process of its own.

open(2) of a fifo for writing waits until somebody reads, and no event tells that a reader has
come: O_NONBLOCK would have to be retried, inotify(7) is silent while the reader itself still waits
in open(2). So a child waits in open(2) and says when it is through.

Who holds the fifo open then matters. A reader that sees the last writer go is at end of file, so
the child keeps its write end until the supervisor has opened the fifo and ends it; and the
supervisor cannot open it earlier, because it opens for both directions and would itself be
the reader that the child waits for. Both directions, so that clients may leave and come back: with
a reader always there nobody gets EPIPE, and bytes wait.
"""

from __future__ import annotations

import os
import signal

from workers.process import isolate


def wait_for_reader(title: str, path_fd: int, said_wfd: int, null_fd: int) -> None:
    """Open the fifo for writing, write one byte to `said_wfd`, and hold both until killed.

    Args:
        title: As ps(1) shows this process.
        path_fd: The fifo, opened O_PATH: its name may be gone by now.
        said_wfd: Write end of a pipe.
        null_fd: /dev/null, open for reading and writing.

    Source: fifo(7); open(2) O_PATH.
    """
    isolate.enter_worker(title, (path_fd, said_wfd), null_fd)
    os.open(f"/proc/self/fd/{path_fd}", os.O_WRONLY)
    os.write(said_wfd, b"!")
    while True:
        signal.pause()
