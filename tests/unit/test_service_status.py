"""How a number of bytes is told."""

from __future__ import annotations

import pytest

from supervisor.container.service_status import size


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (1 << 20, "1.0 MiB"),
        ((1 << 20) - 1, "1.0 MiB"),
        (5 << 30, "5.0 GiB"),
        (3 << 40, "3.0 TiB"),
        (1 << 60, "1048576.0 TiB"),
    ],
)
def test_a_number_of_bytes_is_told_as_a_person_reads_it(count: int, text: str) -> None:
    assert size(count) == text
