"""The ways of starting forkshim: as it is installed, and one more to be put beside it.

Another way is a line in `ways`, or, without changing a file, `--warm 'NAME=VALUE... COMMAND'`: an
environment, and the words that stand for `forkshim-shim` (which they are without a COMMAND). What
such a way needs, a process that is there already, say, is started before, by whoever asks for it.
"""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.harness.engine import FORKSHIM, SHIM

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True)
class Way:
    """One way.

    Attributes:
        who: Its name in tables.
        shim: The words before ID BUNDLE RUNTIME.
        run: The words before the options of `forkshim run`.
        environment: What the environment has besides.
    """

    who: str = "forkshim"
    shim: Sequence[str] = (str(SHIM),)
    run: Sequence[str] = (str(FORKSHIM), "run")
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def env(self) -> dict[str, str]:
        """The whole environment."""
        return {**os.environ, **self.environment}


def ways(warm: str) -> Sequence[Way]:
    """Return the plain way, and the one of `--warm` if there is one."""
    return [Way(), *([warm_way(warm)] if warm else [])]


def warm_way(text: str) -> Way:
    """Return the way that `--warm` asks for."""
    words = shlex.split(text)
    environment: dict[str, str] = {}
    while words and "=" in words[0]:
        name, _, value = words.pop(0).partition("=")
        environment[name] = value
    plain = Way()
    return Way("forkshim, warm", tuple(words) or plain.shim, plain.run, environment)
