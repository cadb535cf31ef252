"""What a failed test shows besides: the logs of its supervisors and of the runtimes they called."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator

_NAMES = ("shim-log.json", "log.json")
_MOST_FILES = 8
_MOST_CHARACTERS = 4000


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the logs below the test's own directory, the last ones to be written."""
    report = yield
    directory = getattr(item, "funcargs", {}).get("tmp_path")
    if report.failed and isinstance(directory, Path):
        for path in _logs(directory)[-_MOST_FILES:]:
            text = path.read_text(errors="replace")[-_MOST_CHARACTERS:]
            report.sections.append((str(path.relative_to(directory)), text))
    return report


def _logs(directory: Path) -> list[Path]:
    """Return those that are files and not empty: some tests put something else in their place."""
    found = [path for path in directory.rglob("*log.json") if path.name in _NAMES]
    files = [path for path in found if path.is_file() and path.stat().st_size]
    return sorted(files, key=lambda path: path.stat().st_mtime_ns)
