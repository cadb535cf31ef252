"""The journal as a sink, with a real journald: `journalctl` is what reads it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.systemd.conftest import Services

pytestmark = pytest.mark.booted

NATIVE = "Environment=FORKSHIM_OPTIONS=--log=journal"
MOMENTS = int(os.environ.get("FORKSHIM_MOMENTS", "200"))


def _records(services: Services, unit: str) -> list[dict[str, Any]]:
    """Return the container's own records under its unit, in their order."""
    return [entry for entry in services.bed.journal(unit) if "CONTAINER_LOG_ORDINAL" in entry]


def test_a_line_is_a_record_with_the_containers_fields(services: Services) -> None:
    script = "echo out; echo '  two  '; echo; echo '<4>careful'; printf 'a\\0b\\n'; echo err >&2"
    unit = services.start("web", script, f"{NATIVE},tag=shop")
    assert services.bed.wait_until_inactive(unit) == "inactive"
    name = unit.removeprefix("forkshim@").removesuffix(".service")
    records = _records(services, unit)
    for record in records:
        assert record["_TRANSPORT"] == "journal"
        assert record["_SYSTEMD_UNIT"] == unit
        assert record["CONTAINER_ID"] == record["CONTAINER_NAME"] == name
        assert record["CONTAINER_ID_FULL"] == name
        assert record["SYSLOG_IDENTIFIER"] == record["CONTAINER_TAG"] == "shop"
    by_stream = {
        stream: [
            (record["CONTAINER_LOG_ORDINAL"], record["PRIORITY"], record["MESSAGE"])
            for record in records
            if record["CONTAINER_STREAM"] == stream
        ]
        for stream in ("stdout", "stderr")
    }
    assert by_stream == {
        "stdout": [
            ("1", "6", "out"),
            ("2", "6", "  two  "),
            ("3", "6", ""),
            ("4", "4", "careful"),
            ("5", "6", [97, 0, 98]),
        ],
        "stderr": [("1", "3", "err")],
    }
    assert services.lines(unit) == [], "nothing of it comes by stdout"


def test_a_line_of_a_megabyte_and_one_without_an_end(services: Services) -> None:
    script = "head -c 1000000 /dev/zero | tr '\\0' x; echo; printf half"
    unit = services.start("long", script, NATIVE)
    assert services.bed.wait_until_inactive(unit) == "inactive"
    whole, half = _records(services, unit)
    assert whole["MESSAGE"] == "x" * 1_000_000
    assert "CONTAINER_PARTIAL_MESSAGE" not in whole
    assert (half["MESSAGE"], half["CONTAINER_PARTIAL_MESSAGE"]) == ("half", "true")


@pytest.mark.slow
def test_the_only_line_of_a_container_that_lives_for_a_moment_is_under_its_unit(
    services: Services,
) -> None:
    """Ten at a time, so that journald is behind when they end."""
    drop_in = f"{NATIVE}\n[Unit]\nStartLimitIntervalSec=0"
    units = [services.add("moment", "echo here", drop_in) for _ in range(10)]
    times = MOMENTS // len(units)
    loop = f"for i in $(seq {times}); do systemctl start --wait {' '.join(units)}; done"
    services.bed.ctl("sh", "-c", loop, timeout_s=60 + MOMENTS, check=True)
    for unit in units:
        assert [record["MESSAGE"] for record in _records(services, unit)] == ["here"] * times
