"""The journal as a sink, with a real journald: `journalctl` is what reads it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import bundles, waiting

if TYPE_CHECKING:
    from tests.systemd.conftest import Services

pytestmark = pytest.mark.booted

NATIVE = "Environment=FORKSHIM_OPTIONS=--log=journal"
SOCKET_BYTES = 212_992  # net.core.wmem_default
LINES = int(os.environ.get("FORKSHIM_LINES", "100000"))
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


def test_a_stream_of_the_journal_has_the_lines_and_no_more(services: Services) -> None:
    script = "echo out; echo '<4>careful'; echo; echo 'blanks  '; echo err >&2; printf half"
    unit = services.start(
        "stream", script, "Environment='FORKSHIM_OPTIONS=--log=journal-stream,tag=shop'"
    )
    assert services.bed.wait_until_inactive(unit) == "inactive"
    found = [entry for entry in services.bed.journal(unit) if entry["_TRANSPORT"] == "stdout"]
    assert {entry["SYSLOG_IDENTIFIER"] for entry in found} == {"shop"}
    assert sorted((entry["PRIORITY"], entry["MESSAGE"]) for entry in found) == [
        ("3", "err"), ("4", "careful"), ("6", "blanks"), ("6", "half"), ("6", "out"),
    ]  # fmt: skip


class Counting:
    """A container that prints 1, 2, 3, ... and goes on when it is told to."""

    SCRIPT = (
        "exec 3<>/tmp/c/go; while read first last <&3 && [ $last != 0 ]; do seq $first $last; done"
    )
    STEP = 3000

    def __init__(self, services: Services, sink: str) -> None:
        self._bed = services.bed
        self._go = f"/run/{sink}-{os.urandom(3).hex()}/go"
        directory = os.path.dirname(self._go)
        self._bed.ctl("mkdir", "-p", directory, check=True)
        self._bed.ctl("mkfifo", self._go, check=True)
        mount = bundles.bind(directory, "/tmp/c")
        settings = f"Environment=FORKSHIM_OPTIONS=--log={sink}"
        self.unit = services.start("counts", self.SCRIPT, settings, mounts=[mount])
        self.last = 0

    def go_on(self) -> None:
        """Have it print the next numbers, which may not be in the journal yet."""
        self._tell(f"{self.last + 1} {self.last + self.STEP}")
        self.last += self.STEP

    def is_there(self) -> bool:
        """Say whether the last number is in the journal."""
        found = self._bed.journal(self.unit, "--reverse", "--lines=5")
        return any(each["MESSAGE"] == str(self.last) for each in found)

    def end(self) -> list[int]:
        """End it; returns the numbers in the journal."""
        self._tell("0 0")
        assert self._bed.wait_until_inactive(self.unit) == "inactive"
        found = self._bed.journal(self.unit, "--output-fields=MESSAGE")
        return [int(each["MESSAGE"]) for each in found if each["MESSAGE"].isdecimal()]

    def _tell(self, line: str) -> None:
        self._bed.ctl("sh", "-c", f"echo {line} > {self._go}", check=True)


def _disturb(services: Services, verb: str, sink: str) -> tuple[int, list[int]]:
    """Let journald go and come back while a container prints; its last number, and what came."""
    counting = Counting(services, sink)
    counting.go_on()
    waiting.wait_true(counting.is_there)
    counting.go_on()
    # Its sockets start it, too, and so do the tests before: five starts in 10 s are its limit.
    services.bed.ctl("systemctl", "reset-failed", "systemd-journald.service", check=True)
    services.bed.ctl("systemctl", *verb.split(), "systemd-journald.service", check=True)
    counting.go_on()
    services.bed.ctl("systemctl", "reset-failed", "systemd-journald.service", check=True)
    services.bed.ctl("systemctl", "start", "systemd-journald.service", check=True)
    counting.go_on()
    return counting.last, counting.end()


@pytest.mark.parametrize("verb", ["restart", "stop"])
def test_a_journald_that_goes_and_comes_back_misses_no_record(
    services: Services, verb: str
) -> None:
    """Its socket is systemd's, which starts it again for what is in there."""
    last, found = _disturb(services, verb, "journal")
    assert found == list(range(1, last + 1))


def test_a_journald_that_is_killed_misses_at_most_the_record_it_had_taken(
    services: Services,
) -> None:
    last, found = _disturb(services, "kill --signal=KILL", "journal")
    assert found == sorted(set(found))
    assert len(found) >= last - 1


def test_a_journald_that_is_restarted_misses_nothing_of_a_stream(services: Services) -> None:
    last, found = _disturb(services, "restart", "journal-stream")
    assert found == list(range(1, last + 1))


def test_a_journald_that_is_stopped_misses_of_a_stream_only_what_it_has_not_read(
    services: Services,
) -> None:
    """No more than the socket holds; the rest comes by a new stream, in order."""
    last, found = _disturb(services, "stop", "journal-stream")
    assert found == sorted(set(found))
    assert found[-1] == last
    lost = set(range(1, last + 1)) - set(found)
    assert sum(len(f"{number}\n") for number in lost) <= SOCKET_BYTES


NUMBERED = """
BEGIN {
    for (i = 0; i < 200; i++) letters = letters "abcdefghijklmnopqrstuvwxyz";
    for (i = 1; i <= %d; i++)
        printf "%%s\\n", substr(i substr(letters, 1 + i %% 26), 1, 1 + i * 7919 %% 5000);
}
"""


def _numbered(number: int) -> str:
    letters = "abcdefghijklmnopqrstuvwxyz" * 200
    return f"{number}{letters[number % 26 :]}"[: 1 + number * 7919 % 5000]


@pytest.mark.slow
@pytest.mark.timeout(60 + LINES // 1000)
def test_every_one_of_many_lines_is_in_the_journal_once(services: Services) -> None:
    """Of 1 to 5,000 bytes; rate limiting is off in a bed."""
    unit = services.start("many", f"awk '{NUMBERED % LINES}'", NATIVE)
    limit_s = 60.0 + LINES / 1000
    assert services.bed.wait_until_inactive(unit, limit_s) == "inactive"
    number = 0
    entries = services.bed.journal_entries(unit, "--output-fields=MESSAGE,CONTAINER_LOG_ORDINAL")
    for entry in entries:
        if "CONTAINER_LOG_ORDINAL" not in entry:
            continue
        number += 1
        assert (int(entry["CONTAINER_LOG_ORDINAL"]), entry["MESSAGE"]) == (
            number,
            _numbered(number),
        )
    assert number == LINES
