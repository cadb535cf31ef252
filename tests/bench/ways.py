"""The ways of starting forkshim: as the package has it, and one more to be put beside it.

Another way is a line in `ways`, or, without changing a file, `--warm 'NAME=VALUE... COMMAND'`: an
environment, and the words that stand for `forkshim-shim` (which they are without a COMMAND). What
such a way needs, a process that is there already, say, is started before, by whoever asks for it.
"""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


@dataclass(frozen=True)
class Way:
    """One way.

    Attributes:
        bin: The directory of the programs: see `tests.bench.installed`.
        who: Its name in tables.
        words: What stands for forkshim-shim, if it is something else.
        environment: What the environment has besides.
    """

    bin: Path
    who: str = "forkshim"
    words: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def forkshim(self) -> Path:
        """The operator's command."""
        return self.bin / "forkshim"

    @property
    def shim(self) -> Sequence[str]:
        """The words before ID BUNDLE RUNTIME."""
        return self.words or (str(self.bin / "forkshim-shim"),)

    @property
    def run(self) -> Sequence[str]:
        """The words before the options of `forkshim run`."""
        return (str(self.forkshim), "run")

    @property
    def env(self) -> dict[str, str]:
        """The whole environment."""
        return {**os.environ, **self.environment}


def ways(programs: Path, warm: str) -> Sequence[Way]:
    """Return the plain way, and the one of `--warm` if there is one."""
    plain = Way(programs)
    return [plain, *([warm_way(plain, warm)] if warm else [])]


def warm_way(plain: Way, text: str) -> Way:
    """Return the way that `--warm` asks for."""
    words = shlex.split(text)
    environment: dict[str, str] = {}
    while words and "=" in words[0]:
        name, _, value = words.pop(0).partition("=")
        environment[name] = value
    return replace(plain, who="forkshim, warm", words=tuple(words), environment=environment)
