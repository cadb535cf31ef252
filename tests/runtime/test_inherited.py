"""What a caller hands down and what of it the container gets: row by row, as README's table has it.

The same caller runs `runc run`, which is the reference.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.harness import bundles, waiting
from tests.harness.engine import FORKSHIM
from tests.harness.person import Person

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.runc

PECULIAR = Path(__file__).parents[1] / "programs" / "peculiar.py"
SHOW = r"""
show() { echo "$1: $2"; }
status() { sed -n "s/^$1:[[:space:]]*//p" /proc/$$/status; }
limit() { sed -n "s/^Max $1  *\([^ ]*\)  *\([^ ]*\) .*/\1 \2/p" /proc/$$/limits; }
show ignored $(sed -n "s/^SigIgn:[[:space:]]*//p" /proc/self/status)  # the shell's own is its own
show blocked $(status SigBlk)
show capabilities "$(status CapInh) $(status CapEff) $(status CapBnd) $(status CapAmb)"
show umask $(status Umask)
show affinity $(status Cpus_allowed_list)
show files "$(limit 'open files')"
show core "$(limit 'core file size')"
show stack "$(limit 'stack size')"
set -- $(cat /proc/$$/stat)
show nice ${19}; show terminal $7; show session $6; show group $5
show oom $(cat /proc/$$/oom_score_adj)
show personality $(cat /proc/$$/personality)
read slack < /proc/self/timerslack_ns; show slack $slack
show priority "$(ionice -p $$)"
show directory $(pwd)
printf 'descriptors: '; ls -x /proc/$$/fd
show environment "$(env | grep -v ^SHLVL | sort | tr '\n' ' ')"
show keyring $(sed -n 's/.*_ses.\(fst-[a-z]*\).*/\1/p' /proc/keys | sort -u | grep inherited)
show end of
"""

# Named in README: what the container gets, whatever the caller has.
ROWS = {
    "ignored": "0000000000000000",
    "blocked": "0000000000000000",
    "umask": "0022",
    "files": "400 400",
    "core": "0 4096",
    "stack": "4194304 67108864",
    "nice": "5",
    "terminal": "0",
    "session": "1",
    "group": "1",
    "oom": "321",
    "personality": "00040000",
    "slack": "123456",
    "priority": "best-effort: prio 6",
    "directory": "/",
    "descriptors": "0 1 2",
    "environment": "HOME=/ PATH=/bin PWD=/ TERM=xterm",
    "keyring": "fst-inherited",
}
ON_PURPOSE = {"blocked"}
"""Here `runc run` hands down what ours does not."""


def parse(text: str) -> dict[str, str]:
    lines = text.replace("\r", "").splitlines()
    return {name: " ".join(value.split()) for name, _, value in
            (line.partition(": ") for line in lines)}  # fmt: skip


def peculiar(*argv: str | Path) -> list[str | Path]:
    caller = ["setpriv", "--inh-caps", "+net_raw", "--ambient-caps", "+net_raw"]
    return [*caller, sys.executable, PECULIAR, *argv]


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory, rootfs: Path) -> dict[str, dict[str, str]]:
    """What the container's process shows, by who has run it."""
    directory = tmp_path_factory.mktemp("inherited")
    bundle = bundles.make_bundle(directory / "b", bundles.config(rootfs, bundles.shell(SHOW)))
    ours: list[str | Path] = [FORKSHIM, "run", "--root", directory / "root", "--bundle", bundle]

    def output(*argv: str | Path) -> dict[str, str]:
        done = subprocess.run(
            peculiar(*argv, bundles.fresh_id("inherited")),
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=waiting.LIMIT_S,
        )  # fmt: skip
        assert done.returncode == 0, done
        return parse(done.stdout)

    log = directory / "log"
    output(*ours, "--detach", "--log", f"file:{log}")
    waiting.wait_true(lambda: log.read_text().endswith("end: of\n"))
    waiting.wait_true(lambda: not [*(directory / "root").glob("*/supervisor.pid")])
    return {
        "runc": output("runc", "run", "--bundle", bundle),
        "foreground": output(*ours),
        "terminal": output(*ours, "-t"),
        "daemon": parse(log.read_text()),
    }


@pytest.mark.parametrize("way", ["foreground", "daemon"])
@pytest.mark.parametrize("row", ROWS)
def test_the_container_gets_what_the_table_says(
    shown: dict[str, dict[str, str]], way: str, row: str
) -> None:
    assert shown[way][row] == ROWS[row]


@pytest.mark.parametrize("row", [row for row in ROWS if row not in ON_PURPOSE])
def test_it_is_what_runc_hands_down_but_for_what_is_changed_on_purpose(
    shown: dict[str, dict[str, str]], row: str
) -> None:
    assert shown["foreground"][row] == shown["runc"][row]


@pytest.mark.parametrize("way", ["foreground", "daemon", "terminal"])
def test_affinity_and_capabilities_are_runcs(shown: dict[str, dict[str, str]], way: str) -> None:
    assert shown[way]["affinity"] == str(max(os.sched_getaffinity(0)))
    assert shown[way]["capabilities"] == shown["runc"]["capabilities"]


def test_with_a_terminal_only_the_terminal_is_another(shown: dict[str, dict[str, str]]) -> None:
    changed = {row for row in ROWS if shown["terminal"][row] != shown["foreground"][row]}
    assert changed == {"terminal"}
    assert shown["terminal"]["terminal"] != "0"


def test_a_callers_controlling_terminal_is_not_the_containers(
    tmp_path: Path, make_bundle: Callable[..., Path]
) -> None:
    bundle = make_bundle("cut -d' ' -f5-7 /proc/$$/stat")
    with Person(
        "--root", tmp_path / "root", "--bundle", bundle, bundles.fresh_id("inherited")
    ) as person:
        assert person.see(b"\n").split() == [b"1", b"1", b"0"]
        assert person.wait() == 0


def test_a_descriptor_of_the_callers_is_held_by_no_daemon_and_no_worker(
    tmp_path: Path, make_bundle: Callable[..., Path]
) -> None:
    """Else whoever waits for the end of a pipe of his would wait for the container's."""
    rfd, wfd = os.pipe()
    log = tmp_path / "log"
    container_id = bundles.fresh_id("inherited")
    bundle = make_bundle("trap 'exit 0' TERM; echo ready; while :; do sleep 0.1; done")
    done = subprocess.run(
        [FORKSHIM, "run", "--root", tmp_path / "root", "--bundle", bundle, "--detach", "--log",
         f"file:{log}", container_id],
        pass_fds=(wfd,), timeout=waiting.LIMIT_S,
    )  # fmt: skip
    os.close(wfd)
    assert done.returncode == 0
    assert waiting.read_to_end(rfd) == b""
    os.close(rfd)
    waiting.wait_true(lambda: log.read_bytes() == b"ready\n")
    pid = int((tmp_path / "root" / container_id / "supervisor.pid").read_text())
    os.kill(pid, 15)
    waiting.wait_process(pid)
