"""Socket activation: the descriptors that a service manager passes to us for the container.

What has a name of ours in LISTEN_FDNAMES is of the FD store, and not the container's; see
`supervisor.handover.discover`. The rest is passed on as it came, in its order: descriptors from 3
on, and the three variables, as `runc run` does it. runc passes no names.

Source: sd_listen_fds(3).
"""

from __future__ import annotations

import os

from supervisor.linux import fds
from supervisor.linux.errors import UsageError, reason
from workers.common.records import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, MutableMapping

FIRST_FD = 3
VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
_MOST_FDS = 1024


@dataclass(frozen=True, slots=True)
class ActivationFds:
    """Descriptors for the container. Owned until `close`.

    Attributes:
        descriptors: In their order; close-on-exec.
        names: One for each, or none at all.
    """

    descriptors: tuple[fds.Fd, ...] = ()
    names: tuple[str, ...] = ()

    def filenos(self) -> tuple[int, ...]:
        """Lend their numbers."""
        return tuple(each.fileno() for each in self.descriptors)

    def environment(self) -> Mapping[str, str]:
        """Return what the container's process is told: as its pid namespace's first one."""
        if not self.descriptors:
            return {}
        told = {"LISTEN_PID": "1", "LISTEN_FDS": str(len(self.descriptors))}
        return {**told, "LISTEN_FDNAMES": ":".join(self.names)} if self.names else told

    def close(self) -> None:
        """Close them; a second call does nothing."""
        for each in self.descriptors:
            each.close()


def take(environment: MutableMapping[str, str], ours: Collection[str]) -> ActivationFds:
    """Return what is there for the container; `environment` tells no more of it.

    Args:
        environment: As the service manager has made it.
        ours: Names of what is not the container's.

    Raises:
        UsageError: Not what a service manager says.
    """
    pid, count, names = (environment.pop(name, None) for name in VARIABLES)
    if pid != str(os.getpid()) or not count:
        return ActivationFds()
    if not (count.isascii() and count.isdecimal() and int(count) <= _MOST_FDS):
        raise UsageError(f"LISTEN_FDS: not a number of descriptors: {count!r}")
    named = names.split(":") if names else []
    if named and len(named) != int(count):
        raise UsageError(f"LISTEN_FDNAMES: {len(named)} names for {count} descriptors")
    numbers = range(FIRST_FD, FIRST_FD + int(count))
    theirs = [(fd, name) for fd, name in zip(numbers, named or [""] * int(count), strict=True)
              if name not in ours]  # fmt: skip
    for fd, _name in theirs:
        try:
            os.set_inheritable(fd, False)
        except OSError as error:
            raise UsageError(f"LISTEN_FDS: descriptor {fd}: {reason(error)}") from error
    return ActivationFds(
        tuple(fds.Fd(fd) for fd, _name in theirs),
        tuple(name for _fd, name in theirs) if named else (),
    )
