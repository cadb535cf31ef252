"""Many containers that stay: from exec to the first word, the 1st and the 200th, and 20 at once.

`forkshim run` in the foreground beside `runc run --detach`, which leaves nobody behind. In
`many` each figure is one more container, in turn, beside all that are there already; the cost is
flat if the last tenth takes no longer than the first. In `many-at-once` a figure is the time
until the last of a batch has said its word, divided by their number.
"""

from __future__ import annotations

import statistics
from contextlib import nullcontext
from typing import TYPE_CHECKING

from tests.bench.case import Case, Figures, Sample, Setting, Variant, at_most
from tests.bench.crowd import Crowd, Forkshims, Runcs
from tests.bench.pairs import Spread

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_FLAT = "last tenth / first tenth"


def cases(setting: Setting) -> Iterator[Case]:
    """One after another, and at once."""
    scale = setting.scale
    yield _OneByOne(
        "many",
        f"exec to the first word, {scale.many} containers one after another",
        [_variant(setting, who, 1) for who in _KINDS],
        [at_most(1.2, _FLAT)],
        times=scale.many,
    )
    yield Case(
        "many-at-once",
        f"the same, {scale.at_once} at once, for each",
        [_variant(setting, who, scale.at_once) for who in _KINDS],
    )


_KINDS: dict[str, type[Crowd]] = {"forkshim": Forkshims, "runc run --detach": Runcs}


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


def _variant(setting: Setting, who: str, batch: int) -> Variant:
    """Add a batch to a crowd that stays, or, if a batch is many, to one that ends with it."""
    kind = _KINDS[who]
    crowd = kind(setting.rootfs)

    def one_more() -> Sample:
        return {"ms": crowd.add() * 1e3}

    def at_once() -> Sample:
        with kind(setting.rootfs) as alone:
            return {"ms": alone.add(batch) / batch * 1e3}

    measure, around = (one_more, lambda: crowd) if batch == 1 else (at_once, nullcontext)
    return Variant(who, measure, is_ours=kind is Forkshims, around=around)
