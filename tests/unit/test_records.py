"""Records and the standard library's dataclasses, side by side."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest

import workers.common.records as ours

if TYPE_CHECKING:
    from types import ModuleType


def make(module: ModuleType, **options: bool) -> Any:
    @module.dataclass(**options)
    class Point:
        """A place."""

        x: int
        y: int = 2
        marks: list[str] = module.field(default_factory=list)

        @property
        def total(self) -> int:
            return self.x + self.y

        @classmethod
        def origin(cls) -> Any:
            return cls(x=0, y=0)  # type: ignore[call-arg] # it cannot see what `module` is

    return Point


@pytest.fixture(params=[dataclasses, ours], ids=["the standard library's", "ours"])
def module(request: pytest.FixtureRequest) -> ModuleType:
    found: ModuleType = request.param
    return found


@pytest.fixture(params=[False, True], ids=["mutable", "frozen"])
def point(request: pytest.FixtureRequest, module: ModuleType) -> Any:
    return make(module, frozen=request.param, slots=True)


def test_values_come_in_order_by_name_and_by_default(point: Any) -> None:
    made = point(1, marks=["a"])
    assert (made.x, made.y, made.marks, made.total) == (1, 2, ["a"], 3)
    assert point.origin().total == 0
    assert point.__doc__ == "A place."
    assert point.__name__ == "Point"


def test_each_instance_has_its_own_default(point: Any) -> None:
    assert point(1).marks is not point(1).marks


@pytest.mark.parametrize(
    ("values", "named"), [((), {}), ((1, 2, [], 4), {}), ((1,), {"x": 2}), ((1,), {"z": 2})]
)
def test_wrong_values_are_refused(
    point: Any, values: tuple[Any, ...], named: dict[str, Any]
) -> None:
    with pytest.raises(TypeError):
        point(*values, **named)


def test_equal_values_are_equal(point: Any) -> None:
    assert point(1) == point(1)
    assert point(1) != point(2)
    assert point(1) != (1, 2, [])


def test_the_representation_has_every_field(point: Any) -> None:
    assert repr(point(1)).endswith("Point(x=1, y=2, marks=[])")


def test_a_frozen_record_is_immutable_and_hashable(module: ModuleType) -> None:
    frozen = make(module, frozen=True, slots=True)
    made = frozen(1, marks=())
    assert {made: "found"}[frozen(1, marks=())] == "found"
    with pytest.raises(AttributeError):
        made.x = 2
    with pytest.raises(AttributeError):
        del made.x
    assert not hasattr(made, "__dict__")


def test_a_mutable_record_is_not_hashable(module: ModuleType) -> None:
    made = make(module, slots=True)(1)
    made.x = 5
    assert made.x == 5
    with pytest.raises(AttributeError):
        made.z = 5
    with pytest.raises(TypeError, match="unhashable"):
        hash(made)


def test_replace_and_asdict(module: ModuleType, point: Any) -> None:
    assert module.replace(point(1), y=7) == point(1, 7)
    assert module.asdict(point(1, 7)) == {"x": 1, "y": 7, "marks": []}
    with pytest.raises(TypeError):
        module.replace(point(1), z=7)


def test_a_pattern_matches_the_fields_in_order(point: Any) -> None:
    match point(3, 4):
        case point(x, y):
            assert (x, y) == (3, 4)
        case _:
            pytest.fail("no match")


def test_a_class_without_slots_is_refused() -> None:
    with pytest.raises(TypeError, match="only classes with slots"):
        make(ours, slots=False)
