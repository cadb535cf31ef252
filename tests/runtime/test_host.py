"""One supervisor process with three real containers, and a real exec in the third."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.harness import bundles, pod, runtime_calls

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.runc


def test_three_containers_in_one_process_have_their_own_timers_and_ends(
    tmp_path: Path, make_bundle: Callable[..., Path]
) -> None:
    programs = [pod.DEAF, pod.OBEYS, pod.STAYS]
    made = {
        bundles.fresh_id(f"pod{number}"): make_bundle(each) for number, each in enumerate(programs)
    }
    process = {
        "args": bundles.shell(pod.SECOND),
        "cwd": "/",
        "env": ["PATH=/bin"],
        "user": {"uid": 0, "gid": 0},
    }
    try:
        pod.run(tmp_path, runtime_calls.RUNTIME, made, process)
    finally:
        for container_id in made:
            runtime_calls.delete(container_id)
