"""A small `dataclass`, with `field`, `replace` and `asdict`, for what this project asks of them.

The standard library's writes source code for each class and compiles it: 0.5 to 1 ms a class on
this project's machines, 31 classes, in every supervisor's start. This one makes closures: 0.02 ms.
Type checkers see the standard library's, whose rules hold; `tests/unit/test_records.py` compares
the two.
"""

from __future__ import annotations

TYPE_CHECKING = False

if TYPE_CHECKING:
    from dataclasses import asdict, dataclass, field, replace
else:
    _MISSING = object()

    class _Factory:
        """The default of a field that is made anew for each instance."""

        __slots__ = ("make",)

        def __init__(self, make):
            self.make = make

    def field(*, default_factory):
        """Give a field a default of its own for each instance."""
        return _Factory(default_factory)

    def dataclass(*, frozen=False, slots=False):
        """Make a class of the annotated names: `__init__`, `__eq__`, `__repr__`, `__match_args__`.

        With `frozen` nothing can be assigned and instances can be hashed; with `slots` there are
        no other attributes. No inheritance of fields, no `__post_init__`: nobody here wants them.
        """
        return lambda cls: _finish(cls, frozen=frozen, slots=slots)

    def _finish(cls, *, frozen, slots):
        names = tuple(cls.__annotations__)
        defaults = {name: cls.__dict__[name] for name in names if name in cls.__dict__}
        body = {name: value for name, value in cls.__dict__.items() if name not in defaults}
        body["__init__"] = _initializer(cls.__name__, names, defaults)
        body["__eq__"] = _is_equal
        body["__repr__"] = _represent
        body["__match_args__"] = names
        body["__hash__"] = _hash if frozen else None
        if frozen:
            body["__setattr__"] = body["__delattr__"] = _refuse
        if slots:
            body["__slots__"] = names
        for name in ("__dict__", "__weakref__"):
            body.pop(name, None)
        return type(cls)(cls.__name__, cls.__bases__, body)

    def _initializer(cls_name, names, defaults):
        store = object.__setattr__

        def __init__(self, *values, **named):  # noqa: N807 -- it is one
            if len(values) > len(names):
                raise TypeError(f"{cls_name} takes {len(names)} values, {len(values)} were given")
            given = dict(zip(names, values, strict=False))
            for name in named:
                if name in given or name not in names:
                    raise TypeError(f"{cls_name}: {name!r} is no field, or was given twice")
            given.update(named)
            for name in names:
                value = given.get(name, _MISSING)
                if value is _MISSING:
                    value = defaults.get(name, _MISSING)
                    if value is _MISSING:
                        raise TypeError(f"{cls_name}: {name!r} is missing")
                    if type(value) is _Factory:
                        value = value.make()
                store(self, name, value)

        return __init__

    def _values(self):
        return tuple(getattr(self, name) for name in self.__match_args__)

    def _is_equal(self, other):
        if other.__class__ is not self.__class__:
            return NotImplemented
        return _values(self) == _values(other)

    def _hash(self):
        return hash(_values(self))

    def _represent(self):
        shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__match_args__)
        return f"{self.__class__.__qualname__}({shown})"

    def _refuse(self, name, *_value):
        raise AttributeError(f"{self.__class__.__name__}.{name} is not to be changed")

    def replace(instance, **changes):
        """Return a copy in which the named fields are others."""
        return instance.__class__(**{**_shallow(instance), **changes})

    def asdict(instance):
        """Return the fields as a dictionary, of values that are not themselves such classes."""
        return _shallow(instance)

    def _shallow(instance):
        return {name: getattr(instance, name) for name in instance.__match_args__}


__all__ = ["asdict", "dataclass", "field", "replace"]
