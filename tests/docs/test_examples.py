"""YAML that the documents show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, TypeAdapter

from hpc.profile import load_profile
from pipeline.experiment.sections import Experiment
from pipeline.forecast.speeds import SPEEDS
from pipeline.stages import NAMES
from tests.docs.pages import PAGES, examples

EXAMPLES = [
    pytest.param(text, id=f"{page}:{number}")
    for page in PAGES
    for number, text in enumerate(examples(page, "yaml"))
]


@pytest.mark.parametrize("text", EXAMPLES)
def test_every_example_would_be_taken(text: str, tmp_path: Path) -> None:
    values = yaml.safe_load(text)
    if set(values) <= set(Experiment.model_fields):
        for section, value in values.items():
            _check(Experiment, section, value)
    else:
        profile = values if {"defaults", "stages", "speeds"} & set(values) else {"defaults": values}
        path = tmp_path / "site.yaml"
        path.write_text(yaml.safe_dump(profile))
        assert load_profile(path, NAMES, SPEEDS)


def _check(model: type[BaseModel], field: str, value: Any) -> None:
    """A section by itself; a key that an example leaves out is no fault of the example."""
    from pydantic import ValidationError

    try:
        TypeAdapter(model.model_fields[field].annotation).validate_python(value)
    except ValidationError as error:
        faults = [fault for fault in error.errors() if fault["type"] != "missing"]
        assert faults == []


def test_a_wrong_example_would_be_noticed() -> None:
    with pytest.raises(AssertionError):
        _check(Experiment, "report", {"titel": "x"})
