"""`make bench`: every case beside the same container without a shim, as ratios.

python -m tests.bench [--rounds N] [--gib N] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.bench import idle, journal, logs
from tests.bench.bulk import Bulk
from tests.bench.end import End
from tests.bench.pairs import Spread, difference, in_turn, ratio
from tests.bench.small import small_writes
from tests.bench.start import Start
from tests.harness import bundles, leaks

IDLE_COUNTS = (1, 10, 50)


def main() -> None:
    """Run all cases and print a table; with --json also write the figures to a file."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="measured pairs (default: 7)")
    parser.add_argument("--gib", type=int, default=4, help="bulk size (default: 4)")
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    words = parser.parse_args()
    leaks.become_subreaper()
    # Byte code is written once and used, as in an installed package.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    print(machine())
    with tempfile.TemporaryDirectory() as directory:
        rootfs = bundles.make_rootfs(Path(directory))
        results = {
            "machine": machine(),
            **bulk_stdout(rootfs, words.gib, words.rounds),
            **exec_to_pid(rootfs, words.rounds * 3),
            **exit_to_status(rootfs, words.rounds * 3),
            **idle_cost(rootfs),
            **log_files(rootfs, words.rounds),
            **journal_records(words.rounds),
            **small_writes(rootfs, words.rounds),
        }
    if words.json is not None:
        words.json.write_text(json.dumps(results, indent=1) + "\n")


def bulk_stdout(rootfs: Path, gib: int, rounds: int) -> dict[str, Any]:
    """Throughput and the shim's CPU."""
    case = Bulk(rootfs, gib << 30, [])
    ours, bare = in_turn(case.with_shim, case.without, rounds)
    cpu_s_per_gb = statistics.median(case.shim_cpu_s[1:]) / (case.total_bytes / 1e9)
    print(f"\nbulk stdout, {gib} GiB, {rounds} pairs")
    print(f"  forkshim    {ours} MB/s")
    print(f"  no shim     {bare} MB/s")
    print(f"  ratio       {ratio(ours, bare):.3f}x          (wanted: at least 0.95)")
    print(f"  shim CPU    {cpu_s_per_gb:.3f} s/GB         (wanted: at most 0.15)")
    return {
        "bulk_stdout": {
            "forkshim_mb_s": ours.figures,
            "no_shim_mb_s": bare.figures,
            "ratio": ratio(ours, bare),
            "shim_cpu_s_per_gb": cpu_s_per_gb,
        }
    }


def exec_to_pid(rootfs: Path, rounds: int) -> dict[str, Any]:
    """What the shim adds to the start of a container."""
    case = Start(rootfs)
    ours, bare = in_turn(case.with_shim, case.without, rounds)
    print(f"\nexec to pid file, {rounds} pairs")
    print(f"  forkshim    {ours} ms")
    print(f"  runc alone  {bare} ms")
    print(f"  added       {difference(ours, bare):.1f} ms, {ratio(ours, bare):.2f}x")
    return {
        "exec_to_pid": {
            "forkshim_ms": ours.figures,
            "runc_ms": bare.figures,
            "added_ms": difference(ours, bare),
            "ratio": ratio(ours, bare),
        }
    }


def exit_to_status(rootfs: Path, rounds: int) -> dict[str, Any]:
    """How soon an engine knows that a container has ended."""
    if shutil.which("conmon") is None:
        print("\nno conmon here: ends are not compared")
        return {}
    case = End(rootfs)
    ours, theirs = in_turn(case.forkshim, case.conmon, rounds)
    print(f"\nexit to exit status on the disk, {rounds} pairs")
    print(f"  forkshim    {ours} ms")
    print(f"  conmon      {theirs} ms")
    print(f"  ratio       {ratio(ours, theirs):.2f}x          (wanted: at most 1)")
    return {
        "exit_to_status": {
            "forkshim_ms": ours.figures,
            "conmon_ms": theirs.figures,
            "ratio": ratio(ours, theirs),
        }
    }


def idle_cost(rootfs: Path) -> dict[str, Any]:
    """Memory and wake-ups of containers that do nothing."""
    if shutil.which("conmon") is None:
        print("\nno conmon here: idle containers are not compared")
        return {}
    figures: dict[str, Any] = {}
    print("\nidle, per container: PSS, USS, wake-ups in 3 s")
    for count in IDLE_COUNTS:
        for who, measure in (("forkshim", idle.forkshim), ("conmon", idle.conmon)):
            cost = measure(rootfs, count)
            print(
                f"  {who:<9}{count:>4}   {cost.pss_mb:5.2f} MB  {cost.uss_mb:5.2f} MB"
                f"  {cost.wake_ups:.1f}"
            )
            figures[f"{who} {count}"] = asdict(cost)
    return {"idle": figures}


def log_files(rootfs: Path, rounds: int) -> dict[str, Any]:
    """The log format of Kubernetes, beside conmon."""
    if shutil.which("conmon") is None:
        print("\nno conmon here: logs are not compared")
        return {}
    contents = {"lines of 100 bytes": logs.lines_block(), "no newlines": logs.endless_block()}
    figures = {}
    for what, block in contents.items():
        case = logs.Logs(rootfs, block, blocks=8)
        ours, theirs = in_turn(case.forkshim, case.conmon, rounds)
        print(f"\ncri log in memory, {what}, {8 * len(block) >> 20} MiB, {rounds} pairs")
        print(f"  forkshim    {ours} MB/s")
        print(f"  conmon      {theirs} MB/s")
        print(f"  ratio       {ratio(ours, theirs):.2f}x          (wanted: at least 1.5)")
        figures[what] = {
            "forkshim_mb_s": ours.figures,
            "conmon_mb_s": theirs.figures,
            "ratio": ratio(ours, theirs),
        }
    return {"cri_log": figures}


def journal_records(rounds: int) -> dict[str, Any]:
    """Lines into a real journal, beside conmon."""
    if shutil.which("conmon") is None:
        print("\nno conmon here: journals are not compared")
        return {}
    figures = journal.records(rounds)
    for sink, beside, wanted in (
        ("journal", "conmon", "(wanted: at least 2)"),
        ("journal-stream", "conmon again", ""),
    ):
        ours, theirs = Spread(figures[sink]), Spread(figures[beside])
        cpu_s = {who: statistics.median(figures["cpu_s"][who]) for who in (sink, "conmon")}
        print(f"\n{sink}, {journal.LINES} lines of 100 bytes, {rounds} pairs")
        print(f"  forkshim    {ours} lines/s, {cpu_s[sink]:.2f} s of CPU")
        print(f"  conmon      {theirs} lines/s, {cpu_s['conmon']:.2f} s of CPU")
        print(f"  ratio       {ratio(ours, theirs):.2f}x          {wanted}")
    return {"journal": figures}


def machine() -> str:
    """Return one line that says what was measured on."""
    runc = subprocess.run(["runc", "--version"], check=True, capture_output=True, text=True)
    return (
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Linux {platform.release()}, "
        f"Python {platform.python_version()}, {runc.stdout.splitlines()[0]}"
    )


if __name__ == "__main__":
    main()
