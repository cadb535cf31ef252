"""Modules without what they import for those who use more of them.

orjson looks up five classes when it is imported, so that it knows a dataclass or a UUID when it
sees one; setproctitle wants a logger. None is of use here, and to import their modules takes 75
million instructions (10 ms of each start) and 2 MB of each supervisor. So while the two are
imported, stand-ins are in the places of those modules that nobody has imported yet. Should another
version look for something else, it is imported as usual.

And three of the standard library's: `suppress` without contextlib and the collections that it
wants, `partial`, which is C, and the functions of the module `signal`, whose own numbers are enums:
22 million instructions (3 ms) for names that only a log line shows (`waitstatus.signal_name`).
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as signal
    from collections.abc import Mapping
    from contextlib import suppress as suppress
    from functools import partial as partial
    from types import ModuleType

    import orjson as orjson


class _JSONDecodeError(ValueError):
    """What `json.JSONDecodeError` is: orjson derives its own from it."""

    def __init__(self, msg: str, doc: str, pos: int) -> None:
        """Say where, in the words of the standard library."""
        self.msg, self.doc, self.pos = msg, doc, pos
        self.lineno = doc.count("\n", 0, pos) + 1
        self.colno = pos - doc.rfind("\n", 0, pos)
        super().__init__(f"{msg}: line {self.lineno} column {self.colno} (char {pos})")


class _Nobody:
    """A class of which nothing here is an instance."""

    def __init__(self, _name: str) -> None:
        """Be whoever was asked for."""


def _import_lean(name: str, stand_ins: Mapping[str, Mapping[str, object]]) -> ModuleType:
    """Import `name` with `stand_ins`, names of modules and what is in them."""
    placed = [each for each in stand_ins if each not in sys.modules]
    for each in placed:
        stand_in = type(sys)(each)
        stand_in.__dict__.update(stand_ins[each])
        sys.modules[each] = stand_in
    try:
        __import__(name)
    except (ImportError, AttributeError):
        sys.modules.pop(name, None)
    finally:
        for each in placed:
            del sys.modules[each]
    __import__(name)
    return sys.modules[name]


def _import_orjson() -> ModuleType:
    try:
        from _datetime import datetime_CAPI  # type: ignore[import-not-found] # it has no stub
    except ImportError:  # an interpreter that has it elsewhere
        __import__("datetime")
        datetime_CAPI = None  # noqa: N806 -- the name of the C API
    return _import_lean(
        "orjson",
        {
            "dataclasses": {"_FIELD": _Nobody},
            "datetime": {"datetime_CAPI": datetime_CAPI},
            "enum": {"EnumMeta": _Nobody},
            "json": {"JSONDecodeError": _JSONDecodeError},
            "uuid": {"UUID": _Nobody},
        },
    )


def set_title(title: str) -> None:
    """Be called `title` in ps(1). The first call imports setproctitle."""
    module = sys.modules.get("setproctitle")
    if module is None:
        module = _import_lean("setproctitle", {"logging": {"getLogger": _Nobody}})
    module.setproctitle(title)


if not TYPE_CHECKING:
    import _signal as signal  # noqa: F401
    from _functools import partial  # noqa: F401

    orjson = _import_orjson()

    class suppress:  # noqa: N801 -- the name of contextlib's
        """Go on behind a `with` block that has raised one of some errors."""

        def __init__(self, *errors):
            self._errors = errors

        def __enter__(self):
            """Begin."""

        def __exit__(self, kind, _error, _traceback):
            """Say whether it was one of them."""
            return kind is not None and issubclass(kind, self._errors)
