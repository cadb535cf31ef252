"""What a supervisor imports, as a fresh interpreter sees it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[2]
HEAVY = {"dataclasses", "inspect", "json", "logging", "re", "traceback", "typing", "uuid", "socket"}


def run(code: str) -> str:
    setting = f"import sys; sys.path[:] = {[str(ROOT), *sys.path]!r}\n"
    done = subprocess.run(
        [sys.executable, "-IS", "-c", setting + code], check=True, capture_output=True, text=True
    )
    return done.stdout


@pytest.mark.parametrize(
    "module", ["supervisor.shim_cli", "supervisor.cli", "supervisor.shim", "workers.output"]
)
def test_nothing_is_imported_that_a_supervisor_does_not_use(module: str) -> None:
    names = run(f"import {module}; print(*sys.modules)").split()
    assert not HEAVY & set(names)


@pytest.mark.parametrize("module", ["supervisor.shim_cli", "supervisor.cli"])
def test_before_the_runtime_runs_only_what_it_takes_to_start_it_is_imported(module: str) -> None:
    """To the millisecond that is what an engine and an operator wait longer than for runc alone."""
    names = set(run(f"import {module}; print(*sys.modules)").split())
    later = {"argparse", "collections", "contextlib", "enum", "shutil", "signal", "setproctitle"}
    assert not (HEAVY | later | {"supervisor.crew", "supervisor.upgrade"}) & names


def test_orjson_does_all_we_ask_of_it_without_its_friends() -> None:
    said = run(
        "from workers.lean import orjson\n"
        "print(orjson.loads(orjson.dumps({'a': [1, 2.5, None, True, 'x']})))\n"
    )
    assert said == "{'a': [1, 2.5, None, True, 'x']}\n"


def test_its_errors_read_as_those_of_the_standard_library() -> None:
    text = '{"a": 1,\n "b" }'
    said = run(
        "from workers.lean import orjson\n"
        f"try: orjson.loads({text!r})\n"
        "except orjson.JSONDecodeError as error: print(error, isinstance(error, ValueError))\n"
    )
    with pytest.raises(json.JSONDecodeError) as caught:
        json.loads(text)
    where = str(caught.value).rpartition(": ")[2]
    assert said.endswith(f": {where} True\n")


def test_the_stand_ins_are_gone_afterwards() -> None:
    said = run(
        "from workers import lean\n"
        "lean.set_title('somebody')\n"
        "import dataclasses, datetime, enum, json, logging, uuid\n"
        "print(dataclasses.fields, datetime.date, enum.Enum, json.loads, uuid.uuid4)\n"
        "logging.info('not shown')\n"
        "print(open('/proc/self/cmdline').read().rstrip('\\0'))\n"
    )
    assert said.endswith("\nsomebody\n")


def test_a_version_that_wants_more_is_imported_as_usual(tmp_path: Path) -> None:
    (tmp_path / "greedy.py").write_text("from uuid import UUID, uuid4\nmade = uuid4()\n")
    said = run(
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "from workers.lean import _import_lean\n"
        "print(_import_lean('greedy', {'uuid': {'UUID': object}}).made)\n"
    )
    assert len(said.strip()) == 36
