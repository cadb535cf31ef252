"""Which containers a runtime may run inside of its init, without an execve.

crun hands a container to a handler of its own (wasm, krun, ...) for an annotation, or for the name
that it is called by; youki does it for the same annotations. runc has no such thing.

Source: crun, libcrun_configure_handler, wasm_can_handle_container and fill_handler_from_argv0;
youki, can_handle.
"""

from __future__ import annotations

import os

from supervisor.linux.errors import ShimError
from supervisor.oci.bundle import read_config

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

_ANNOTATIONS = ("run.oci.handler", "module.wasm.image/variant")


def may_run_without_exec(runtime: str, config_path: str) -> bool:
    """Say whether `runtime` may run the container of a config.json without an execve.

    A config.json that cannot be read names no handler.
    """
    if is_named_after_handler(runtime):
        return True
    try:
        document = read_config(config_path).document
    except ShimError:
        return False
    return os.path.basename(runtime) != "runc" and asks_for_handler(document)


def is_named_after_handler(runtime: str) -> bool:
    """Say whether crun takes its handler from its own name. Pure."""
    name = os.path.basename(runtime)
    return name == "krun" or (name.startswith("crun-") and name != "crun-")


def asks_for_handler(document: Mapping[str, Any]) -> bool:
    """Say whether the annotations of a config.json name a handler. Pure."""
    annotations = document.get("annotations")
    return isinstance(annotations, dict) and any(annotations.get(name) for name in _ANNOTATIONS)
