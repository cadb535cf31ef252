"""Commands as services of their own: what a bed asks its systemd-run for."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def command(unit: str, argv: Sequence[str], properties: Sequence[str] = ()) -> list[str]:
    """The command that runs `argv` as the service `unit` and passes on its output and its end.

    It is 255 for a service that a signal ended.
    """
    flags = ["--pipe", "--wait", "--collect", "--quiet", "--service-type=exec"]
    settings = [f"--property={setting}" for setting in properties]
    # systemd-run before version 254 expands variables in arguments, even in quotes.
    plain = [argv[0], *(argument.replace("$", "$$") for argument in argv[1:])]
    return ["systemd-run", f"--unit={unit}", *flags, *settings, "--", *plain]
