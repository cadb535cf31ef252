"""The promises of `test_ctr` that our shim keeps, with our shim."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.engines import test_ctr
from tests.engines.containerd import OURS

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.engines.containerd import Containerd

pytestmark = [pytest.mark.engine, pytest.mark.process]


@pytest.mark.parametrize(
    "promise",
    [
        test_ctr.test_output_and_status_are_the_containers,
        test_ctr.test_a_killed_container_has_the_status_of_its_signal,
        test_ctr.test_much_output_comes_whole,
        test_ctr.test_short_containers_lose_no_line,
        test_ctr.test_input_reaches_the_container_and_its_end_too,
        test_ctr.test_a_terminal_is_the_containers,
        test_ctr.test_a_program_that_is_not_there_is_an_error_that_leaves_nothing,
        test_ctr.test_a_container_is_started_killed_and_removed_step_by_step,
        test_ctr.test_many_execs_leave_nothing_in_the_shim,
        test_ctr.test_a_paused_container_stands_still_until_it_is_resumed,
        test_ctr.test_the_processes_of_a_container_are_told_apart,
        test_ctr.test_containers_of_a_group_share_one_shim,
    ],
)
def test_ours(cd: Containerd, promise: Callable[[Containerd, str], None]) -> None:
    promise(cd, OURS)
