"""Waits for the first reader of a fifo, in a child.

open(2) of a fifo for writing blocks until there is a reader, and no event reports that a reader has
come. O_NONBLOCK would need retries, and inotify(7) is silent while the reader itself blocks in
open(2). So a child blocks in open(2) and reports when it returns.

A reader that loses its last writer reads end of file. So the child keeps its write end until the
supervisor has opened the fifo and kills the child. The supervisor cannot open the fifo earlier: it
uses O_RDWR, and would itself be the reader that the child waits for. O_RDWR lets clients leave and
come back: the fifo always has a reader, so no writer gets EPIPE, and bytes wait in the fifo.
"""

from __future__ import annotations

import os
import signal

from workers.process import isolate


def wait_for_reader(title: str, path_fd: int, said_wfd: int, null_fd: int) -> None:
    """Open the fifo for writing, write one byte to `said_wfd`, and hold both open until killed.

    Args:
        title: Process title for ps(1).
        path_fd: The fifo, opened with O_PATH: the client may have unlinked its name.
        said_wfd: Write end of a pipe.
        null_fd: /dev/null, open for reading and writing.

    Source: fifo(7); open(2) O_PATH.
    """
    isolate.enter_worker(title, (path_fd, said_wfd), null_fd)
    os.open(f"/proc/self/fd/{path_fd}", os.O_WRONLY)
    os.write(said_wfd, b"!")
    while True:
        signal.pause()
