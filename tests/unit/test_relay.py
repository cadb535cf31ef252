"""What of a container's words to its service manager goes on."""

from __future__ import annotations

import pytest

from supervisor.relay import Words, parse, place_for


@pytest.mark.parametrize(
    ("data", "lines", "status"),
    [
        (b"", "", None),
        (b"READY=1", "READY=1", None),
        (b"STATUS=up\nREADY=1\n", "READY=1", "up"),
        (b"STATUS=a\nSTATUS=b", "", "b"),
        (b"RELOADING=1\nMONOTONIC_USEC=5\nERRNO=2", "RELOADING=1 MONOTONIC_USEC=5 ERRNO=2", None),
        (b"WATCHDOG=1\nWATCHDOG_USEC=7\nBUSERROR=x", "WATCHDOG=1 WATCHDOG_USEC=7 BUSERROR=x", None),
        (b"MAINPID=1\nFDSTORE=1\nFDNAME=x\nNOTIFYACCESS=all\nBARRIER=1", "", None),
        (b"READY=2\nREADY=\nready=1\n READY=1\nWATCHDOG=2\nSTOPPING=0", "", None),
        (b"STATUS=\xff \x00\x1b[2J\t\xc3\xa4", "", "\ufffd ??[2J?ä"),
    ],
)
def test_lines_that_are_allowed_go_on_in_their_order(
    data: bytes, lines: str, status: str | None
) -> None:
    assert parse(data) == Words(tuple(lines.split()), status)


@pytest.mark.parametrize(
    ("mounts", "place"),
    [
        ({"/proc", "/dev", "/run"}, "/run/notify"),
        ({"/proc", "/dev"}, "/dev/notify"),
        ({"/proc"}, "/run/notify"),
    ],
)
def test_its_place_is_in_a_mount_if_there_is_one(mounts: set[str], place: str) -> None:
    assert place_for(mounts) == place
