"""The completion record's codec."""

from __future__ import annotations

import errno

import orjson
import pytest

from workers.process import report
from workers.process.report import Report, ReportError


@pytest.mark.parametrize(
    "record",
    [
        Report("stdout", 0),
        Report("stderr", 2**62),
        Report("stdin", 7, errno.EPIPE, "sink"),
        Report("console", 1, errno.EIO),
        Report('a "name" \n with \0 anything', 1),
    ],
)
def test_a_record_is_one_line_and_comes_back_as_it_was(record: Report) -> None:
    line = report.encode(record)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert report.decode(line) == record


def _name_for(line_bytes: int) -> str:
    return "x" * (line_bytes - len(report.encode(Report("", 0))))


def test_a_record_of_4096_bytes_is_written_in_one_piece() -> None:
    record = Report(_name_for(4096), 0)
    line = report.encode(record)
    assert len(line) == 4096
    assert report.decode(line) == record


def test_a_record_of_4097_bytes_is_refused_on_both_sides() -> None:
    record = Report(_name_for(4097), 0)
    with pytest.raises(ReportError, match="a report of 4097 bytes"):
        report.encode(record)
    line = report.encode(Report("", 0)).replace(b'""', b'"' + record.stream.encode() + b'"', 1)
    assert len(line) == 4097
    with pytest.raises(ReportError, match="a torn report of 4097 bytes"):
        report.decode(line)


def test_nothing_at_all_is_no_record_and_no_error() -> None:
    assert report.decode(b"") is None


GOOD = {"stream": "stdout", "copied_bytes": 1, "errno": 0, "side": ""}


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"junk\n",
        b"[]\n",
        b"null\n",
        b"{}\n",
        b"\xff\n",
        orjson.dumps(GOOD),
        orjson.dumps(GOOD)[:-5],
        orjson.dumps(GOOD) + b"\n" + orjson.dumps(GOOD) + b"\n",
        *(
            orjson.dumps({key: value for key, value in GOOD.items() if key != left_out}) + b"\n"
            for left_out in GOOD
        ),
        orjson.dumps({**GOOD, "stream": 1}) + b"\n",
        orjson.dumps({**GOOD, "copied_bytes": "1"}) + b"\n",
        orjson.dumps({**GOOD, "errno": None}) + b"\n",
        orjson.dumps({**GOOD, "side": []}) + b"\n",
        # The supervisor passes the number to strerror(3), and adds the counts.
        *(orjson.dumps({**GOOD, "errno": wild}) + b"\n" for wild in (-1, 4096, 2**31, 2**63)),
        *(
            orjson.dumps({**GOOD, name: wild}) + b"\n"
            for name in ("copied_bytes", "left_bytes", "left_lines")
            for wild in (-1, 2**62 + 1, 2**64 - 1)
        ),
    ],
)
def test_anything_but_one_whole_record_is_an_error(line: bytes) -> None:
    with pytest.raises(ReportError):
        report.decode(line)


def test_unknown_fields_are_ignored() -> None:
    assert report.decode(orjson.dumps({**GOOD, "more": 1}) + b"\n") == Report("stdout", 1)


@pytest.mark.parametrize(
    ("number", "name"), [(0, ""), (errno.EPIPE, "EPIPE"), (errno.ENOSPC, "ENOSPC"), (9999, "9999")]
)
def test_an_errno_is_named(number: int, name: str) -> None:
    assert Report("stdout", 0, number).errno_name == name
