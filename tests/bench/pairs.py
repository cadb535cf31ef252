"""Measuring things in turn, A B A B, so that a machine that drifts drifts for all of them."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

T = TypeVar("T")


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
        if len(self.figures) == 1:
            return _short(self.median)
        low, high = min(self.figures), max(self.figures)
        return f"{_short(self.median)} ({_short(low)} to {_short(high)})"


def in_turn(
    measures: Sequence[Callable[[], T]], rounds: int, *, warm_up: bool = True
) -> list[list[T]]:
    """Call each once to warm up, then `rounds` times in turn; returns what each has returned."""
    if warm_up:
        for measure in measures:
            measure()
    found: list[list[T]] = [[] for _ in measures]
    for _ in range(rounds):
        for results, measure in zip(found, measures, strict=True):
            results.append(measure())
    return found


def ratio(first: Spread, second: Spread) -> float | None:
    """Return the median of first/second, pair by pair; None if a second one is zero."""
    pairs = list(zip(first.figures, second.figures, strict=True))
    if not all(b for _, b in pairs):
        return None
    return statistics.median(a / b for a, b in pairs)


def _short(number: float) -> str:
    """Three digits, and no exponent."""
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.3g}"
