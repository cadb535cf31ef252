"""Exit statuses of the errors, and the protocol's words for an errno."""

from __future__ import annotations

import errno
import os
import re

import pytest

from supervisor.linux import errors


@pytest.mark.parametrize(
    ("error_class", "exit_status"),
    [
        (errors.ShimError, 1),
        (errors.UsageError, 2),
        (errors.RuntimeMissingError, 5),
        (errors.BundleError, 6),
        (errors.RecordError, 65),
        (errors.AlreadySupervisedError, 75),
        (errors.RuntimeFailedError, 1),
        (errors.StoppedError, 143),
    ],
)
def test_each_error_has_the_exit_status_of_its_documentation(
    error_class: type[errors.ShimError], exit_status: int
) -> None:
    error = error_class("why")
    assert isinstance(error, errors.ShimError)
    assert (error.exit_status, str(error)) == (exit_status, "why")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOENT, os.strerror(errno.ENOENT)), "no such file or directory"),
        (OSError(errno.EACCES, os.strerror(errno.EACCES), "/etc/shadow"), "permission denied"),
        (OSError("Something else"), "something else"),
        (OSError(), ""),
    ],
)
def test_a_reason_is_strerror_with_a_small_first_letter(error: OSError, said: str) -> None:
    assert errors.reason(error) == said


def _fail() -> None:
    raise KeyError("gone")


def test_calls_are_told_from_the_outermost_with_the_causes() -> None:
    def outer() -> None:
        try:
            _fail()
        except KeyError as error:
            raise ValueError("bad") from error

    with pytest.raises(ValueError, match="bad") as caught:
        outer()
    said = errors.describe_calls(caught.value)
    lines = r":\d+"
    here = r"test_errors\.test_calls_are_told_from_the_outermost_with_the_causes"
    assert re.fullmatch(
        rf"ValueError: bad \({here}{lines} > test_errors\.outer{lines}\); caused by "
        rf"KeyError: 'gone' \(test_errors\.outer{lines} > test_errors\._fail{lines}\)",
        said,
    )


def test_a_chain_of_causes_has_an_end() -> None:
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    assert errors.describe_calls(first).count("caused by") == 3
