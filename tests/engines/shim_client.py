"""A client of a shim's own socket, beside containerd."""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING, Any

from supervisor.wire import frames, messages
from supervisor.wire.protobuf import decode, encode
from tests.harness import waiting

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from tests.engines.containerd import Containerd


class ShimClient:
    """One connection. The answers come in any order.

    Attributes:
        sock: Owned until the end of the `with` block.
    """

    def __init__(self, path: Path, *, drops_second_answers: bool = False) -> None:
        """Connect to the shim's socket.

        `drops_second_answers`: as containerd's client does. Without it they fail the test.
        """
        self._drops_second_answers = drops_second_answers
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(waiting.LIMIT_S)
        self.sock.connect(str(path))
        self._methods: dict[int, str] = {}
        self._answers: dict[int, frames.Frame] = {}
        self._parser = frames.FrameParser()
        self._next_id = 1

    def __enter__(self) -> ShimClient:
        """Return this."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the connection."""
        self.sock.close()

    def encode(self, method: str, values: dict[str, Any]) -> tuple[int, bytes]:
        """Return stream id and frame of the next request."""
        stream_id, self._next_id = self._next_id, self._next_id + 2
        self._methods[stream_id] = method
        payload = encode(messages.TASK_METHODS[method][0], values)
        service = messages.TASK_SERVICES[0]
        return stream_id, frames.encode_request(stream_id, service, method, payload)

    def send(self, method: str, values: dict[str, Any]) -> int:
        """Send a request; returns its stream id."""
        stream_id, frame = self.encode(method, values)
        self.sock.sendall(frame)
        return stream_id

    def answer(self, stream_id: int) -> dict[str, Any]:
        """Wait for an answer, and return its values.

        Raises:
            AssertionError: The shim refuses the request.
        """
        while stream_id not in self._answers:
            data = self.sock.recv(65536)
            assert data, "the shim has closed the connection"
            for frame in self._parser.feed(data):
                is_second = frame.stream_id in self._answers
                assert self._drops_second_answers or not is_second, "answered twice"
                self._answers.setdefault(frame.stream_id, frame)
        code, message, payload = frames.decode_response(self._answers[stream_id].data)
        assert code == 0, (code, message)
        return decode(messages.TASK_METHODS[self._methods[stream_id]][1], payload)

    def ask(self, method: str, values: dict[str, Any]) -> dict[str, Any]:
        """Send a request and wait for the answer."""
        return self.answer(self.send(method, values))


def socket_of(cd: Containerd) -> Path:
    """Return the path of the one shim's socket."""
    (path,) = cd.sandbox.path("/run/containerd/s").iterdir()
    return path


def exec_values(script: str, **more: Any) -> dict[str, Any]:
    """Return the values of a request that adds `script` to `a`, as the exec `e`."""
    spec = {"args": ["/bin/sh", "-c", script], "cwd": "/", "env": ["PATH=/bin"]}
    packed = {"type_url": "process", "value": json.dumps(spec).encode()}
    return {"id": "a", "exec_id": "e", "spec": packed, **more}
