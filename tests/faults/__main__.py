"""`make soak`: trials one after the other, for so long, and what is more afterwards.

python -m tests.faults [--seconds N] [--steps N] [--seed N] [--only SEED]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

from tests.faults.trial import Trial
from tests.harness import bundles, fence, leaks


def main() -> int:
    """Run trials; returns 1 if one has failed, with its seed."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--seconds", type=float, default=540.0, help="how long (default: 540)")
    parser.add_argument("--steps", type=int, default=12, help="faults a trial (default: 12)")
    parser.add_argument("--seed", type=int, default=20161109, help="of the first trial")
    parser.add_argument("--only", type=int, help="this one seed, once")
    words = parser.parse_args()
    if not fence.is_inside():
        return fence.run("tests.faults", sys.argv[1:])
    leaks.become_subreaper()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    with tempfile.TemporaryDirectory(prefix="fst-") as directory:
        os.environ["TMPDIR"] = tempfile.tempdir = directory
        return _soak(bundles.make_rootfs(Path(directory)), words)


def _soak(rootfs: Path, words: argparse.Namespace) -> int:
    kinds: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    began_s = said_s = time.monotonic()
    seed = words.seed if words.only is None else words.only
    before = leaks.Snapshot.take(with_runtime=True)
    print("minutes  trials  faults  descriptors  children  containers  memory of this process")
    while True:
        trial = Trial(rootfs, seed)
        try:
            trial.run(words.steps)
        except Exception:
            traceback.print_exc()
            print(f"FAILED: {trial.kind}; again: python -m tests.faults --only {seed}")
            return 1
        kinds[trial.kind] += 1
        faults += trial.faults
        seed += 1
        now_s = time.monotonic()
        is_over = words.only is not None or now_s - began_s >= words.seconds
        if is_over or now_s - said_s >= 60:
            said_s = now_s
            after = leaks.Snapshot.take(with_runtime=True)
            print(
                f"{(now_s - began_s) / 60:7.1f} {kinds.total():7} {faults.total():7} "
                f"{len(after.descriptors):12} {len(after.children):9} "
                f"{len(after.containers):11} {_own_memory_kib():12} KiB",
                flush=True,
            )
        if is_over:
            break
    after = leaks.Snapshot.take(with_runtime=True)
    print("trials: " + ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())))
    print("faults: " + ", ".join(f"{count} {kind}" for kind, count in sorted(faults.items())))
    is_clean = (
        after.children <= before.children
        and after.containers <= before.containers
        and len(after.descriptors) <= len(before.descriptors)
    )
    print("nothing left behind" if is_clean else f"left behind: {after}")
    return 0 if is_clean else 1


def _own_memory_kib() -> int:
    with open("/proc/self/smaps_rollup") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Pss:"))


sys.exit(main())
