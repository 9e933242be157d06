"""What docs/artefacts.md says of the files of a run, against what writes them."""

from __future__ import annotations

import re

import pytest

from pipeline import artifacts
from pipeline.artifacts import Schema
from tests.docs.pages import text_of

SCHEMAS = {item.kind: item for item in vars(artifacts).values() if isinstance(item, Schema)}
CHAPTERS = {
    chapter.partition(":")[0]: chapter
    for chapter in re.split(r"^#+ ", text_of("docs/artefacts.md"), flags=re.M)
    if re.match(r"[a-z]+: `", chapter)
}


def test_every_kind_of_file_has_a_chapter() -> None:
    assert set(CHAPTERS) == set(SCHEMAS)


@pytest.mark.parametrize("kind", SCHEMAS)
def test_a_chapter_says_what_is_in_the_file(kind: str) -> None:
    told = {}
    for names, dtype, shape in re.findall(
        r"^\| (`.*?) \| (\w+) \| \((.*?)\) \|", CHAPTERS[kind], flags=re.M
    ):
        letters = tuple(letter.strip() for letter in shape.split(",") if letter.strip())
        told |= dict.fromkeys(re.findall(r"`(\w+)`", names), (dtype, letters))
    assert told == {name: tuple(what) for name, what in SCHEMAS[kind].datasets.items()}
    attributes = CHAPTERS[kind].partition("Attributes:")[2].partition("\n\n")[0]
    assert re.findall(r"`(\w+)`", attributes) == list(SCHEMAS[kind].attributes)
