"""What engines read when a container has ended: the files `oom`, `exit` and `--exit-dir`/ID."""

from __future__ import annotations

import errno
import os
import time

from supervisor.linux import fds
from supervisor.linux.errors import reason
from supervisor.state.directory import write_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from supervisor.frontends.conmon.options import Options
    from supervisor.state.log import Log

_AGAIN_S = 0.25
_PATIENCE_S = 60.0
_MAY_PASS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM})


def write_whole(path: str, text: str) -> None:
    """Write a file that is there either whole or not at all: engines watch for its name.

    Raises:
        OSError: It is not there.
    """
    directory, name = os.path.split(path)
    there = fds.Fd(os.open(directory or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    try:
        write_file(there.fileno(), name, text.encode())
    finally:
        there.close()


class ExitFiles:
    """Writes them, and tries again while a disk is full. Borrows the log."""

    def __init__(self, log: Log, *, sleep: Callable[[float], None] = time.sleep) -> None:
        """Nothing is written before a call. One limit holds for all files."""
        self._log = log
        self._sleep = sleep
        self._until_s = 0.0

    def write_all(
        self, options: Options, status: int, *, bundle: str = "", oom_kills: int = 0
    ) -> None:
        """Write `oom` to the bundle, if there is one, and what the options name, in this order."""
        if oom_kills:
            for directory in filter(None, (options.persist_dir, bundle)):
                self.write(os.path.join(directory, "oom"), "")
        if options.persist_dir:
            self.write(os.path.join(options.persist_dir, "exit"), str(status))
        if options.exit_dir:
            self.write(os.path.join(options.exit_dir, options.cid), str(status))

    def write(self, path: str, text: str) -> None:
        """Write one file. One that cannot be written is said in the log."""
        while True:
            try:
                write_whole(path, text)
            except OSError as error:
                is_first = not self._until_s
                if error.errno in _MAY_PASS and self._has_time():
                    if is_first:
                        self._log.warning(
                            f"write {path}: {reason(error)}; trying again for {_PATIENCE_S:g} s"
                        )
                    self._sleep(_AGAIN_S)
                    continue
                self._log.warning(f"write {path}: {reason(error)}; the text was {text!r}")
            return

    def _has_time(self) -> bool:
        now_s = time.monotonic()
        self._until_s = self._until_s or now_s + _PATIENCE_S
        return now_s < self._until_s
