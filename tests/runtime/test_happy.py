"""What must work with every OCI runtime, by both ways in.

`FORKSHIM_TEST_RUNTIME` names the runtime, runc by default; `test_crun.py` runs this file with crun.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.harness import bundles, runtime_calls, waiting
from tests.harness.engine import FORKSHIM, Engine
from tests.harness.person import Person
from tests.harness.runtime_calls import RUNTIME

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.runc


def run_command(tmp_path: Path, bundle: Path, *options: str) -> list[str | Path]:
    return [FORKSHIM, "run", "--runtime", RUNTIME, "--root", tmp_path / "root", "--bundle", bundle,
            *options, bundles.fresh_id("happy")]  # fmt: skip


def test_an_engines_container_lives_and_ends(
    tmp_path: Path, make_bundle: Callable[..., Path]
) -> None:
    bundle = make_bundle("cat; echo err >&2; exit 41")
    with Engine(
        tmp_path / "state",
        bundles.fresh_id("happy"),
        bundle,
        containerdStdin="stdin",
    ) as engine:
        stdout, stderr = engine.attach("stdout", "stderr")
        engine.run()
        os.write(engine.open("stdin", os.O_WRONLY), b"through stdin\n")
        engine.close("stdin")
        engine.control("0 0 0\n")
        assert waiting.read_to_end(stdout) == b"through stdin\n"
        assert waiting.read_to_end(stderr) == b"err\n"
        assert engine.wait_end() == 41
        assert engine.wait_shim() == 0
        assert engine.runtime_state() is None


def test_an_engines_console_can_be_typed_at_and_resized(
    tmp_path: Path, make_bundle: Callable[..., Path]
) -> None:
    # Until: the line may be there before the size is.
    size = "until [ \"$(stty size)\" = '37 91' ]; do sleep 0.02; done; stty size"
    script = f"stty -echo; echo ready; read x; {size}; echo got $x"
    bundle = make_bundle(script, terminal=True)
    with Engine(
        tmp_path / "state",
        bundles.fresh_id("happy"),
        bundle,
        terminal=True,
        containerdStdin="stdin",
        containerdStderr="",
    ) as engine:
        (stdout,) = engine.attach("stdout")
        engine.control("1 91 37\n")
        engine.run()
        waiting.read_until(stdout, b"ready\r\n")
        with pytest.raises(BlockingIOError):  # a worker asleep in splice(2) would lock the fifo
            os.read(stdout, 1)
        os.write(engine.open("stdin", os.O_WRONLY), b"this\n")
        assert waiting.read_to_end(stdout) == b"37 91\r\ngot this\r\n"
        assert engine.wait_end() == 0


@pytest.mark.parametrize("terminal", [False, True])
def test_another_process_runs_in_a_running_container(
    tmp_path: Path, make_bundle: Callable[..., Path], terminal: bool
) -> None:
    bundle = make_bundle("trap 'exit 42' TERM; echo ready; while :; do sleep 0.1; done")
    with Engine(tmp_path / "init", bundles.fresh_id("happy"), bundle) as container:
        stdout, _stderr = container.attach("stdout", "stderr")
        container.run()
        waiting.read_until(stdout, b"ready\n")
        process = json.loads((bundle / "config.json").read_text())["process"]
        process |= {"args": bundles.shell("echo second; exit 43"), "terminal": terminal}
        with Engine(tmp_path / "exec", container.id, bundle, exec=True, **process) as engine:
            out, _err = engine.attach("stdout", "stderr")
            engine.launch()
            wanted = b"second\r\n" if terminal else b"second\n"
            assert waiting.read_to_end(out) == wanted
            assert engine.wait_end() == 43
            assert engine.wait_shim() == 0
        assert container.shim is not None
        container.shim.send_signal(signal.SIGTERM)
        assert container.wait_end() == 42
        assert container.wait_shim() == 0


def test_a_persons_container_ends_with_its_own_status_after_term(
    tmp_path: Path, make_bundle: Callable[..., Path]
) -> None:
    bundle = make_bundle("trap 'echo bye; exit 44' TERM; echo ready; while :; do sleep 0.1; done")
    with subprocess.Popen(run_command(tmp_path, bundle), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == b"bye\n"
        assert process.wait() == 44


def test_a_container_deaf_to_term_is_killed(
    tmp_path: Path, make_bundle: Callable[..., Path]
) -> None:
    bundle = make_bundle("trap '' TERM; echo ready; while :; do sleep 1; done")
    command = run_command(tmp_path, bundle, "--stop-timeout", "0.2")
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 128 + signal.SIGKILL


def test_a_person_gets_a_terminal(tmp_path: Path, make_bundle: Callable[..., Path]) -> None:
    command = run_command(tmp_path, make_bundle("exec sh", terminal=True), "-t", "-i")
    with Person(*command[2:]) as person:
        person.see(b"# ")
        person.type(b"exit 45\n")
        assert person.wait() == 45
        assert person.has_its_terminal_back


def test_a_failed_create_is_explained_and_leaves_nothing(tmp_path: Path, rootfs: Path) -> None:
    document = bundles.config(rootfs, ["no-such-program"])
    bundle = bundles.make_bundle(tmp_path / "bundle", document)
    done = subprocess.run(run_command(tmp_path, bundle), capture_output=True, text=True)
    assert done.returncode == 1
    assert "no-such-program" in done.stderr
    assert os.listdir(tmp_path / "root") == []


def test_a_container_of_the_same_id_is_left_alone(
    tmp_path: Path, make_bundle: Callable[..., Path]
) -> None:
    bundle = make_bundle("sleep 1000")
    command = run_command(tmp_path, bundle)
    container_id = str(command[-1])
    runtime_calls.call("create", "--bundle", bundle, container_id)
    try:
        assert subprocess.run(command, capture_output=True).returncode == 1
        assert json.loads(runtime_calls.call("state", container_id))["status"] == "created"
    finally:
        runtime_calls.delete(container_id)
