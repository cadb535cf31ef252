"""JSON by the standard library's json, for what every supervisor reads and writes.

That is config.json and process.json before the runtime is executed, log lines, and the content of
the fd store. orjson is for what not every container has: exit records, errors in a runtime's log,
and JSON lines of a container (`journal,json=yes`), where its speed matters.

Measured with CPython 3.11.7 and orjson 3.11, medians of 30 cold starts on 2 cores: orjson adds
12 to 15 ms and 1.9 MB of private memory to a process that has imported signal and typing. json adds
1 to 2 ms and 0.1 MB. The limit for a second library was 5 ms and 1 MB.

`loads` accepts what Go's encoding/json and crun's yajl accept, because the runtime reads the same
file: text after the document, bytes that are not UTF-8, half a surrogate pair, numbers beyond a
double. It rejects NaN and Infinity, a byte order mark, and more than 254 levels.
"""

from __future__ import annotations

import json
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

_MOST_LEVELS = 254
"""The limit of orjson's `dumps`. Go reads 10,000, which exceeds Python's recursion limit."""

_TOO_DEEP = "nested too deeply"


def loads(content: bytes) -> object:
    """Return the first JSON document in `content`.

    A name that occurs twice gets its last value. A number beyond a double becomes the largest.

    Raises:
        ValueError: It is not JSON, or has more than 254 levels.
    """
    text = content.decode("utf-8", "replace").lstrip(" \t\r\n")
    try:
        document = _DECODER.raw_decode(text)[0]
    except RecursionError as error:
        raise ValueError(_TOO_DEEP) from error
    if text.count("{") + text.count("[") > _MOST_LEVELS and _is_deep(document):
        raise ValueError(_TOO_DEEP)
    return _without_half_pairs(document) if "\\u" in text else document


def dumps(document: object) -> bytes:
    """Return `document` as ASCII, without blanks and without a newline."""
    return json.dumps(document, separators=(",", ":"), allow_nan=False).encode()


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _finite(text: str) -> float:
    most = sys.float_info.max
    return min(max(float(text), -most), most)


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite)


def _is_deep(document: object) -> bool:
    level = [document] if isinstance(document, dict | list) else []
    for _ in range(_MOST_LEVELS):
        level = [
            child
            for each in level
            for child in (each.values() if isinstance(each, dict) else each)
            if isinstance(child, dict | list)
        ]
    return bool(level)


def _without_half_pairs(value: object) -> object:
    r"""Replace each half of a surrogate pair, which only a `\u` escape can write, by U+FFFD."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_without_half_pairs(item) for item in value]
    if isinstance(value, dict):
        return {
            str(_without_half_pairs(name)): _without_half_pairs(item)
            for name, item in value.items()
        }
    return value
