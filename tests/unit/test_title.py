"""The title's function when setproctitle keeps its C module elsewhere."""

from __future__ import annotations

from importlib.machinery import PathFinder
from types import SimpleNamespace

import pytest
import setproctitle

from workers.process import title


@pytest.mark.parametrize("package", [None, SimpleNamespace(submodule_search_locations=[])])
def test_without_its_c_module_the_package_is_asked(
    monkeypatch: pytest.MonkeyPatch, package: SimpleNamespace | None
) -> None:
    def find(name: str, _places: object = None) -> SimpleNamespace | None:
        return package if name == "setproctitle" else None

    monkeypatch.setattr(PathFinder, "find_spec", find)
    assert title.load() is setproctitle.setproctitle
