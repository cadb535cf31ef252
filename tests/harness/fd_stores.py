"""What a supervisor has published for an adopter of its container."""

from __future__ import annotations

from typing import TYPE_CHECKING

from supervisor.handover import discover
from supervisor.linux.errors import ShimError
from tests.harness import waiting

if TYPE_CHECKING:
    from pathlib import Path


def wait_published(state_dir: Path) -> None:
    """Wait until a killed supervisor's container could be adopted. No event tells: looks."""
    waiting.wait_true(lambda: is_published(state_dir))


def is_published(state_dir: Path) -> bool:
    """Say whether a killed supervisor's container could be adopted now."""
    try:
        deposit = discover.find(str(state_dir))
    except (ShimError, FileNotFoundError):
        return False
    try:
        return not deposit.is_empty
    finally:
        deposit.close()
