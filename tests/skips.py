"""What the test session leaves out, and that it says so.

Tests with a marker of `ROOT_MARKERS` are skipped for an ordinary user. Whatever was skipped, for
this or any other reason, is listed at the end. With CI=true a skip is a failure: CI is the place
where everything runs.
"""

from __future__ import annotations

import os
from collections import Counter
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable

ROOT_MARKERS = {
    "runc": "needs root to run containers",
    "booted": "needs root to boot systemd",
    "vm": "needs root to boot a virtual machine",
    "engine": "needs root to run containerd",
    "criu": "needs root to checkpoint containers",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what this user may not run as skipped."""
    if os.geteuid() == 0:
        return
    for item in items:
        for marker, reason in ROOT_MARKERS.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))
                break


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """In CI, fail a session that skipped."""
    if _skips_are_failures() and _skips(session.config) and session.exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """List what was left out: how many tests of which group, and why."""
    left_out = Counter(_group_and_reason(report) for report in _skips(config))
    if not left_out:
        return
    terminalreporter.section("left out")
    for (group, reason), count in sorted(left_out.items()):
        terminalreporter.line(f"{count:4} in {group}: {reason}")
    if _skips_are_failures():
        terminalreporter.line("CI=true: a skip is a failure", red=True)


def _skips_are_failures() -> bool:
    return os.environ.get("CI", "").lower() in {"1", "true"}


def _skips(config: pytest.Config) -> list[pytest.TestReport | pytest.CollectReport]:
    """Reports of skipped tests and modules; an expected failure is none of them."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    reports: Iterable[object] = reporter.stats.get("skipped", ()) if reporter else ()
    return [r for r in reports if isinstance(r, (pytest.TestReport, pytest.CollectReport))]


def _group_and_reason(report: pytest.TestReport | pytest.CollectReport) -> tuple[str, str]:
    """Name the marker that needs root, or else the folder; and say why it was skipped."""
    folder = os.path.dirname(report.nodeid.partition("::")[0])
    keywords = getattr(report, "keywords", ())  # a skipped module has none
    group = next((marker for marker in ROOT_MARKERS if marker in keywords), folder)
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return group, reason.removeprefix("Skipped: ")
