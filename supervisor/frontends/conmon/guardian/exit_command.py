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

    from supervisor.frontends.conmon.engine import Engine
    from supervisor.frontends.conmon.guardian.link import GuardianLink
    from supervisor.frontends.conmon.options import Options

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


def leave(options: Options, engine: Engine, link: GuardianLink | None, status: int) -> int:
    """Give the engine's descriptors back; then the guardian, or this process, ends as it wants."""
    engine.release()
    engine.hang_up()
    if link is not None and link.is_alive:
        link.over(status & 0xFF)
        return status & 0xFF
    engine.restore_oom_score()
    if options.exit_command:
        command = (options.exit_command, *options.exit_command_arg)
        become(command, engine.environment, delay_s=options.exit_delay, status=status & 0xFF)
    return status & 0xFF
