"""What ends a command with one line instead of a traceback, and the exit status it ends with.

The statuses are names of `systemd-analyze exit-status`. A failed system call stays an `OSError`;
the classes here say what that failure means to the person who gave the command.
`forkshim-shim` ends with 1 for each of them: the 2016 protocol knows no other number.
"""

from __future__ import annotations

import errno
import os


class ShimError(Exception):
    """The command cannot go on; the message is one line for the person who gave it."""

    exit_status = 1
    is_told = False
    """Whether the person has read it: the journal has it, and stderr is the journal."""


class UsageError(ShimError):
    """The arguments or the environment are wrong (INVALIDARGUMENT)."""

    exit_status = 2


class RuntimeMissingError(ShimError):
    """The OCI runtime is not installed (NOTINSTALLED)."""

    exit_status = 5


class BundleError(ShimError):
    """The bundle or its config.json is missing or not valid (NOTCONFIGURED)."""

    exit_status = 6


class RecordError(ShimError):
    """process.json or a checkpoint's config.json is missing or not valid (DATAERR)."""

    exit_status = 65


class AlreadySupervisedError(ShimError):
    """Another supervisor, or a container without one, holds the id (TEMPFAIL)."""

    exit_status = 75


class UntrustedError(ShimError):
    """Another user could put names where we would believe them (TEMPFAIL: until that is mended)."""

    exit_status = 75


class MachineError(ShimError):
    """The machine, or a limit of this process, does not allow it (OSERR)."""

    exit_status = 71


class AbandonedError(ShimError):
    """A bug ended the supervisor; whatever lives was left alone (SOFTWARE)."""

    exit_status = 70


class RuntimeFailedError(ShimError):
    """The OCI runtime ended with an error of its own, which its log.json explains."""


class StoppedError(ShimError):
    """A stop was asked for before the container existed; 143 is 128 + SIGTERM, as sh(1) says."""

    exit_status = 143


def reason(error: OSError) -> str:
    """Say an errno as the protocol says it: strerror(3), first letter small."""
    text = error.strerror or str(error)
    return text[:1].lower() + text[1:]


def reason_of_access(error: OSError) -> str:
    """Say an errno of the bundle or of ROOT/ID as `reason`, and what an ordinary user lacks."""
    is_denied = error.errno in (errno.EACCES, errno.EPERM) and os.geteuid() != 0
    hint = ", forkshim needs root or rootless runc" if is_denied else ""
    return reason(error) + hint
