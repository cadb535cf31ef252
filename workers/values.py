"""Classes of named values: `dataclass` and its like, `NamedTuple` and `Enum`, in little.

The standard library's write source code and compile it, for which they import inspect, ast, re and
typing: 60 million instructions (7 ms) and 2 MB in every supervisor, of which each container has
one. These here do the same for what this project asks of them, by closures. The checkers see
the real ones, whose rules hold; `tests/unit/test_values.py` compares the two.
"""

from __future__ import annotations

from operator import itemgetter

TYPE_CHECKING = False

if TYPE_CHECKING:
    from dataclasses import asdict, dataclass, field, replace
    from enum import Enum
    from typing import NamedTuple
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

    class _EnumMeta(type):
        """Makes each public name of a class the one instance that has its value."""

        def __new__(mcs, name, bases, body):
            """Make the class, then its members in their order."""
            values = {each: value for each, value in body.items() if not each.startswith("_")}
            cls = super().__new__(
                mcs, name, bases, {each: body[each] for each in body if each not in values}
            )
            cls._members = []
            for each, value in values.items():
                if callable(value) or isinstance(value, property):
                    setattr(cls, each, value)
                    continue
                member = object.__new__(cls)
                member.name, member.value = each, value
                setattr(cls, each, member)
                cls._members.append(member)
            return cls

        def __iter__(cls):
            """Give the members in their order."""
            return iter(cls._members)

        def __contains__(cls, member):
            """Say whether it is one of them."""
            return member in cls._members

        def __len__(cls):
            """Count the members."""
            return len(cls._members)

    class Enum(metaclass=_EnumMeta):
        """A class of which there are the members that it names, and no others."""

        def __new__(cls, value):
            """Return the member of that value."""
            for member in cls._members:
                if member.value == value:
                    return member
            raise ValueError(f"{value!r} is no {cls.__name__}")

        def __repr__(self):
            """Show name and value."""
            return f"<{self.__class__.__name__}.{self.name}: {self.value!r}>"

        def __str__(self):
            """Show the name."""
            return f"{self.__class__.__name__}.{self.name}"

    class NamedTuple(tuple):
        """A tuple whose items have names: annotate them in a class derived from this one."""

        __slots__ = ()
        _fields = ()
        _defaults = {}  # noqa: RUF012 -- replaced in each derived class

        def __init_subclass__(cls):
            """Turn the annotations into properties."""
            own = cls.__dict__
            names = tuple(cls.__annotations__)
            cls._defaults = {name: own[name] for name in names if name in own}
            cls._fields = cls.__match_args__ = names
            for index, name in enumerate(names):
                setattr(cls, name, property(itemgetter(index)))

        def __new__(cls, *values, **named):
            """Make one of values in order, then by name, then of defaults."""
            if len(values) > len(cls._fields) or not named.keys() <= {*cls._fields[len(values) :]}:
                raise TypeError(f"{cls.__name__}{cls._fields}: not {values!r}, {named!r}")
            try:
                rest = [
                    named[name] if name in named else cls._defaults[name]
                    for name in cls._fields[len(values) :]
                ]
            except KeyError as error:
                raise TypeError(f"{cls.__name__}: {error} is missing") from None
            return tuple.__new__(cls, (*values, *rest))

        _make = classmethod(tuple.__new__)

        def _replace(self, **changes):
            """Return a copy in which the named items are others."""
            made = tuple.__new__(self.__class__, map(changes.pop, self._fields, self))
            if changes:
                raise ValueError(f"{self.__class__.__name__} has no {', '.join(changes)}")
            return made

        def __getnewargs__(self):
            """Be copied by value."""
            return tuple(self)

        def __repr__(self):
            """Show the names."""
            shown = ", ".join(
                f"{name}={value!r}" for name, value in zip(self._fields, self, strict=True)
            )
            return f"{self.__class__.__name__}({shown})"


__all__ = ["Enum", "NamedTuple", "asdict", "dataclass", "field", "replace"]
