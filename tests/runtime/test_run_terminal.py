"""`forkshim run -t`: a person's terminal joined to the container's, and given back."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from tests.harness import bundles, runtime_calls, waiting
from tests.harness.person import Person

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.runc


@pytest.fixture
def options(tmp_path: Path) -> Callable[[Path], list[str | Path]]:
    def make(bundle: Path) -> list[str | Path]:
        return ["--root", tmp_path / "root", "--bundle", bundle, bundles.fresh_id("tty")]

    return make


@pytest.mark.parametrize("is_in_config", [True, False])
def test_a_shell_in_the_container_talks_to_the_person(
    options: Callable[[Path], list[str | Path]],
    make_bundle: Callable[..., Path],
    is_in_config: bool,
) -> None:
    """With -t for a bundle whose config.json says false, too; it is not written to."""
    bundle = make_bundle("exec sh", terminal=is_in_config)
    before = (bundle / "config.json").read_bytes()
    with Person("-t", "-i", *options(bundle)) as person:
        person.see(b"# ")
        person.type(b"tty; echo a$((40+2))z\n")
        assert b"/dev/pts/0\r\n" in person.see(b"a42z")
        assert not person.has_its_terminal_back
        person.type(b"exit 3\n")
        assert person.wait() == 3
        assert person.has_its_terminal_back
    assert (bundle / "config.json").read_bytes() == before


def test_keys_are_the_containers_also_those_that_would_signal_us(
    options: Callable[[Path], list[str | Path]], make_bundle: Callable[..., Path]
) -> None:
    # Until: whether the key comes before or during `read`, the line that follows is read whole.
    bundle = make_bundle(
        "trap 'echo caught' INT; echo ready; until read x; do :; done; echo got $x"
    )
    with Person("-t", "-i", *options(bundle)) as person:
        person.see(b"ready")
        person.type(b"\x03")
        person.see(b"caught")
        person.type(b"abc\n")
        person.see(b"got abc")
        assert person.wait() == 0


def test_the_window_is_the_containers_window_and_follows_changes(
    options: Callable[[Path], list[str | Path]], make_bundle: Callable[..., Path]
) -> None:
    bundle = make_bundle(
        "trap 'stty size' WINCH; trap 'exit 0' TERM; stty size; while :; do sleep 0.1; done"
    )
    with Person("-t", "-i", *options(bundle), columns=101, rows=33) as person:
        person.see(b"33 101")
        person.resize(72, 19)
        person.see(b"19 72")
        person.command.send_signal(signal.SIGTERM)


def test_without_i_there_is_no_raw_mode_and_ctrl_c_stops(
    options: Callable[[Path], list[str | Path]], make_bundle: Callable[..., Path]
) -> None:
    bundle = make_bundle("trap 'echo bye; exit 4' TERM; echo ready; while :; do sleep 0.1; done")
    with Person("-t", *options(bundle)) as person:
        person.see(b"ready")
        assert person.has_its_terminal_back
        person.type(b"\x03")
        person.see(b"bye")
        assert person.wait() == 4


@pytest.mark.parametrize("way_out", ["TERM", "HUP then exit", "runtime error"])
def test_the_terminal_is_given_back_on_every_way_out(
    options: Callable[[Path], list[str | Path]],
    make_bundle: Callable[..., Path],
    rootfs: Path,
    tmp_path: Path,
    way_out: str,
) -> None:
    script = "trap 'exit 6' TERM HUP; echo ready; while :; do sleep 0.1; done"
    bundle = make_bundle(script, terminal=True)
    if way_out == "runtime error":
        document = bundles.config(rootfs, ["no-such-program"], terminal=True)
        bundle = bundles.make_bundle(tmp_path / "bad", document)
    with Person("-t", "-i", *options(bundle)) as person:
        if way_out == "runtime error":
            assert person.wait() == 1
        else:
            person.see(b"ready")
            person.command.send_signal(signal.SIGTERM if way_out == "TERM" else signal.SIGHUP)
            assert person.wait() == 6
        assert person.has_its_terminal_back


def test_the_terminal_is_given_back_even_after_kill_9(
    options: Callable[[Path], list[str | Path]], make_bundle: Callable[..., Path]
) -> None:
    arguments = options(make_bundle("echo ready; sleep 1000"))
    with Person("-t", "-i", *arguments) as person:
        person.see(b"ready")
        stdin_worker = waiting.wait_worker(person.command.pid, "stdin")
        workers = waiting.children_of(person.command.pid)
        person.command.kill()
        person.command.wait()
        waiting.wait_process(stdin_worker)
        assert person.has_its_terminal_back
        runtime_calls.delete(str(arguments[-1]))
        for pid in workers:
            waiting.wait_process(pid)


def test_a_closed_terminal_window_does_not_hang_the_container(
    options: Callable[[Path], list[str | Path]], make_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    """The terminal is hung up: its SIGHUP is forwarded, output goes nowhere, nothing blocks."""
    script = "trap 'seq 200000; exit 0' HUP; echo ready; while :; do sleep 0.1; done"
    arguments = options(make_bundle(script, terminal=True))
    person = Person("-t", "-i", *arguments)
    with person:
        person.see(b"ready")
        os.close(person.pts_fd)
        os.close(person.ptmx_fd)
        assert person.wait() == 0
        person.ptmx_fd, person.pts_fd = os.open("/dev/null", 0), os.open("/dev/null", 0)
    assert os.listdir(tmp_path / "root") == []
