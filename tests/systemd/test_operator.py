"""What an operator types on a booted machine, and the one line that answers a mistake."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import subprocess

    from tests.beds.nspawn import Bed

pytestmark = pytest.mark.booted


def _said(done: subprocess.CompletedProcess[str]) -> tuple[int, list[str]]:
    return done.returncode, (done.stdout + done.stderr).splitlines()


@pytest.mark.parametrize(
    ("sink", "line"),
    [
        (
            "jornal",
            "no kind is called jornal (did you mean journal?); there are null, path, file, cri, "
            "journal, journal-stream, passthrough; a path has a slash in it, as in ./jornal",
        ),
        (
            "cri:/run/x,max-size=1m",
            "max-size=1m stands behind the path; options come before the colon: "
            "cri,max-size=1m:/run/x",
        ),
        ("cri,max-size=1q:/run/x", "option max-size: '1q' is not a size from 64K to 1T, as in 10M"),
    ],
)
def test_a_mistyped_sink_is_one_line_and_status_2(bed: Bed, sink: str, line: str) -> None:
    done = bed.ctl("forkshim", "run", "--log", sink, "--bundle", "/nowhere", "typo")
    assert _said(done) == (2, [f"forkshim: typo: sink {sink}: {line}"])
    assert not bed.path("/run/x").exists()
