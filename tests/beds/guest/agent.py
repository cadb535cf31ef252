"""Runs commands for the host, inside the VM; talks JSON lines over a virtio-serial port.

From the host: {"id": N, "argv": [..], "stdin": base64} or {"kill": N}.
To the host: {"ready": true} once, then {"id": N, "out"|"err": base64} and at last
{"id": N, "code": exit code}, negative for a signal as in `subprocess`.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import threading
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

PORT_NAME = "forkshim-bed"
NOT_RUNNABLE = 127  # what a shell exits with


def find_port() -> Path:
    """The port's device; without udev there is no link with its name."""
    for port in Path("/sys/class/virtio-ports").iterdir():
        if (port / "name").read_text().strip() == PORT_NAME:
            return Path("/dev") / port.name
    raise SystemExit(f"no virtio-serial port {PORT_NAME}")


class Agent:
    """Serves the port; every command gets threads of its own."""

    def __init__(self, port: IO[bytes]) -> None:
        """Take an unbuffered, open port."""
        self._port = port
        self._sending = threading.Lock()
        self._running: dict[int, subprocess.Popen[bytes]] = {}

    def send(self, **message: object) -> None:
        """Write one message; the raw file may take less than it is given."""
        rest = memoryview(json.dumps(message).encode() + b"\n")
        with self._sending:
            while rest:
                rest = rest[self._port.write(rest) :]

    def serve(self) -> None:
        """Take orders until the port ends."""
        self.send(ready=True)
        pending = b""
        while piece := self._port.read(65536):
            *lines, pending = (pending + piece).split(b"\n")
            for line in lines:
                self._take(json.loads(line))

    def _take(self, order: dict[str, Any]) -> None:
        if "kill" in order:
            if process := self._running.get(order["kill"]):
                process.kill()
            return
        threading.Thread(target=self._run, args=(order,), daemon=True).start()

    def _run(self, order: dict[str, Any]) -> None:
        number: int = order["id"]
        try:
            process = subprocess.Popen(
                order["argv"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        except OSError as error:
            self._forward(number, "err", f"{order['argv'][0]}: {error}\n".encode())
            self.send(id=number, code=NOT_RUNNABLE)
            return
        self._running[number] = process
        pumps = [
            threading.Thread(target=self._pump, args=(number, name, stream), daemon=True)
            for name, stream in (("out", process.stdout), ("err", process.stderr))
        ]
        for pump in pumps:
            pump.start()
        self._feed(process, base64.b64decode(order["stdin"]))
        for pump in pumps:
            pump.join()
        code = process.wait()
        del self._running[number]
        self.send(id=number, code=code)

    @staticmethod
    def _feed(process: subprocess.Popen[bytes], data: bytes) -> None:
        # A command need not read its stdin.
        with suppress(BrokenPipeError):
            if process.stdin is not None:
                process.stdin.write(data)
        with suppress(BrokenPipeError):
            if process.stdin is not None:
                process.stdin.close()

    def _pump(self, number: int, name: str, stream: IO[bytes]) -> None:
        while piece := os.read(stream.fileno(), 65536):
            self._forward(number, name, piece)
        stream.close()

    def _forward(self, number: int, name: str, data: bytes) -> None:
        self.send(id=number, **{name: base64.b64encode(data).decode()})


if __name__ == "__main__":
    with find_port().open("r+b", buffering=0) as opened:
        Agent(opened).serve()
