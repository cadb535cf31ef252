"""The bounds of the source tree, as CONTRIBUTING has them."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = sorted(
    path for tree in ("supervisor", "workers") for path in (ROOT / tree).rglob("*")
    if path.is_dir() and path.name != "__pycache__"
)  # fmt: skip
MODULES = sorted(module for folder in FOLDERS for module in folder.glob("*.py"))
MOST_MODULES, MOST_LINES, MOST_METHODS, MOST_ATTRIBUTES = 14, 400, 25, 15


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("folder", FOLDERS, ids=_name)
def test_a_folder_has_few_modules(folder: Path) -> None:
    modules = [path.name for path in folder.glob("*.py") if path.name != "__init__.py"]
    assert len(modules) <= MOST_MODULES, modules


def test_a_module_is_short_and_a_packages_own_is_empty() -> None:
    lines = {_name(path): len(path.read_text().splitlines()) for path in MODULES}
    assert {name: count for name, count in lines.items() if count > MOST_LINES} == {}
    own = [name for name in lines if name.count("/") > 1 and name.endswith("__init__.py")]
    assert {name: lines[name] for name in own if lines[name]} == {}


def test_a_large_class_says_why() -> None:
    """By a sentence of its docstring: `It has many methods, because ...`."""
    silent = []
    for path in MODULES:
        for found in ast.walk(ast.parse(path.read_text())):
            if isinstance(found, ast.ClassDef) and _is_large(found):
                why = ast.get_docstring(found) or ""
                if not re.search(r"(?i)\bmany (methods|attributes)\b", why):
                    silent.append(f"{_name(path)}: {found.name}")
    assert silent == []


def _is_large(found: ast.ClassDef) -> bool:
    methods = [each for each in found.body if isinstance(each, ast.FunctionDef)]
    declared = {
        each.target.id for each in found.body
        if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)
    }  # fmt: skip
    assigned = {
        each.attr for each in ast.walk(found)
        if isinstance(each, ast.Attribute) and isinstance(each.ctx, ast.Store)
        and isinstance(each.value, ast.Name) and each.value.id == "self"
    }  # fmt: skip
    return len(methods) > MOST_METHODS or len(declared | assigned) > MOST_ATTRIBUTES
