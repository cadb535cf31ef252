"""Measuring two things in turn, A B A B, so that a machine that drifts drifts for both."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


@dataclass(frozen=True)
class Spread:
    """The figures of one side, in the order they were measured."""

    figures: Sequence[float]

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self.figures)

    def __str__(self) -> str:
        """Median and range."""
        return f"{self.median:.3g} ({min(self.figures):.3g} to {max(self.figures):.3g})"


def in_turn(
    first: Callable[[], float], second: Callable[[], float], rounds: int
) -> tuple[Spread, Spread]:
    """Call both once to warm up, then `rounds` times in turn."""
    first()
    second()
    pairs = [(first(), second()) for _ in range(rounds)]
    return Spread([a for a, _ in pairs]), Spread([b for _, b in pairs])


def ratio(first: Spread, second: Spread) -> float:
    """Return the median of first/second, pair by pair."""
    pairs = zip(first.figures, second.figures, strict=True)
    return statistics.median(a / b for a, b in pairs)


def difference(first: Spread, second: Spread) -> float:
    """Return the median of first-second, pair by pair."""
    pairs = zip(first.figures, second.figures, strict=True)
    return statistics.median(a - b for a, b in pairs)
