"""`make fuzz`: malformed messages and frames, one round after the other, for so long.

python -m tests.fuzz [--seconds N] [--seed N]
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import time
import traceback

from tests.fuzz.wire import ServerRounds, decode_round

_MOST_GROWTH_KIB = 4096
"""After a tenth of the time: a round needs a few frames of 4 MiB, and frees them."""


def main() -> int:
    """Run rounds; returns 1 after a failed one, with its seed, and if memory has grown."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0, help="how long (default: 600)")
    parser.add_argument("--seed", type=int, default=20161109, help="of the first round")
    words = parser.parse_args()
    server = ServerRounds()
    seed, began_s = words.seed, time.monotonic()
    fds = len(os.listdir("/proc/self/fd"))
    warm_kib, said_s = 0, 0.0
    while (passed_s := time.monotonic() - began_s) < words.seconds:
        try:
            decode_round(seed)
            if seed % 8 == 0:
                server.run(seed)
        except Exception:
            traceback.print_exc()
            print(f"FAILED: again: python -m tests.fuzz --seconds 1 --seed {seed}")
            return 1
        seed += 1
        if not warm_kib and passed_s > words.seconds / 10:
            warm_kib = _resident_kib()
        if passed_s - said_s >= 60:
            said_s = passed_s
            print(f"{passed_s / 60:.0f} min: {seed - words.seed} rounds, {_resident_kib()} KiB")
    server.close()
    grown_kib = _resident_kib() - warm_kib
    more_fds = len(os.listdir("/proc/self/fd")) + 1 - fds  # the loop's is closed
    print(f"{seed - words.seed} rounds; memory grew by {grown_kib} KiB, fds by {more_fds}")
    return int(grown_kib > _MOST_GROWTH_KIB or more_fds != 0)


def _resident_kib() -> int:
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * (os.sysconf("SC_PAGE_SIZE") // 1024)


if __name__ == "__main__":
    sys.exit(main())
