"""`-info`: what the shim and its OCI runtime can do, as containerd 2.0 and later ask.

containerd 2.2 asks once for each runtime name that is not runc's own, earlier versions only before
they use idmapped mounts. The features are those of the OCI runtime, in its own words.

Source: docs/runtime-v2.md of containerd, "-info"; features.md of the runtime-spec.
"""

from __future__ import annotations

from supervisor.linux import plain_json
from supervisor.linux.errors import RuntimeMissingError
from supervisor.oci.invoke import ask_runtime
from supervisor.wire import messages
from supervisor.wire.protobuf import decode, encode, is_any_of, unpack_any

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

FEATURES_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/features/Features"
NAME = "io.containerd.runc.forkshim.v2"


def runtime_info(stdin: bytes, *, version: str, environment: Mapping[str, str]) -> bytes:
    """Return the RuntimeInfo for stdout.

    A runtime that is missing or has no `features` (runc before 1.1) leaves them out.

    Args:
        stdin: An Any of the task's options, or nothing.
        version: Forkshim's.
        environment: Where the OCI runtime is looked for, and its own.

    Raises:
        WireError: stdin is no Any, or holds malformed options.
        ShimError: The runtime cannot be executed.
    """
    options = decode(messages.Any, stdin) if stdin else None
    runtime = "runc"
    if options is not None and is_any_of(options, messages.Options):
        runtime = unpack_any(options, messages.Options)["binary_name"] or runtime
    features = _features(runtime, environment)
    return encode(
        messages.RuntimeInfo,
        {
            "name": NAME,
            "version": {"version": version},
            "options": options,
            "features": {"type_url": FEATURES_TYPE, "value": features} if features else None,
        },
    )


def _features(runtime: str, environment: Mapping[str, str]) -> bytes:
    """Return the runtime's features as JSON; empty if it tells none."""
    try:
        told = ask_runtime(runtime, [runtime, "features"], environment=environment).strip()
        document = plain_json.loads(told)
    except (RuntimeMissingError, ValueError):
        return b""
    return told if isinstance(document, dict) else b""
