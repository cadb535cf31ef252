"""Valid container ids: they become directory names, arguments and log lines. Pure."""

from __future__ import annotations

from supervisor.linux.errors import UsageError

_ALLOWED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_+.-")
_LONGEST = 255


def check_id(container_id: str) -> None:
    r"""Accept an id that runc accepts and that can be a directory's name.

    Raises:
        UsageError: The id breaks a rule, which the message names.

    Source: runc's `^[\\w+-\\.]+$`; no leading dash, which a runtime parses as an option;
    NAME_MAX in limits.h.
    """
    shown = repr(container_id if len(container_id) <= 60 else container_id[:60] + "...")
    is_good = bool(container_id) and container_id[0] != "-" and _ALLOWED.issuperset(container_id)
    if "\\x" in container_id:  # systemd.unit(5): systemctl start forkshim@a+b starts a\x2bb
        raise UsageError(
            f"container id {shown}: systemd's escape of a character that a unit's name cannot "
            "have; choose an id of letters, digits, _ . and -"
        )
    if container_id in (".", "..") or not is_good:
        raise UsageError(
            f"container id {shown}: only letters, digits, _ + . - and no - at the beginning"
        )
    if len(container_id) > _LONGEST:
        raise UsageError(f"container id {shown}: longer than {_LONGEST} characters")
