"""The guardian's program, a script for sh(1). Pure.

It reads what the supervisor says from descriptor 3 and holds the fd store, which it never uses. At
the end of file the supervisor is dead, and a successor is started. A container whose supervisor is
dead becomes its child, and a shell reaps each child whose end it notices: dash behind a builtin,
bash at once. So the status of a container that ends in between comes from the container's pidfd,
which tells it from Linux 6.15 on (PIDFD_GET_INFO). Before, it is lost.

A Python process would do the same with 5.5 MB of memory of its own; dash has 0.1 MB.
"""

from __future__ import annotations

import re

from workers.common.records import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

SHELL = "/bin/sh"
WORDS_FD, STORE_FDS = 3, (5, 6)
PASSED_ON = ("TERM", "INT", "QUIT", "HUP")
"""Signals that the supervisor gets. One that no supervisor has taken is for the next one, too."""

_SCRIPT = """\
# @TITLE@
supervisor=$1 pid=$2 score=$3 delay=$4 pending=$5
up= starts= failed=0
pass() {
    caught=1 pending="$pending $1"
    [ ! "$up" ] || kill -s "$1" "$supervisor" 2>/dev/null
}
taken() {
    old=$pending pending=
    for name in $old; do [ "$name" = "$1" ] || pending="$pending $name"; done
}
for name in @SIGNALS@; do trap "pass $name" $name; done
succeed() {
    export @VARIABLE@="5 6 4 $pid $starts"
    exec @COMMAND@ 3<&-
}
finish() {
    @FINISH@
}
over() {
    trap - @SIGNALS@
    exec 3<&- 5<&- 6<&-
    { echo "$score" >/proc/self/oom_score_adj; } 2>/dev/null
    [ "$delay" -eq 0 ] || sleep "$delay"
    finish || exit
    exit "$1"
}
replace() {
    [ "$pid" -ne 0 ] || over 1
    [ "$supervisor" -eq 0 ] || wait "$supervisor"
    up= failed=$((failed + 1))
    if [ "$failed" -gt 5 ]; then
        while kill -0 "$pid" 2>/dev/null; do sleep 5; done
        over 1
    fi
    exec 4>/proc/self/fd/3
    succeed &
    supervisor=$!
    exec 4>&-
}
[ "$supervisor" -ne 0 ] || replace
while :; do
    caught=
    if read -r word rest <&3; then
        case $word in
        up)
            up=1
            for name in $pending; do kill -s "$name" "$supervisor"; done
            ;;
        took) taken "$rest" ;;
        pid) pid=$rest ;;
        starts) starts=$rest failed=0 ;;
        reap)
            : &
            wait "$!"
            ;;
        over) over "$rest" ;;
        esac
    elif [ ! "$caught" ]; then
        replace
    fi
done
"""


@dataclass(frozen=True, slots=True)
class State:
    """What a guardian begins with.

    Attributes:
        supervisor: Its pid; 0 to start a successor at once.
        container: The pid of the container's process; 0 before its creation.
        title: For ps(1), one line.
        score: The oom_score_adj of the exit command.
        pending: Names of signals for the supervisor, as in `PASSED_ON`.
    """

    supervisor: int
    container: int
    title: str
    score: str
    pending: Sequence[str] = ()


def guardian_argv(
    state: State, variable: str, command: Sequence[str], finish: Sequence[str], *, delay_s: int
) -> list[str]:
    """Return the words of the shell.

    Args:
        state: What it begins with.
        variable: The environment variable that tells a successor what it is.
        command: How a successor is started.
        finish: The engine's exit command, which may be empty.
        delay_s: How long that one waits.
    """
    texts = {
        "@TITLE@": state.title,
        "@SIGNALS@": " ".join(PASSED_ON),
        "@VARIABLE@": variable,
        "@COMMAND@": _quoted(command),
        "@FINISH@": _quoted(finish) or ":",
    }
    # Once: a text may have a placeholder's letters, as an option of the engine's user.
    script = "".join(texts.get(part, part) for part in re.split(r"(@[A-Z]+@)", _SCRIPT))
    words = (state.supervisor, state.container, state.score, delay_s, " ".join(state.pending))
    return [SHELL, "-c", script, "conmon", *map(str, words)]


def _quoted(words: Sequence[str]) -> str:
    return " ".join("'" + word.replace("'", "'\\''") + "'" for word in words)
