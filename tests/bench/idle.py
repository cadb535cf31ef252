"""What containers cost that do nothing: memory and wake-ups, beside conmon and containerd's shim.

Only who supervises counts: supervisor and workers, conmon, containerd-shim-runc-v2; not the
containers, and not containerd or whatever else there is once on a machine. Wake-ups are voluntary
context switches of all their threads.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

from tests.bench import peers, processes
from tests.bench.case import Case, Sample, Setting, Variant, at_most
from tests.bench.crowd import Conmons, Containerds, Crowd, Forkshims

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_SETTLED_S = 1.0  # for the last that was started


def cases(setting: Setting) -> Iterator[Case]:
    """One crowd of each kind, which grows."""

    def side(make: Callable[[], Crowd]) -> Callable[[], Sample]:
        return partial(_measure, make, setting)

    shim = "containerd-shim-runc-v2"
    yield Case(
        "idle",
        f"idle, for each container; wake-ups in {setting.scale.watched_s:g} s",
        [
            Variant(
                "forkshim",
                side(lambda: Forkshims(setting.rootfs, setting.programs)),
                is_ours=True,
            ),
            Variant("conmon", side(lambda: Conmons(setting.rootfs)), peers.need(peers.CONMON)),
            Variant(
                shim,
                side(lambda: Containerds(setting.rootfs)),
                peers.need(peers.CTR),
            ),
        ],
        [
            *(at_most(0, f"wake-ups of {count}") for count in setting.scale.idle),
            at_most(3, "PSS of 50, MB", beside=shim),
        ],
        is_once=True,
    )


def _measure(make: Callable[[], Crowd], setting: Setting) -> Sample:
    sample: Sample = {}
    with make() as crowd:
        for count in setting.scale.idle:
            while len(crowd) < count:
                crowd.add()
            pids = crowd.pids()
            time.sleep(min(_SETTLED_S, setting.scale.watched_s))
            before = processes.wake_ups(pids)
            time.sleep(setting.scale.watched_s)
            sample[f"wake-ups of {count}"] = processes.wake_ups(pids) - before
            for what, much in processes.memory_mb(pids).items():
                sample[f"{what} of {count}, MB"] = much / count
    return sample
