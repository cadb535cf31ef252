"""How this program was started, and how to start it again."""

from __future__ import annotations

import os
import sys

HANDOVER_VARIABLE = "FORKSHIM_HANDOVER"
"""In the environment of a program that a reload executes, see `supervisor.handover.reexec`."""


SUCCESSOR_VARIABLE = "FORKSHIM_SUCCESSOR"
"""In the environment of a program that an fd holder starts, see `handover.successor`."""


def own_command() -> tuple[str, ...]:
    """Return how to start this program again, from any directory. Called before any chdir(2)."""
    script = sys.argv[0]
    words = [os.path.abspath(word) if word == script else word for word in sys.orig_argv[1:]]
    return (sys.executable, *words)


def is_handed_over() -> bool:
    """Return whether a reload has executed this program; see `reexec.arrive`."""
    return HANDOVER_VARIABLE in os.environ


def is_successor() -> bool:
    """Return whether an fd holder has started this program; see `successor.arrive`."""
    return SUCCESSOR_VARIABLE in os.environ
