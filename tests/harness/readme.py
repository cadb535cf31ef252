"""What README.md has a reader type: a test runs the very text."""

from __future__ import annotations

import textwrap
from pathlib import Path

README = Path(__file__).parents[2] / "README.md"


def blocks(heading: str) -> list[str]:
    """Return the indented blocks of the section `heading`, up to the next heading."""
    lines = README.read_text().splitlines()
    first = next(n for n, line in enumerate(lines) if line.lstrip("#").strip() == heading)
    found: list[list[str]] = [[]]
    for line in lines[first + 1 :]:
        if line.startswith("#"):
            break
        if line.startswith("    ") or (not line and found[-1]):
            found[-1].append(line)
        elif found[-1]:
            found.append([])
    return [textwrap.dedent("\n".join(block)).strip() + "\n" for block in found if block]


def block(heading: str, word: str) -> str:
    """Return the one block of the section that has `word` in it."""
    (text,) = (text for text in blocks(heading) if word in text)
    return text
