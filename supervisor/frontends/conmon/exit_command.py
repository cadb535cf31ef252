"""The engine's command when all is over. This process becomes it, behind a shell.

The shell waits for `--exit-delay` and for the command. A supervisor of 10 MB would do no more: API
sessions of Podman have a delay of 300 s.
"""

from __future__ import annotations

from supervisor.linux import spawn, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import NoReturn

_SHELL = "/bin/sh"
_SCRIPT = """
delay=$1 status=$2
shift 2
[ "$delay" -eq 0 ] || sleep "$delay"
"$@" || exit
exit "$status"
"""


def shell_argv(command: Sequence[str], *, delay_s: int, status: int) -> list[str]:
    """Return the words of the shell: its status is the command's if that fails, else `status`."""
    return [_SHELL, "-c", _SCRIPT, "conmon", str(delay_s), str(status), *command]


def become(
    command: Sequence[str], environment: Mapping[str, str], *, delay_s: int, status: int
) -> NoReturn:
    """Become the shell. Its signals are the default, its descriptors /dev/null.

    Raises:
        OSError: The machine has no shell.
    """
    syscalls.set_child_subreaper(False)
    spawn.replace_process(_SHELL, shell_argv(command, delay_s=delay_s, status=status), environment)
