"""`make bench`: forkshim beside others, in turn: medians, spreads and ratios as a Markdown table.

python -m tests.bench [CASE...] [--rounds N] [--json FILE] [--compare OLD.json] [--tiny]
                      [--list]

CASE is a word of `--list`; a module's name stands for all of its cases. `make bench ARGS='start
--json new.json'`. Another module of cases, see `tests.bench.case`, is a word in MODULES.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench import (
    bulk,
    console,
    cri,
    end,
    fanout,
    idle,
    journal,
    many,
    run,
    small,
    start,
    table,
    v2,
)
from tests.bench.case import TINY, Case, Result, Scale, Setting
from tests.bench.installed import install
from tests.harness import bundles, fence, leaks

if TYPE_CHECKING:
    from collections.abc import Sequence

MODULES = (start, run, end, many, idle, bulk, small, console, fanout, cri, journal, v2)


def main() -> int:
    """Run the cases, print the table; returns 1 if a case could not be measured."""
    words = _words()
    if not (words.list or fence.is_inside()):
        return fence.run("tests.bench", sys.argv[1:])
    leaks.become_subreaper()
    # Byte code is written once and used, as in an installed package.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    with tempfile.TemporaryDirectory() as directory:
        rootfs = bundles.make_rootfs(Path(directory))
        scale = TINY if words.tiny else Scale()
        programs = install(Path(directory) / "forkshim")
        cases = _all_cases(Setting(rootfs, scale, programs))
        if words.list:
            print("\n".join(f"{case.name:<20}{case.what}" for case in cases))
            return 0
        chosen = _chosen(cases, words.cases)
        where = f"{machine()}, {programs.what}"
        about = {"machine": where, "commit": commit(), "rounds": words.rounds}
        print(f"{where}; {words.rounds} rounds\n\n{table.HEAD}", flush=True)
        results = _measure(chosen, words.rounds)
    found = table.as_json(results, **about)
    if words.json is not None:
        words.json.write_text(json.dumps(found, indent=1) + "\n")
    if words.compare is not None:
        old = json.loads(words.compare.read_text())
        print(f"\nold: {old['commit']}, {old['machine']}\n\n{table.COMPARED_HEAD}")
        print("\n".join(table.compared(old, found)))
    return 0 if len(results) == len(chosen) else 1


def _words() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("cases", nargs="*", metavar="CASE", help="a case, or a module of them (default: all)")
    add("--rounds", type=int, default=5, help="measurements of each side (default: 5)")
    add("--json", type=Path, metavar="FILE", help="write every figure to this file")
    add("--compare", type=Path, metavar="OLD.json", help="then print new/old of each figure")
    add("--tiny", action="store_true", help="little of everything: for a test of the runner")
    add("--list", action="store_true", help="only name the cases")
    return parser.parse_args()


def _all_cases(setting: Setting) -> list[Case]:
    return [case for module in MODULES for case in module.cases(setting)]


def _chosen(cases: Sequence[Case], names: Sequence[str]) -> Sequence[Case]:
    if not names:
        return cases
    chosen = [
        case for case in cases if any(f"{case.name}-".startswith(f"{name}-") for name in names)
    ]
    for name in names:
        if not any(f"{case.name}-".startswith(f"{name}-") for case in chosen):
            sys.exit(f"tests.bench: no case {name!r}; --list names them")
    return chosen


def _measure(cases: Sequence[Case], rounds: int) -> list[Result]:
    """Measure one case after another and print its part of the table; one that fails is named."""
    results = []
    began = time.monotonic()
    for case in cases:
        if not any(variant.is_ours for variant in case.present):
            results.append(Result(case))  # said below
            continue
        try:
            result = Result(case, case.figures(rounds))
        except Exception:
            traceback.print_exc()
            print(f"| {case.what} (`{case.name}`) | failed | | | | |", flush=True)
            continue
        results.append(result)
        leaks.reap()  # containers and shims that were left to us, their subreaper
        print("\n".join(table.rows(result)), flush=True)
    print(f"\n{time.monotonic() - began:.0f} s")
    for lack in (lack for case in cases for lack in case.lacks):
        print(f"not measured: {lack}")
    return results


def machine() -> str:
    """Return one line that says what was measured on, and beside what."""
    words = [f"{os.cpu_count()} cores", f"load {os.getloadavg()[0]:.1f}"]
    words += [f"Linux {platform.release()}"]
    words += [_version(program) for program in ("runc", "crun", "conmon", "containerd")]
    return ", ".join(words)


def _version(program: str) -> str:
    if shutil.which(program) is None:
        return f"no {program}"
    done = subprocess.run([program, "--version"], check=True, capture_output=True, text=True)
    numbers = (word for word in done.stdout.split() if word[0].isdecimal())
    return f"{program} {next(numbers)}"


def commit() -> str:
    """Return what git calls the tree; empty where there is no git."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except FileNotFoundError:
        return ""


if __name__ == "__main__":
    sys.exit(main())
