"""Container ids."""

from __future__ import annotations

import pytest

from supervisor.linux.errors import UsageError
from supervisor.state.container_id import check_id


@pytest.mark.parametrize(
    "container_id", ["a", "0", "_", "+", ".a", "...", "web-1", "A.b_c+d-e", "a" * 255]
)
def test_what_runc_accepts_and_a_directory_can_be_called_is_accepted(container_id: str) -> None:
    check_id(container_id)


@pytest.mark.parametrize(
    "container_id",
    ["", ".", "..", "-a", "a/b", "a b", "a\n", "\n", "a\0", "é", "a:b", "a*", "٣", "x" * 61 + "/"],
)
def test_anything_else_is_refused_with_the_rule(container_id: str) -> None:
    with pytest.raises(UsageError, match="only letters, digits, _ \\+ \\. - and no - at the begin"):
        check_id(container_id)


def test_256_characters_are_too_long_and_shown_in_short() -> None:
    with pytest.raises(UsageError, match="longer than 255 characters") as caught:
        check_id("a" * 256)
    assert "a" * 60 + "..." in str(caught.value)
    assert "a" * 61 not in str(caught.value)


def test_an_id_of_60_characters_is_shown_whole() -> None:
    with pytest.raises(UsageError) as caught:
        check_id("/" * 60)
    assert repr("/" * 60) in str(caught.value)
