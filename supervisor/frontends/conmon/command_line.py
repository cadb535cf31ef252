"""The runtime's command lines as conmon(8) writes them. Pure.

No log file of our own and no start, kill or delete: the engine runs these itself.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from supervisor.frontends.conmon.options import Options


def runtime_argv(options: Options, *, bundle: str, pid_file: str, console: str | None) -> list[str]:
    """Return the words of the runtime's create, restore or exec.

    Args:
        options: The engine's.
        bundle: Path of the bundle; unused for an exec.
        pid_file: Where the runtime writes the pid.
        console: Path of the console socket, or None.
    """
    words = [options.runtime]
    if options.systemd_cgroup and not options.exec:
        words.append("--systemd-cgroup")
    words += options.runtime_arg
    if options.exec:
        words += ["exec", "--pid-file", pid_file, "--process", options.exec_process_spec]
        words.append("--detach")
    else:
        words += ["restore" if options.restore else "create"]
        words += ["--bundle", bundle, "--pid-file", pid_file]
        words += ["--no-pivot"] * options.no_pivot
        words += ["--no-new-keyring"] * options.no_new_keyring
        if options.restore:
            words += ["--detach", "--image-path", options.restore, "--work-path", bundle]
    words += options.runtime_opt
    if console is not None:
        words += ["--console-socket", console]
    return [*words, options.cid]
