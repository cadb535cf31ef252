"""Socket activation: the descriptors that a service manager passes for the container.

Descriptors with one of the supervisor's names in LISTEN_FDNAMES come from the FD store, see
`supervisor.handover.discover`. The supervisor passes all others to the container in their order,
from descriptor 3 on and with the three variables, as `runc run` does. runc passes no names.

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
        names: A name for each, or an empty tuple.
    """

    descriptors: tuple[fds.Fd, ...] = ()
    names: tuple[str, ...] = ()

    def filenos(self) -> tuple[int, ...]:
        """Return the numbers, borrowed."""
        return tuple(each.fileno() for each in self.descriptors)

    def environment(self) -> Mapping[str, str]:
        """Return the variables for the container's process. Its pid in its namespace is 1."""
        if not self.descriptors:
            return {}
        variables = {"LISTEN_PID": "1", "LISTEN_FDS": str(len(self.descriptors))}
        names = {"LISTEN_FDNAMES": ":".join(self.names)} if self.names else {}
        return {**variables, **names}

    def close(self) -> None:
        """Close the descriptors. A second call does nothing."""
        for each in self.descriptors:
            each.close()


def take(environment: MutableMapping[str, str], ours: Collection[str]) -> ActivationFds:
    """Take the descriptors for the container, and remove the variables from `environment`.

    Args:
        environment: The variables that the service manager has set.
        ours: Names of descriptors that are the supervisor's.

    Raises:
        UsageError: A variable is malformed, or a descriptor is not open.
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
    passed = [(fd, name) for fd, name in zip(numbers, named or [""] * int(count), strict=True)
              if name not in ours]  # fmt: skip
    for fd, _name in passed:
        try:
            os.set_inheritable(fd, False)
        except OSError as error:
            raise UsageError(f"LISTEN_FDS: descriptor {fd}: {reason(error)}") from error
    return ActivationFds(
        tuple(fds.Fd(fd) for fd, _name in passed),
        tuple(name for _fd, name in passed) if named else (),
    )
