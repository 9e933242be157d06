"""The pages, and what can be found in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").glob("*.md"),
        ROOT / "hpc" / "README.md",
        ROOT / "kernels" / "README.md",
    ]
)
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.S | re.M)
_INDENTED = re.compile(r"(?:^|\n\n)((?: {4}[^\n]*(?:\n|$)|\n(?= {4}))+)")


def text_of(page: str) -> str:
    """A page."""
    return (ROOT / page).read_text(encoding="utf-8")


def examples(page: str, language: str) -> list[str]:
    """Fenced blocks of a language."""
    return [text for found, text in _FENCE.findall(text_of(page)) if found == language]


def commands(page: str) -> Iterator[list[str]]:
    """What a page tells people to type, as words."""
    text = text_of(page)
    blocks = examples(page, "sh") + _INDENTED.findall(_FENCE.sub("", text))
    for block in blocks:
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words and _is_program(words[0]):
                yield words


def _is_program(word: str) -> bool:
    return re.fullmatch(r"[a-z][\w-]*|\.|\.venv/bin/\w+", word) is not None
