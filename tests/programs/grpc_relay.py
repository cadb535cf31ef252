"""Pass unary calls from stdin to a gRPC server, and its answers to stdout.

A program of its own: gRPC's library starts threads, and tests fork.

Usage: python tests/programs/grpc_relay.py TARGET. A request is two lengths, a method and a message;
an answer is gRPC's status code, a length, and the message or the error's words. Each number has
four bytes, big endian.
"""

from __future__ import annotations

import struct
import sys

import grpc

_NUMBERS = struct.Struct(">II")
_LIMIT_S = 60.0


def main() -> None:
    """Relay until the end of stdin."""
    received, answers = sys.stdin.buffer, sys.stdout.buffer
    with grpc.insecure_channel(sys.argv[1]) as channel:
        while header := received.read(_NUMBERS.size):
            method_length, length = _NUMBERS.unpack(header)
            method = received.read(method_length).decode()
            code, answer = _call(channel, method, received.read(length))
            answers.write(_NUMBERS.pack(code, len(answer)) + answer)
            answers.flush()


def _call(channel: grpc.Channel, method: str, message: bytes) -> tuple[int, bytes]:
    try:
        return 0, channel.unary_unary(method)(message, timeout=_LIMIT_S)
    except grpc.RpcError as error:
        return error.code().value[0], error.details().encode()


if __name__ == "__main__":
    main()
