"""The streams that containerd's clients name, as sink settings of `supervisor.sinks.spec`."""

from __future__ import annotations

from supervisor.linux.errors import UsageError

_SCHEME = "://"


class UnsupportedError(UsageError):
    """The scheme is known to containerd, and forkshim does not have it."""


def setting_of(name: str) -> str:
    """Return the setting for a stream's name: a fifo's path, a URL, or "" for none.

    Raises:
        UsageError: The scheme is not known, or is not supported (`UnsupportedError`).
    """
    scheme, separator, path = name.partition(_SCHEME)
    if not separator:
        return name
    if scheme == "fifo":
        return path
    if scheme == "file":
        return f"file:{path.partition('?')[0]}"
    if scheme in ("binary", "binary-v2"):
        raise UnsupportedError(f"{name}: log programs are not supported")
    raise UsageError(f"{name}: no scheme is called {scheme}")
