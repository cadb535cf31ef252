"""Tells which containers a runtime may run inside its init, without an execve(2).

crun passes a container to one of its handlers (wasm, krun, ...) because of an annotation, or of the
name in its argv[0]. youki does it for the same annotations. runc has no handlers.

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
    """Return whether `runtime` may run the container of a config.json without an execve(2).

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
    """Return whether crun takes its handler from this name. Pure."""
    name = os.path.basename(runtime)
    return name == "krun" or (name.startswith("crun-") and name != "crun-")


def asks_for_handler(document: Mapping[str, Any]) -> bool:
    """Return whether the annotations of a config.json name a handler. Pure."""
    annotations = document.get("annotations")
    return isinstance(annotations, dict) and any(annotations.get(name) for name in _ANNOTATIONS)
