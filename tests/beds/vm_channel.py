"""The two lines to a running VM: QEMU's machine protocol (QMP) and the agent in the guest."""

from __future__ import annotations

import base64
import json
import subprocess
import time
from typing import TYPE_CHECKING, Any

from tests.beds.apt import BedError

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

_REPLY_S = 60.0


class JsonLines:
    """JSON objects, one a line, over a socket."""

    def __init__(self, sock: socket.socket) -> None:
        """Take a connected stream socket."""
        self._sock = sock
        self._pending = b""

    def send(self, message: dict[str, Any]) -> None:
        """Write one object."""
        self._sock.settimeout(_REPLY_S)
        self._sock.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, deadline: float) -> dict[str, Any]:
        """Wait for one object.

        Raises:
            TimeoutError: none came by the deadline (of the monotonic clock).
            EOFError: the other side has gone.
        """
        while b"\n" not in self._pending:
            # Zero would mean a socket that does not block.
            self._sock.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                piece = self._sock.recv(1 << 16)
            except ConnectionResetError:
                piece = b""
            if not piece:
                raise EOFError("the VM has ended")
            self._pending += piece
        line, self._pending = self._pending.split(b"\n", 1)
        message: dict[str, Any] = json.loads(line)
        return message


class Qmp:
    """QEMU's machine protocol."""

    def __init__(self, sock: socket.socket) -> None:
        """Take QEMU's greeting and switch on commands and the events of migrations."""
        self._lines = JsonLines(sock)
        self._lines.receive(time.monotonic() + _REPLY_S)
        self._migrations: list[str] = []
        self.execute("qmp_capabilities")
        events = {"capability": "events", "state": True}
        self.execute("migrate-set-capabilities", capabilities=[events])

    def execute(self, command: str, **arguments: object) -> None:
        """Run one command.

        Raises:
            BedError: QEMU refused it.
        """
        self._lines.send({"execute": command, "arguments": arguments})
        while True:
            reply = self._receive(time.monotonic() + _REPLY_S)
            if "error" in reply:
                raise BedError(f"QEMU: {command}: {reply['error']['desc']}")
            if "return" in reply:
                return

    def finish_migration(self, timeout_s: float) -> None:
        """Wait until the migration begun before has ended.

        Raises:
            BedError: it failed.
        """
        deadline = time.monotonic() + timeout_s
        while not {"completed", "failed"} & set(self._migrations):
            self._receive(deadline)
        if "failed" in self._migrations:
            raise BedError("QEMU could not save or load the VM")

    def _receive(self, deadline: float) -> dict[str, Any]:
        message = self._lines.receive(deadline)
        if message.get("event") == "MIGRATION":
            self._migrations.append(message["data"]["status"])
        return message


class Agent:
    """The host's side of guest/agent.py; one command at a time."""

    def __init__(self, sock: socket.socket) -> None:
        """Take the socket behind the virtio-serial port."""
        self._lines = JsonLines(sock)
        self._last = 0

    def await_ready(self, timeout_s: float) -> None:
        """Wait for the word that the agent sends once, when it starts."""
        deadline = time.monotonic() + timeout_s
        while "ready" not in self._lines.receive(deadline):
            pass

    def run(
        self, argv: Sequence[str], stdin: bytes, timeout_s: float
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the guest, as a child of the agent.

        Raises:
            subprocess.TimeoutExpired: it was killed for taking too long.
        """
        self._last += 1
        number = self._last
        encoded = base64.b64encode(stdin).decode()
        self._lines.send({"id": number, "argv": list(argv), "stdin": encoded})
        deadline = time.monotonic() + timeout_s
        output = {"out": b"", "err": b""}
        while True:
            try:
                message = self._lines.receive(deadline)
            except TimeoutError:
                self._lines.send({"kill": number})
                texts = {name: data.decode(errors="replace") for name, data in output.items()}
                raise subprocess.TimeoutExpired(
                    argv, timeout_s, output=texts["out"], stderr=texts["err"]
                ) from None
            if message.get("id") != number:
                continue  # the end of a command that had been given up
            for name in output.keys() & message.keys():
                output[name] += base64.b64decode(message[name])
            if "code" in message:
                out, err = (output[name].decode(errors="replace") for name in ("out", "err"))
                return subprocess.CompletedProcess(argv, message["code"], out, err)
