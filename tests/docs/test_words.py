"""What the documents say is there."""

from __future__ import annotations

import os
import re
from dataclasses import fields
from pathlib import Path

import pytest

from hpc.profile import SlurmOptions
from hpc.stage import Resources
from pipeline.experiment.fields import Section
from pipeline.experiment.sections import Experiment
from pipeline.forecast.speeds import SPEEDS
from pipeline.stages import NAMES
from tests.docs.pages import PAGES, ROOT, text_of


def _sections(kind: type[Section]) -> list[type[Section]]:
    return [kind, *(one for inner in kind.__subclasses__() for one in _sections(inner))]


def test_every_key_of_an_experiment_is_explained() -> None:
    text = (ROOT / "docs" / "experiment.md").read_text()
    assert Experiment in _sections(Section)
    keys = {key for section in _sections(Section) for key in section.model_fields}
    assert [key for key in sorted(keys) if not re.search(rf"\b{key}\b", text)] == []


def test_every_key_of_a_profile_is_explained() -> None:
    text = (ROOT / "docs" / "cluster.md").read_text()
    keys = [key.name for kind in (Resources, SlurmOptions) for key in fields(kind)]
    keys += [key for section, speeds in SPEEDS.items() for key in (section, *speeds)]
    assert [key for key in keys if not re.search(rf"`{key}`", text)] == []


def test_the_readme_names_every_stage() -> None:
    text = (ROOT / "README.md").read_text()
    assert re.findall(r"^\| (\w+) \| `", text, flags=re.M) == list(NAMES)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    path = ROOT / page
    links = re.findall(r"\]\(([^)]+)\)", re.sub(r"`[^`]*`", "", text_of(page)))
    for link in links:
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        assert target.exists(), link
        assert not anchor or anchor in _anchors(target), link


def _anchors(page: Path) -> set[str]:
    """The headings of a page, as links spell them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.M)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_page_can_be_found_from_the_readme() -> None:
    seen, todo = set(), ["README.md"]
    while todo:
        page = todo.pop()
        if page in seen or not page.endswith(".md"):
            continue
        seen.add(page)
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text_of(page)):
            if not link.startswith("https://"):
                todo.append(os.path.relpath((ROOT / page).parent / link, ROOT))
    assert set(PAGES) - seen == set()


SOURCES = "".join(
    path.read_text(encoding="utf-8")
    for package in ("hpc", "kernels", "pipeline")
    for path in sorted((ROOT / package).rglob("*.py"))
)


def test_messages_that_troubleshooting_explains_exist() -> None:
    """A symptom in quotation marks is what simgap says; capital letters stand for anything."""
    quoted = re.findall(r"\*\*([^*]*\"[^*]*)\*\*", text_of("docs/troubleshooting.md"))
    messages = [message for symptom in quoted for message in re.findall(r'"([^"]+)"', symptom)]
    assert len(messages) > 3
    joined = re.sub(r'"\s*\n\s*f?"', "", SOURCES)
    for message in messages:
        pieces = [piece.strip() for piece in re.split(r"\b[A-Z]+\b", message) if piece.strip()]
        assert [piece for piece in pieces if piece not in joined] == [], message
