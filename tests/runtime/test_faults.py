"""A few trials of tests/faults in every run; `make soak` has thousands."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.faults.trial import Trial

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.runc, pytest.mark.timeout(300)]

SEED = int(os.environ.get("FORKSHIM_SEED", "20161109"))


@pytest.mark.parametrize("number", range(16))
def test_a_container_under_random_faults_loses_nothing(rootfs: Path, number: int) -> None:
    Trial(rootfs, SEED + number).run(12)
