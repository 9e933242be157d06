"""Class lists and borders of image sets, as far as the embeddings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from hpc.stage import Context, Resources, Task
from pipeline import artifacts
from pipeline.data.classes import built_in
from pipeline.experiment.load import load_experiment
from pipeline.experiment.sections import TestSet
from pipeline.layout import Layout
from pipeline.stages.embed import Embed
from tests.pipeline import small
from tests.pipeline.small import SmallStudy


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> SmallStudy:
    """Data and an experiment; nothing has run."""
    return small.make(tmp_path_factory.mktemp("study"))


@pytest.fixture
def stage(study: SmallStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Embed:
    monkeypatch.chdir(study.folder)
    read = load_experiment(study.experiment)
    tests = {"sketch": read.tests["sketch"]}
    return Embed(Layout(tmp_path), read.pool, read.reference, tests, read.embedder)


def _tasks(stage: Embed) -> dict[str, Task]:
    return {task.name: task for task in stage.tasks()}


def _with(stage: Embed, **changes: object) -> Embed:
    changed = stage.tests["sketch"].model_copy(update=changes)
    return replace(stage, tests={"sketch": TestSet.model_validate(changed.model_dump())})


def _run(stage: Embed) -> tuple[dict[str, Any], artifacts.Artifact]:
    context = Context(digest="d", inputs={}, resources=Resources(), progress=lambda *_: None)
    counts = stage.run(_tasks(stage)["sketch/00000"], context)
    return counts, artifacts.read(stage.run_layout.embeddings("sketch", 0), artifacts.EMBEDDINGS)


def _framed(folder: Path, target: Path, border: int) -> None:
    for path in folder.rglob("*.jpg"):
        place = (target / path.relative_to(folder)).with_suffix(".png")
        place.parent.mkdir(parents=True, exist_ok=True)
        ImageOps.expand(Image.open(path), border, "red").save(place)


def test_embeddings_of_framed_images_are_those_without_the_frame(
    stage: Embed, study: SmallStudy, tmp_path: Path
) -> None:
    _framed(study.folder / "sketch", tmp_path / "framed", 2)
    plain = np.array(_run(stage)[1]["embedding"])
    framed = np.array(_run(_with(stage, images=tmp_path / "framed"))[1]["embedding"])
    cut = np.array(_run(_with(stage, images=tmp_path / "framed", border=2))[1]["embedding"])
    np.testing.assert_array_equal(cut, plain)
    assert not np.array_equal(framed, plain)


def test_a_border_makes_other_embeddings_and_none_leaves_them_as_they_were(stage: Embed) -> None:
    before, after = _tasks(stage), _tasks(_with(stage, border=1))
    changed = [name for name in before if before[name].recipe != after[name].recipe]
    assert changed == ["sketch/00000"]
    assert "border" not in before["sketch/00000"].recipe.settings


def test_folders_that_the_list_lacks_are_ignored_and_counted(
    stage: Embed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "classes.txt").write_text("square\ncross\n")
    counts, found = _run(_with(stage, classes=tmp_path / "classes.txt"))
    assert (counts["read"], counts["ignored_folders"]) == (6, 1)
    assert {key.split("/")[0] for key in found.text("key")} == {"square", "cross"}
    assert "sketch: 1 folder not in the class list ignored: disc\n" in capsys.readouterr().out
    assert "ignored_folders" not in _run(stage)[0]


def test_a_built_in_list_serves_a_folder(stage: Embed, study: SmallStudy, tmp_path: Path) -> None:
    image = next((study.folder / "sketch").rglob("*.jpg")).read_bytes()
    for folder in (*built_in("objectnet").ids, "air_freshener"):
        (tmp_path / "objects" / folder).mkdir(parents=True)
        (tmp_path / "objects" / folder / "0.jpg").write_bytes(image)
    counts, found = _run(_with(stage, images=tmp_path / "objects", classes="objectnet"))
    assert (counts["read"], counts["ignored_folders"]) == (113, 1)
    assert found.attributes["classes"]["names"][8] == "binder (closed)"
    assert found["label"].tolist() == list(range(113))


def test_every_folder_of_a_list_must_be_there(stage: Embed) -> None:
    with pytest.raises(FileNotFoundError, match="sketch: no folder for the class 'n01440764'"):
        _with(stage, classes="imagenet-1k").tasks()
