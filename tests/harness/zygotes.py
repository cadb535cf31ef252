"""A zygote of the test's own, and the commands that ask it for supervisors."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tests.harness import waiting
from tests.harness.engine import BIN

if TYPE_CHECKING:
    from types import TracebackType

STAND_IN = Path(__file__).parents[2] / "systemd" / "zygote" / "stand-in"
COMMANDS = ("forkshim", "forkshim-shim")


def make_commands(directory: Path, zygote_dir: Path | str, programs: Path = BIN) -> None:
    """Write the commands into `directory`, as the package has them in /usr/bin."""
    directory.mkdir(exist_ok=True)
    for name in COMMANDS:
        script = STAND_IN.read_text().replace("@COMMAND@", name)
        script = script.replace("@ZYGOTE@", str(zygote_dir))
        path = directory / name
        path.write_text(script.replace("@PROGRAM@", str(programs / name)))
        path.chmod(0o755)


class Zygote:
    """One `forkshim zygote`, in a directory of its own; ended on the way out."""

    def __init__(self, directory: Path, programs: Path = BIN) -> None:
        """Prepare commands in `directory`/bin, for it and for `programs`, which are forked."""
        self.directory = directory / "zygote"
        self.bin = directory / "bin"
        self.forkshim, self.shim = (self.bin / name for name in COMMANDS)
        directory.mkdir(exist_ok=True)
        make_commands(self.bin, self.directory, programs)
        self._programs = programs
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it serves."""
        self.directory.mkdir(mode=0o700, exist_ok=True)
        self._process = subprocess.Popen(
            [self._programs / "forkshim", "zygote", "--directory", self.directory],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        waiting.wait_path(self.directory / "requests", Path.is_fifo)
        waiting.wait_true(lambda: waiting.title_of(self.pid) == "forkshim: zygote")
        waiting.wait_true(lambda: waiting.catches(self.pid, signal.SIGTERM))

    @property
    def pid(self) -> int:
        """Its process."""
        assert self._process is not None
        return self._process.pid

    def send(self, signum: signal.Signals) -> None:
        """Send it a signal."""
        os.kill(self.pid, signum)

    def stop(self, signum: signal.Signals = signal.SIGTERM) -> int:
        """End it; returns how."""
        assert self._process is not None
        if self._process.returncode is None:
            self.send(signum)
            self.send(signal.SIGCONT)
        return self._process.wait(timeout=waiting.LIMIT_S)

    def __enter__(self) -> Self:
        """Start it."""
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End it, in order if it can."""
        try:
            self.stop()
        except subprocess.TimeoutExpired:
            self.stop(signal.SIGKILL)
