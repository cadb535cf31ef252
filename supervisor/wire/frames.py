"""ttrpc on the wire: frames, requests, responses and status codes. Pure: no descriptor is touched.

A frame is 10 bytes of header and up to 4 MiB of data. Requests and responses of unary calls are one
frame each. Frames of streams (type 3) are parsed like others; forkshim serves no stream.

Source: PROTOCOL.md in github.com/containerd/ttrpc; the status codes are gRPC's.
"""

from __future__ import annotations

import struct
from enum import IntEnum

from supervisor.wire import messages
from supervisor.wire.protobuf import WireError, decode, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_DATA_BYTES = 4 << 20
REQUEST, RESPONSE, DATA = 1, 2, 3
_HEADER = struct.Struct(">IIBB")


class Code(IntEnum):
    """Status of an answer. Source: google.rpc.Code."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class Frame:
    """One frame. `too_long` is the length of data that the parser skips, else 0.

    No NamedTuple: typing costs a shim's cold start 4 ms and 0.5 MB.
    """

    __slots__ = ("data", "flags", "kind", "stream_id", "too_long")

    def __init__(
        self, stream_id: int, kind: int, flags: int, data: bytes, too_long: int = 0
    ) -> None:
        self.stream_id = stream_id
        self.kind = kind
        self.flags = flags
        self.data = data
        self.too_long = too_long

    def __repr__(self) -> str:
        more = f" of {self.too_long} bytes, too long" if self.too_long else f": {self.data!r:.60}"
        return f"frame(stream {self.stream_id}, kind {self.kind}, flags {self.flags}){more}"


class FrameParser:
    """Cuts a byte stream into frames, in pieces of any size.

    A frame of more than 4 MiB comes without its data as soon as its header is there; the parser
    skips the data. So it holds at most one frame and what one `feed` brings.

    Attributes:
        unparsed: The bytes of an incomplete frame.
        skip_bytes: How many bytes of a too long frame are still to come.
    """

    def __init__(self, unparsed: bytes = b"", skip_bytes: int = 0) -> None:
        self.unparsed = bytearray(unparsed)
        self.skip_bytes = skip_bytes

    def feed(self, data: bytes) -> list[Frame]:
        """Take bytes as they were read, and return the frames that they complete."""
        skipped = min(self.skip_bytes, len(data))
        self.skip_bytes -= skipped
        buffer = self.unparsed
        buffer += data[skipped:]
        frames = []
        at = 0
        while len(buffer) - at >= _HEADER.size:
            length, stream_id, kind, flags = _HEADER.unpack_from(buffer, at)
            start = at + _HEADER.size
            if length > MAX_DATA_BYTES:
                frames.append(Frame(stream_id, kind, flags, b"", length))
                at = min(start + length, len(buffer))
                self.skip_bytes = length - (at - start)
            elif len(buffer) - start < length:
                break
            else:
                at = start + length
                frames.append(Frame(stream_id, kind, flags, bytes(buffer[start:at])))
        del buffer[:at]
        return frames


def frame_bytes(data: bytes | bytearray) -> int:
    """Return the length of the frame that begins here, with its header; 0 if there is none."""
    return _HEADER.size + _HEADER.unpack_from(data)[0] if data else 0


def encode_frame(stream_id: int, kind: int, data: bytes, flags: int = 0) -> bytes:
    """Return the bytes of a frame.

    Raises:
        WireError: More than 4 MiB of data.
    """
    if len(data) > MAX_DATA_BYTES:
        raise WireError(f"a message of {len(data)} bytes, more than {MAX_DATA_BYTES}")
    return _HEADER.pack(len(data), stream_id, kind, flags) + data


def encode_request(
    stream_id: int,
    service: str,
    method: str,
    payload: bytes,
    *,
    timeout_ns: int = 0,
    metadata: Mapping[str, str] | None = None,
) -> bytes:
    """Return the frame of a unary request; `timeout_ns` 0 is none."""
    values = {
        "service": service,
        "method": method,
        "payload": payload,
        "timeout_nano": timeout_ns,
        "metadata": [{"key": key, "value": value} for key, value in (metadata or {}).items()],
    }
    return encode_frame(stream_id, REQUEST, encode(messages.Request, values))


def encode_response(stream_id: int, payload: bytes) -> bytes:
    """Return the frame that answers a request."""
    return encode_frame(stream_id, RESPONSE, encode(messages.Response, {"payload": payload}))


def encode_refusal(stream_id: int, code: Code, message: str) -> bytes:
    """Return the frame that refuses a request."""
    status = {"code": int(code), "message": message}
    return encode_frame(stream_id, RESPONSE, encode(messages.Response, {"status": status}))


def decode_response(data: bytes) -> tuple[int, str, bytes]:
    """Return code, message and payload of a response's data.

    Raises:
        WireError: It is no response.
    """
    values = decode(messages.Response, data)
    status = values["status"] or {"code": 0, "message": ""}
    return status["code"], status["message"], values["payload"]
