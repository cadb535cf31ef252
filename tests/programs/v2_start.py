"""`start` of the v2 shim with a daemon that answers Connect with its pid, and Shutdown by leaving.

Usage: v2_start.py DIRECTORY [FLAG...] start, in a bundle. DIRECTORY is where the sockets are.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from supervisor.frontends.containerd import group_socket
from supervisor.frontends.containerd.invocation import parse
from supervisor.frontends.containerd.start import start
from supervisor.linux.errors import ShimError
from supervisor.linux.event_loop import Loop
from supervisor.wire import messages
from supervisor.wire.protobuf import encode
from supervisor.wire.server import Server

if TYPE_CHECKING:
    from supervisor.frontends.containerd.group_socket import GroupSocket


def serve(found: GroupSocket) -> None:
    """Serve until Shutdown."""
    loop = Loop()
    is_over = False

    def on_request(connection: Any, stream_id: int, _service: str, method: str, *_: Any) -> None:
        nonlocal is_over
        connection.respond(stream_id, encode(messages.ConnectResponse, {"shim_pid": os.getpid()}))
        is_over = method == "Shutdown"

    with suppress(BlockingIOError):  # nobody reads the log
        os.write(2, b"serving\n")
    server = Server(
        loop,
        found.listener.dup(),
        on_request=on_request,
        on_closed=lambda _connection, _why: None,
        log=lambda words: print(words, file=sys.stderr, flush=True),
    )
    loop.run_until(lambda: is_over)
    found.release()
    server.close()


if __name__ == "__main__":
    group_socket.DEFAULT_DIRECTORY = sys.argv[1]
    try:
        address = start(
            parse(sys.argv[2:]),
            os.getcwd(),
            shim_cgroup=os.environ.get("SHIM_CGROUP", ""),
            environment=os.environ,
            serve=serve,
        )
    except ShimError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_status)
    print(address, end="", flush=True)
