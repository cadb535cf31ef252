"""The end of a supervisor: _exit(2) once everything is closed and said.

The interpreter's own end frees every object and every module first: 15 to 20 ms of a supervisor
that nothing needs any more, and an engine waits for its process. Every descriptor that matters is
closed by its owner before; the kernel closes the rest.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


def exit_process(status: int) -> NoReturn:
    """End this process with `status`, after its stdout and stderr are flushed.

    The last call of an entry point. Functions of atexit do not run.
    """
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # None if the caller had closed the descriptor
            with suppress(OSError, ValueError):  # the reader is gone, the disk is full; closed
                stream.flush()
    os._exit(status)
