"""The stage `evaluate`: each model as it was trained, each test set as it is declared."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image, ImageOps

from hpc.stage import Context, OutputError, Resources, Task
from pipeline import artifacts
from pipeline.experiment.load import load_experiment
from pipeline.experiment.sections import TestSet
from pipeline.layout import Layout
from pipeline.stages.evaluate import Evaluate
from tests.pipeline import small
from tests.pipeline.small import SmallStudy


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> SmallStudy:
    """Data and an experiment; nothing has run."""
    return small.make(tmp_path_factory.mktemp("study"))


@pytest.fixture
def stage(study: SmallStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Evaluate:
    """The stage of one test set and of one model, which is trained by nobody."""
    monkeypatch.chdir(study.folder)
    read = load_experiment(study.experiment)
    tests = {"photo": read.tests["photo"]}
    assert read.training is not None
    return Evaluate(Layout(tmp_path / "run"), tests, ["full"], read.training, read.evaluation)


def _train(stage: Evaluate, options: dict[str, Any], **arguments: Any) -> tuple[Any, Any, Evaluate]:
    """A model as open_clip_train makes it of options; its preprocessing, and the stage with both."""
    torch.manual_seed(3)
    model, _, preprocess = open_clip.create_model_and_transforms("small-model", **arguments)
    path = stage.run_layout.checkpoint("full", 0)
    path.parent.mkdir(parents=True)
    torch.save({"epoch": 1, "state_dict": model.state_dict()}, path)
    training = stage.training.model_copy(update={"options": options})
    return model.eval(), preprocess, replace(stage, training=training)


def _with(stage: Evaluate, **changes: object) -> Evaluate:
    changed = stage.tests["photo"].model_copy(update=changes)
    return replace(stage, tests={"photo": TestSet.model_validate(changed.model_dump())})


def _task(stage: Evaluate) -> Task:
    (task,) = stage.tasks()
    return task


def _run(stage: Evaluate) -> tuple[dict[str, Any], artifacts.Artifact]:
    context = Context(digest="d", inputs={}, resources=Resources(), progress=lambda *_: None)
    counts = stage.run(_task(stage), context)
    assert set(stage.check(_task(stage), "d")) == {""}
    return counts, artifacts.read(_task(stage).outputs[0], artifacts.EVALUATION)


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        ({}, {}),
        (
            {"image-mean": [0.0, 0.1, 0.2], "image-resize-mode": "squash", "lr": 0.1},
            {"image_mean": (0.0, 0.1, 0.2), "image_resize_mode": "squash"},
        ),
        ({"siglip": True}, {"init_logit_scale": np.log(10), "init_logit_bias": -10}),
        ({"force-context-length": 5}, {"force_context_length": 5}),
    ],
)
def test_a_model_is_evaluated_as_it_was_trained(
    stage: Evaluate, study: SmallStudy, options: dict[str, Any], arguments: dict[str, Any]
) -> None:
    model, preprocess, stage = _train(stage, options, **arguments)
    counts, found = _run(stage)
    tokenizer = open_clip.get_tokenizer(
        "small-model", context_length=arguments.get("force_context_length")
    )
    names = sorted(small.CLASSES)
    captions = [lambda name: f"a photo of a {name}"]
    classifier = open_clip.build_zero_shot_classifier(model, tokenizer, names, captions)
    images = [Image.open(study.folder / "photo" / key) for key in found.text("key")]
    with torch.no_grad():
        features = model.encode_image(torch.stack(list(map(preprocess, images))), normalize=True)
        expected = 100 * features @ classifier
    np.testing.assert_allclose(found["logits"], expected.numpy(), atol=1e-3)
    right = (expected.argmax(dim=1).numpy() == found["label"]).mean()
    assert counts["top1"] == round(100 * right, 2)
    assert (counts["top5"], counts["read"], counts["used"]) == (100, 9, 9)
    assert found.attributes["pretrained"] == "full/seed-0"


def test_a_border_is_cut_off_and_makes_another_evaluation(
    stage: Evaluate, study: SmallStudy, tmp_path: Path
) -> None:
    for path in (study.folder / "photo").rglob("*.jpg"):
        place = (tmp_path / "framed" / path.parent.name / path.name).with_suffix(".png")
        place.parent.mkdir(parents=True, exist_ok=True)
        ImageOps.expand(Image.open(path), 1, "red").save(place)
    _, _, stage = _train(stage, {})
    plain = np.array(_run(stage)[1]["logits"])
    framed = _with(stage, images=tmp_path / "framed")
    cut = _with(stage, images=tmp_path / "framed", border=1)
    assert _task(framed).recipe != _task(cut).recipe
    assert "border" not in _task(framed).recipe.settings
    assert not np.array_equal(_run(framed)[1]["logits"], plain)
    np.testing.assert_array_equal(_run(cut)[1]["logits"], plain)


def test_folders_that_the_list_lacks_are_ignored_and_counted(
    stage: Evaluate, tmp_path: Path
) -> None:
    _, _, stage = _train(stage, {})
    (tmp_path / "classes.txt").write_text("square\ncross\n")
    counts, found = _run(_with(stage, classes=tmp_path / "classes.txt"))
    assert (counts["read"], counts["ignored_folders"]) == (6, 1)
    assert found["logits"].shape == (6, 2)


def test_an_evaluation_without_its_json_is_not_done(stage: Evaluate) -> None:
    _, _, stage = _train(stage, {})
    _run(stage)
    _task(stage).outputs[1].unlink()
    with pytest.raises(OutputError, match=r"photo\.json: can't be read"):
        stage.check(_task(stage), "d")


def test_bad_images_are_counted_and_limited(
    stage: Evaluate, study: SmallStudy, tmp_path: Path
) -> None:
    shutil.copytree(study.folder / "photo", tmp_path / "photo")
    (tmp_path / "photo" / "disc" / "0.jpg").write_bytes(b"no image")
    _, _, stage = _train(stage, {})
    with pytest.raises(ValueError, match=r"1 of 9 images can't be used .*disc/0.jpg: image does"):
        _run(_with(stage, images=tmp_path / "photo"))
    counts, found = _run(_with(stage, images=tmp_path / "photo", max_bad_fraction=0.2))
    assert counts["skipped"] == {"image does not decode: not an image": 1}
    assert found.text("skipped_key") == ["disc/0.jpg"]
    assert (counts["read"], counts["used"]) == (9, 8)
