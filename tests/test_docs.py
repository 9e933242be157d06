"""What the documents say is there."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest
from pydantic import BaseModel

from hpc.profile import SlurmOptions
from hpc.stage import Resources
from pipeline import sections, split_section
from pipeline.speeds import SPEEDS
from pipeline.stages import NAMES

ROOT = Path(__file__).parent.parent
SECTIONS = [
    item
    for item in (vars(sections) | vars(split_section)).values()
    if isinstance(item, type) and issubclass(item, BaseModel) and item is not BaseModel
]


def test_every_key_of_an_experiment_is_explained() -> None:
    text = (ROOT / "docs" / "experiment.md").read_text()
    keys = {key for section in SECTIONS for key in section.model_fields}
    assert [key for key in sorted(keys) if not re.search(rf"\b{key}\b", text)] == []


def test_every_key_of_a_profile_is_explained() -> None:
    text = (ROOT / "docs" / "cluster.md").read_text()
    keys = [key.name for kind in (Resources, SlurmOptions) for key in fields(kind)]
    keys += [key for section, speeds in SPEEDS.items() for key in (section, *speeds)]
    assert [key for key in keys if not re.search(rf"`{key}`", text)] == []


def test_the_readme_names_every_stage() -> None:
    text = (ROOT / "README.md").read_text()
    assert re.findall(r"^\| (\w+) \| `", text, flags=re.M) == list(NAMES)


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "CONTRIBUTING.md",
        "docs/experiment.md",
        "docs/cluster.md",
        "docs/log.md",
        "hpc/README.md",
        "kernels/README.md",
    ],
)
def test_links_lead_somewhere(page: str) -> None:
    path = ROOT / page
    links = re.findall(r"\]\(([^)#]+)\)", path.read_text())
    local = [link for link in links if not link.startswith("https://")]
    assert [link for link in local if not (path.parent / link).exists()] == []
