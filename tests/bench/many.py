"""Many containers that stay: from exec to the first word, the 1st and the 200th, and 20 at once.

`forkshim run` in the foreground beside `runc run --detach`, which leaves no process behind. In
`many` each figure is one more container, in turn, beside all that are there already; the cost is
flat if the last tenth takes no longer than the first. In `many-at-once` a figure is the time
until the last of a batch has said its word, divided by their number.
"""

from __future__ import annotations

import statistics
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from tests.bench.case import Case, Figures, Sample, Setting, Variant, at_most
from tests.bench.crowd import Crowd, Forkshims, Runcs
from tests.bench.pairs import Spread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_FLAT = "last tenth / first tenth"


def cases(setting: Setting) -> Iterator[Case]:
    """One after another, and at once."""
    scale = setting.scale
    yield _OneByOne(
        "many",
        f"exec to the first word, {scale.many} containers one after another",
        _variants(setting, _one_more),
        [at_most(1.2, _FLAT)],
        times=scale.many,
    )
    yield Case(
        "many-at-once",
        f"the same, {scale.at_once} at once, for each",
        _variants(setting, partial(_batch, scale.at_once)),
    )


class _OneByOne(Case):
    def figures(self, _rounds: int) -> Figures:
        """Measure each container once."""
        found = self._in_turn(self.times, warm_up=False)
        for quantities in found.values():
            quantities[_FLAT] = Spread([_flatness(quantities["ms"].figures)])
        return found


def _flatness(figures: Sequence[float]) -> float:
    tenth = max(1, len(figures) // 10)
    return statistics.median(figures[-tenth:]) / statistics.median(figures[:tenth])


def _variants(
    setting: Setting, side: Callable[[str, Callable[[], Crowd]], Variant]
) -> Sequence[Variant]:
    ours = side("forkshim", partial(Forkshims, setting.rootfs, setting.programs))
    return [
        replace(ours, is_ours=True),
        side("runc run --detach", partial(Runcs, setting.rootfs)),
    ]


def _one_more(who: str, make: Callable[[], Crowd]) -> Variant:
    """Add one to a crowd that stays for as long as the case takes."""
    crowd = make()
    return Variant(who, lambda: {"ms": crowd.add() * 1e3}, around=lambda: crowd)


def _batch(count: int, who: str, make: Callable[[], Crowd]) -> Variant:
    """Start a whole crowd, which ends with it."""

    def measure() -> Sample:
        with make() as crowd:
            return {"ms": crowd.add(count) / count * 1e3}

    return Variant(who, measure)
