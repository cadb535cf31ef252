"""The `conmon` of this checkout as a program, for an engine or for a test that plays one."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_PROGRAM = """\
#!{python}
import os
os.environ.pop("PYTHONSAFEPATH", None)
from supervisor.frontends.conmon.main import main
main()
"""
_LONGEST_MESSAGE = 65536


def make_program(directory: Path) -> Path:
    """Make the program, which has to be called `conmon`; returns its path."""
    path = directory / "conmon"
    path.write_text(_PROGRAM.format(python=sys.executable))
    path.chmod(0o755)
    return path


class Call:
    """One conmon of a test that plays the engine. Owns the sockets until `close`."""

    def __init__(self, program: Path, words: Sequence[str], *, is_attached: bool = False) -> None:
        """Start it; it waits for `start`."""
        pairs = {
            name: socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            for name in ("_OCI_SYNCPIPE", "_OCI_STARTPIPE", "_OCI_ATTACHPIPE")
            if is_attached or name != "_OCI_ATTACHPIPE"
        }
        self.pipes = {name: pair[0] for name, pair in pairs.items()}
        theirs = {name: pair[1] for name, pair in pairs.items()}
        environment = {name: str(end.fileno()) for name, end in theirs.items()}
        self.process = subprocess.Popen(
            [program, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=[end.fileno() for end in theirs.values()],
            env={**os.environ, **environment},
        )
        for end in theirs.values():
            end.close()

    def start(self) -> None:
        """Say the word for which conmon waits."""
        self.pipes["_OCI_STARTPIPE"].send(b"\0")

    def message(self, name: str = "_OCI_SYNCPIPE") -> dict[str, Any] | None:
        """Return the next message; None at the end."""
        packet = self.pipes[name].recv(_LONGEST_MESSAGE)
        return json.loads(packet) if packet else None

    def forked(self) -> None:
        """Wait until the first process has ended: the supervisor is forked."""
        stdout, stderr = self.process.communicate(timeout=60)
        assert (self.process.returncode, stdout, stderr) == (0, b"", b"")

    def close(self) -> None:
        """Hang up."""
        for end in self.pipes.values():
            end.close()


def run(
    program: Path, *words: str, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run it to the end of its first process."""
    return subprocess.run(
        [program, *words], capture_output=True, text=True, env=env, timeout=60, check=False
    )
