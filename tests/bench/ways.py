"""The ways of starting forkshim: a supervisor of its own, and one that a zygote forks.

The second is started as the Debian package's commands do it: a shell stands in for the supervisor
(`systemd/zygote/stand-in`). The zygote is the bench's own and lives for as long as it is wanted. It
forks for callers without a controlling terminal only, so every way has to be started in a new
session; who got a supervisor of its own nevertheless is no measurement, see `Way.check`.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.harness.zygotes import COMMANDS, Zygote

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

PLAIN, WARM = "forkshim", "forkshim, warm"

NEW_SESSION: dict[str, Any] = {"process_group": None, "start_new_session": True}
"""For `Engine.launch`, which makes a process group else."""


@dataclass(frozen=True)
class Way:
    """One way.

    Attributes:
        who: Its name in tables.
        bin: The directory of the commands.
        zygote: Who forks supervisors; None for nobody.
    """

    who: str
    bin: Path
    zygote: Zygote | None = None

    @property
    def forkshim(self) -> Path:
        """The operator's command."""
        return self.bin / "forkshim"

    @property
    def shim(self) -> Path:
        """The engine's command."""
        return self.bin / "forkshim-shim"

    @property
    def run(self) -> Sequence[str]:
        """The words before the options of `forkshim run`."""
        return (str(self.forkshim), "run")

    def around(self) -> AbstractContextManager[object]:
        """Have the zygote for a while."""
        return self.zygote or contextlib.nullcontext()

    def check(self, pid: int) -> None:
        """See that a process that was started in this way is what it should be.

        It may have ended, if nobody has waited for it, and must have come to its container else. A
        script bears its own name (proc(5), comm) until it becomes a supervisor, who takes another.

        Raises:
            AssertionError: It was to be warm and is not.
        """
        name = Path(f"/proc/{pid}/comm").read_text().strip()
        is_warm = name in COMMANDS
        assert is_warm or self.zygote is None, f"{self.who}: {name!r} was not forked by the zygote"


def ways(programs: Path, directory: Path) -> Sequence[Way]:
    """Return both; `directory` is for the zygote and its commands."""
    zygote = Zygote(directory, programs)
    return [Way(PLAIN, programs), Way(WARM, zygote.bin, zygote)]
