"""Results as a Markdown table, as JSON, and beside those of another commit."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

from tests.bench.pairs import Spread, ratio

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tests.bench.case import Case, Result, Variant, Wanted

HEAD = "| case | | forkshim | beside | ratio | wanted |\n|---|---|---|---|---|---|"
COMPARED_HEAD = "| case | | who | old | new | new/old |\n|---|---|---|---|---|---|"


def rows(result: Result) -> Iterator[str]:
    """Yield a line for each quantity that forkshim was measured by."""
    case = result.case
    what = f"{case.what} (`{case.name}`)"
    for ours in (variant for variant in case.present if variant.is_ours):
        for quantity, spread in result.figures[ours.who].items():
            yield _row(what, quantity, ours, spread, result)
            what = ""


def _row(what: str, quantity: str, ours: Variant, spread: Spread, result: Result) -> str:
    case = result.case
    besides = {
        variant.who: result.figures[variant.who][quantity]
        for variant in case.present
        if not variant.is_ours and quantity in result.figures[variant.who]
    }
    ratios = {who: ratio(spread, beside) for who, beside in besides.items()}
    promises = [wanted.verdict(spread, besides) for wanted in _of(case, quantity, besides)]
    who = "" if ours.who == "forkshim" else f"{ours.who.removeprefix('forkshim, ')}: "
    cells = (
        what,
        quantity,
        f"{who}{spread}",
        "; ".join(f"{name} {beside}" for name, beside in besides.items()),
        "; ".join("-" if each is None else f"{each:.3g}x" for each in ratios.values()),
        "; ".join(promises),
    )
    return f"| {' | '.join(cells)} |"


def _of(case: Case, quantity: str, besides: Mapping[str, Spread]) -> list[Wanted]:
    return [
        wanted
        for wanted in case.wanted
        if wanted.quantity == quantity and (not wanted.beside or wanted.beside in besides)
    ]


def as_json(results: Sequence[Result], **about: Any) -> dict[str, Any]:
    """Return everything that was measured."""
    return {
        **about,
        "cases": {
            result.case.name: {
                "what": result.case.what,
                "figures": {
                    who: {quantity: list(spread.figures) for quantity, spread in found.items()}
                    for who, found in result.figures.items()
                },
            }
            for result in results
        },
    }


def compared(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each figure that both have; the others' tell what is the machine's."""
    for name, case in new["cases"].items():
        before = old["cases"].get(name, {"figures": {}})["figures"]
        for who, found in case["figures"].items():
            for quantity, figures in found.items():
                if quantity in before.get(who, {}):
                    then, now = Spread(before[who][quantity]), Spread(figures)
                    yield f"| {name} | {quantity} | {who} | {then} | {now} | {_change(then, now)} |"


def _change(then: Spread, now: Spread) -> str:
    """The ratio of the medians: the measurements of two commits are no pairs."""
    if not then.median:
        return "" if now.median else "1x"
    return f"{now.median / statistics.median(then.figures):.3g}x"
