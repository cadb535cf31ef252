"""Calls of the OCI runtime by the tests themselves. One that fails says what the runtime said."""

from __future__ import annotations

import os
import subprocess
import tempfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

RUNTIME = os.environ.get("FORKSHIM_TEST_RUNTIME", "runc")
_UNKNOWN = ("does not exist", "No such file or directory")  # runc; crun, of its status file
_MOST_LISTS = 50
_SHORT_LIFE = ("exec.fifo: no such file or directory", "container process is already dead")


class RuntimeCallError(AssertionError):
    """A call of the runtime has failed; `said` is its stderr."""

    def __init__(self, words: list[str], exit_status: int, said: str) -> None:
        super().__init__(f"{' '.join(words)}: exit status {exit_status}: {said.strip()}")
        self.said = said

    @property
    def is_of_no_container(self) -> bool:
        """Whether the runtime knows no container of that id."""
        return any(words in self.said for words in _UNKNOWN)

    @property
    def is_of_a_vanished_one(self) -> bool:
        """Whether it is a `list` during which a container went."""
        return "no such file or directory" in self.said or "does not exist" in self.said

    @property
    def is_of_a_short_life(self) -> bool:
        """Whether it is a `start` whose container has ended before that had returned.

        runc lets the container go by opening exec.fifo, reads it, and removes it: which fails when
        a `delete` was faster. If the open is not back after 100 ms, it looks at the process, and
        calls one dead that has done all its work since. Source: opencontainers/runc, #2183, #4735.
        """
        return any(words in self.said for words in _SHORT_LIFE)


def call(*words: str | Path, runtime: str = RUNTIME) -> bytes:
    """Run the runtime to its end; returns its stdout.

    Raises:
        RuntimeCallError: Its exit status is not 0.
    """
    argv = [runtime, *map(str, words)]
    # Files: a container that it creates has them too, and a pipe would have no end before its own.
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        out.seek(0)
        err.seek(0)
        if done.returncode != 0:
            raise RuntimeCallError(argv, done.returncode, err.read().decode(errors="replace"))
        return out.read()


def list_all() -> bytes:
    """Return `runc list` as JSON.

    It fails when a container is deleted between its look at the directory and its look into it,
    which another process of tests may do at any time.

    Raises:
        RuntimeCallError: It goes on failing.
    """
    for _ in range(_MOST_LISTS):
        try:
            return call("list", "-f", "json", runtime="runc")
        except RuntimeCallError as error:
            if not error.is_of_a_vanished_one:
                raise
    return call("list", "-f", "json", runtime="runc")


def delete(container_id: str) -> None:
    """Delete a container, whatever it does; one that is not there is deleted."""
    call("delete", "--force", container_id)
