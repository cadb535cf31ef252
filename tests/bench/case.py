"""What every case is made of: who is measured beside whom, by what, and what is wanted.

A module of cases has one function, `cases(setting)`, and its docstring says from where to where
each side is measured. `__main__` names the modules; a case's name is its module's, or begins with
it and a hyphen.
"""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.bench.pairs import Spread, in_turn, ratio

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from tests.bench.installed import Programs

Sample = dict[str, float]
"""One measurement: a figure for each quantity, whose name ends in its unit ("CPU s/GB")."""


@dataclass(frozen=True)
class Scale:
    """How much of everything: what `make bench` takes, and `TINY` for the test of the runner."""

    bulk_bytes: int = 2 << 30
    slow_bytes: int = 256 << 20
    block_bytes: int = 32 << 20
    blocks: int = 8
    journal_lines: int = 100_000
    small_writes: int = 1_000_000
    delays_s: float = 2.0
    idle: Sequence[int] = (1, 10, 50, 200)
    watched_s: float = 3.0
    many: int = 200
    at_once: int = 20
    pod: int = 20


TINY = Scale(
    bulk_bytes=4 << 20,
    slow_bytes=1 << 20,
    block_bytes=1 << 20,
    blocks=1,
    journal_lines=1000,
    small_writes=2000,
    delays_s=0.1,
    idle=(1, 2),
    watched_s=0.1,
    many=10,
    at_once=2,
    pod=2,
)


@dataclass(frozen=True)
class Setting:
    """What all cases share.

    Attributes:
        rootfs: Of every container.
        scale: How much of everything.
        programs: forkshim's commands.
    """

    rootfs: Path
    scale: Scale
    programs: Programs


@dataclass(frozen=True)
class Variant:
    """One side of a case.

    Attributes:
        who: Its name in tables.
        measure: Makes one measurement, and cleans up.
        lack: Says why it cannot be measured on this machine; empty if it can.
        is_ours: It is forkshim; the others are what it stands beside.
        around: What it needs for as long as its case takes: a daemon, say.
    """

    who: str
    measure: Callable[[], Sample]
    lack: Callable[[], str] = str
    is_ours: bool = False
    around: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext


@dataclass(frozen=True)
class Wanted:
    """A promise: of a figure of ours, or of what it is beside another's.

    Attributes:
        quantity: What is promised.
        how: "at least" or "at most".
        number: So much.
        beside: Whose figure ours is divided by; empty for ours as it is.
    """

    quantity: str
    how: str
    number: float
    beside: str = ""

    def found(self, ours: Spread, others: Mapping[str, Spread]) -> float | None:
        """Return the number that was promised; None if there is none to be had."""
        if not self.beside:
            return ours.median
        return ratio(ours, others[self.beside])

    def verdict(self, ours: Spread, others: Mapping[str, Spread]) -> str:
        """Return what the table says."""
        found = self.found(ours, others)
        if found is None:
            return f"{self}: **no**"
        is_kept = found >= self.number if self.how == "at least" else found <= self.number
        return f"{self}: {'yes' if is_kept else '**no**'}"

    def __str__(self) -> str:
        """What is promised, in words."""
        if not self.beside:
            return f"{self.how} {self.number:g}"
        return f"{self.how} {self.number:g}x of {self.beside}"


def at_least(number: float, quantity: str, *, beside: str = "") -> Wanted:
    """Make a promise of a figure that should be large."""
    return Wanted(quantity, "at least", number, beside)


def at_most(number: float, quantity: str, *, beside: str = "") -> Wanted:
    """Make a promise of a figure that should be small."""
    return Wanted(quantity, "at most", number, beside)


Figures = dict[str, dict[str, Spread]]
"""Of each side, by its name, the figures of each quantity."""


@dataclass(frozen=True)
class Case:
    """Some sides that are measured in turn.

    Attributes:
        name: Of one word, with hyphens.
        what: A line for the table.
        variants: All sides.
        wanted: What is promised.
        times: So many measurements for each round that was asked for: short ones need more.
        is_once: One measurement tells, and there is nothing to warm up.
    """

    name: str
    what: str
    variants: Sequence[Variant]
    wanted: Sequence[Wanted] = ()
    times: int = 1
    is_once: bool = False

    @property
    def present(self) -> Sequence[Variant]:
        """The sides that can be measured here."""
        return [variant for variant in self.variants if not variant.lack()]

    @property
    def lacks(self) -> Sequence[str]:
        """What says which sides cannot, and why, each reason once."""
        whose: dict[str, list[str]] = {}
        for variant in self.variants:
            if why := variant.lack():
                whose.setdefault(why, []).append(variant.who)
        return [f"{self.name}: {'; '.join(who)}: {why}" for why, who in whose.items()]

    def figures(self, rounds: int) -> Figures:
        """Measure."""
        count = 1 if self.is_once else rounds * self.times
        return self._in_turn(count, warm_up=not self.is_once)

    def _in_turn(self, count: int, *, warm_up: bool) -> Figures:
        with contextlib.ExitStack() as stack:
            for variant in self.present:
                stack.enter_context(variant.around())
            measures = [variant.measure for variant in self.present]
            samples = in_turn(measures, count, warm_up=warm_up)
        return {
            variant.who: collected(found)
            for variant, found in zip(self.present, samples, strict=True)
        }


def collected(samples: Sequence[Mapping[str, float]]) -> dict[str, Spread]:
    """Turn measurements of the same quantities into the figures of each."""
    return {name: Spread([sample[name] for sample in samples]) for name in samples[0]}


@dataclass(frozen=True)
class Result:
    """A case that was measured."""

    case: Case
    figures: Figures = field(default_factory=dict)
