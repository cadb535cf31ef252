"""The words of the guardian's shell: no word of an engine becomes a part of the script."""

from __future__ import annotations

import subprocess

import pytest

from supervisor.frontends.conmon.guardian.script import State, guardian_argv

HOSTILE = ["@FINISH@", "@COMMAND@", "@TITLE@", "it's; exit 9", "$HOME `id`", "-n", "a\nb", "\\"]


@pytest.mark.parametrize("word", HOSTILE)
def test_a_word_of_the_engine_stays_a_word(word: str) -> None:
    gone = 1 << 22  # no process has this pid: five successors are tried, then the exit command
    state = State(0, gone, "forkshim: a [guardian]", "0")
    argv = guardian_argv(
        state, "SUCCESSOR", ["printf", "%s.", word], ["printf", "%s!", word], delay_s=0
    )
    opened = 'exec "$@" 3<>/dev/null 5<&3 6<&3'
    done = subprocess.run(
        ["sh", "-c", opened, "sh", *argv], stdin=subprocess.DEVNULL, capture_output=True, timeout=60
    )
    assert done.stdout.decode() == 5 * f"{word}." + f"{word}!"
