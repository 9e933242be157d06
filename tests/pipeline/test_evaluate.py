"""`simgap evaluate`: any checkpoint on any folder, and what it answers to the wrong words."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from hpc.files import read_json
from pipeline import artifacts
from pipeline.data.classes import built_in
from pipeline.evaluate import main
from tests.pipeline import small
from tests.pipeline.small import SmallStudy

CAPTIONS = ["a photo of a {}", "{} as a drawing"]
MODEL = ["--model", "small-model.json", "--device", "cpu"]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> SmallStudy:
    """Data, a checkpoint (embedder.pt) and an experiment; nothing has run."""
    return small.make(tmp_path_factory.mktemp("study"))


@pytest.fixture(autouse=True)
def _there(study: SmallStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(study.folder)


def evaluate(output: Path, *words: str, code: int = 0) -> None:
    assert main(["embedder.pt", *MODEL, "--output", str(output), *words]) == code


def straight_from_open_clip(
    images: Sequence[Path], labels: Sequence[int], names: Sequence[str]
) -> tuple[Any, float, float]:
    """Logits, top-1 and mean over the classes, by open_clip alone and one image at a time."""
    model, _, preprocess = open_clip.create_model_and_transforms(
        "small-model", pretrained="embedder.pt"
    )
    model.eval()
    tokenizer = open_clip.get_tokenizer("small-model")
    templates = [lambda name, caption=caption: caption.format(name) for caption in CAPTIONS]
    classifier = open_clip.build_zero_shot_classifier(model, tokenizer, names, templates)
    rows, hits = [], {label: [] for label in labels}  # type: ignore[var-annotated]
    with torch.no_grad():
        for path, label in zip(images, labels, strict=True):
            features = model.encode_image(preprocess(Image.open(path))[None], normalize=True)
            rows.append((100.0 * features @ classifier)[0])
            hits[label].append(int(rows[-1].argmax()) == label)
    top1 = sum(sum(one) for one in hits.values()) / len(rows)
    mean = float(np.mean([sum(one) / len(one) for one in hits.values()]))
    return torch.stack(rows).numpy(), top1, mean


def test_accuracy_is_that_of_open_clip_itself(study: SmallStudy, tmp_path: Path) -> None:
    # Classes in an order of their own, with names of their own, and of different sizes.
    (tmp_path / "classes.txt").write_text("square\ta box\ncross\tan X\ndisc\ta circle\n")
    shutil.copytree(study.folder / "photo", tmp_path / "photo")
    (tmp_path / "photo" / "cross" / "0.jpg").unlink()
    test = f"photo={tmp_path}/photo:{tmp_path}/classes.txt"
    evaluate(tmp_path / "out", "--tests", test, "--templates", *CAPTIONS, "--batch-size", "3")
    folders = ["square", "cross", "disc"]
    images = [
        path for folder in folders for path in sorted((tmp_path / "photo" / folder).iterdir())
    ]
    labels = [folders.index(path.parent.name) for path in images]
    logits, top1, mean = straight_from_open_clip(images, labels, ["a box", "an X", "a circle"])
    found = artifacts.read(tmp_path / "out" / "photo.h5", artifacts.EVALUATION)
    assert found.text("key") == [path.relative_to(tmp_path / "photo").as_posix() for path in images]
    np.testing.assert_allclose(found["logits"], logits, atol=1e-3)
    assert found["label"].tolist() == labels
    assert read_json(tmp_path / "out" / "photo.json") == {
        "dataset": "photo",
        "model": "small-model",
        "pretrained": "embedder.pt",
        "task": "zeroshot_classification",
        "metrics": {"acc1": top1, "acc5": None, "mean_per_class_recall": mean},
        "language": "en",
    }
    assert top1 != mean


def test_a_built_in_list_cuts_the_classes(
    study: SmallStudy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = next((study.folder / "sketch").rglob("*.jpg")).read_bytes()
    for folder in (*built_in("imagenet-r").ids, "n99999999"):
        (tmp_path / "images" / folder).mkdir(parents=True)
        (tmp_path / "images" / folder / "0.jpg").write_bytes(image)
    evaluate(tmp_path, "--tests", f"r={tmp_path}/images:imagenet-r", "--templates", "simple")
    found = artifacts.read(tmp_path / "r.h5", artifacts.EVALUATION)
    assert found["logits"].shape == (200, 200)
    assert tuple(found.attributes["classes"]["names"]) == built_in("imagenet-r").names
    assert (found.attributes["accuracy"], found.attributes["top5"]) == (1 / 200, 5 / 200)
    printed = capsys.readouterr().out.splitlines()
    assert f"{tmp_path}/images: 1 folder not in the class list ignored: n99999999" in printed
    assert [line.split() for line in printed if line.startswith("r ")] == [
        ["r", "200", "0", "200", "0.50", "2.50", "0.50"]
    ]


def test_test_sets_captions_and_model_of_an_experiment(
    study: SmallStudy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["embedder.pt", "--experiment", "small.yaml", "--tests", "photo,sketch", "x=photo"]
    assert main([*words, "--output", str(tmp_path)]) == 0
    read = {name: artifacts.read(tmp_path / f"{name}.h5", artifacts.EVALUATION) for name in "x"}
    read |= {t: artifacts.read(tmp_path / f"{t}.h5", artifacts.EVALUATION) for t in small.TESTS}
    assert read["x"].attributes["templates"] == ["a photo of a {}"]
    np.testing.assert_array_equal(read["x"]["logits"], read["photo"]["logits"])
    assert not np.array_equal(read["photo"]["logits"], read["sketch"]["logits"])
    assert "small-model, embedder.pt, on cpu, fp32, 1 caption a class" in capsys.readouterr().out


def test_the_same_command_again_evaluates_nothing_and_another_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    test = ("--tests", "photo=photo", "--templates", "simple")
    evaluate(tmp_path, *test)
    first = capsys.readouterr().out.splitlines()
    before = (tmp_path / "photo.h5").stat().st_mtime_ns
    evaluate(tmp_path, *test)
    assert capsys.readouterr().out.splitlines() == [
        *first[1:-1],
        first[-1] + " (1 test set already there)",
    ]
    assert (tmp_path / "photo.h5").stat().st_mtime_ns == before
    for other in (["--border", "2"], ["--templates", *CAPTIONS], ["--option", "siglip=true"]):
        evaluate(tmp_path, *test, *other, code=2)
        assert "photo.h5: there is an evaluation of another" in capsys.readouterr().err
    assert (tmp_path / "photo.h5").stat().st_mtime_ns == before
    (tmp_path / "photo.json").unlink()
    evaluate(tmp_path, *test)
    assert (tmp_path / "photo.json").exists()


def test_a_border_is_cut_off(study: SmallStudy, tmp_path: Path) -> None:
    from PIL import ImageOps

    for path in (study.folder / "photo").rglob("*.jpg"):
        place = (tmp_path / "framed" / path.parent.name / path.name).with_suffix(".png")
        place.parent.mkdir(parents=True, exist_ok=True)
        ImageOps.expand(Image.open(path), 1, "red").save(place)
    evaluate(tmp_path, "--tests", "photo=photo", "--templates", "simple")
    evaluate(
        tmp_path, "--tests", f"cut={tmp_path}/framed", "--templates", "simple", "--border", "1"
    )
    found = [artifacts.read(tmp_path / f"{n}.h5", artifacts.EVALUATION) for n in ("photo", "cut")]
    np.testing.assert_array_equal(found[0]["logits"], found[1]["logits"])


class Program:
    """A pickle that writes a file when it is loaded."""

    def __reduce__(self) -> Any:
        return os.mknod, ("written",)


def test_a_checkpoint_that_is_a_program_is_not_run(
    study: SmallStudy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"state_dict": {}, "name": Program()}, tmp_path / "evil.pt")
    words = [str(tmp_path / "evil.pt"), *MODEL, "--tests", "photo=photo"]
    assert main([*words, "--output", str(tmp_path / "out")]) == 2
    assert "evil.pt: not loaded, because that would run code" in capsys.readouterr().err
    assert not (study.folder / "written").exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere.pt", *MODEL, "--tests", "a=photo"], "nowhere.pt: no such checkpoint"),
        (["laion400m_e3", "--model", "ViT-B-32", "--tests", "a=photo"], "did you mean 'laion400m_e3"),
        (["photo", *MODEL, "--tests", "a=photo"], "photo is a folder; expected a checkpoint or a tag"),
        (["embedder.pt", "--model", "ViT-B-23", "--tests", "a=photo"], "no model 'ViT-B-23'; did you mean"),
        (["embedder.pt", *MODEL, "--tests", "a=foto"], "'a=foto': no such folder: foto"),
        (["embedder.pt", *MODEL, "--tests", "photo"], "expected NAME=FOLDER[:CLASSES], found 'photo'"),
        (["embedder.pt", *MODEL, "--tests", "a=photo", "a=sketch"], "'a' is given twice"),
        (["embedder.pt", *MODEL, "--tests", "a=photo:imagenet-l"], "no class list 'imagenet-l', built in or file; did you mean"),
        (["embedder.pt", *MODEL, "--tests", "a=photo:objectnet"], "photo: no folder for the class 'alarm_clock'"),
        (["embedder.pt", *MODEL, "--tests", "a/b=photo"], "'a/b' can't be the name of a file"),
        (["embedder.pt", *MODEL, "--tests", "a=photo", "--templates", "opena"], "did you mean 'openai'?"),
        (["embedder.pt", *MODEL, "--tests", "a=photo", "--templates", "a", "b {}"], "exactly one {} for the class name, found 'a'"),
        (["embedder.pt", *MODEL, "--tests", "a=photo", "--precision", "fp"], "unknown precision 'fp'"),
        (["embedder.pt", *MODEL, "--tests", "a=photo", "--option", "siglp=true"], "'siglp' is no option of open_clip_train; did you mean 'siglip'?"),
        (["embedder.pt", *MODEL, "--tests", "a=photo", "--option", "siglip"], "expected NAME=VALUE, found 'siglip'"),
        (["embedder.pt", "--experiment", "small.yaml", "--tests", "foto"], "small has no test set 'foto'; did you mean 'photo'?"),
        (["embedder.pt", "--experiment", "smal.yaml", "--tests", "photo"], "smal.yaml: no such file"),
    ],
)  # fmt: skip
def test_wrong_words_are_answered_with_what_was_meant(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main([*words, "--output", str(tmp_path / "out")]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("simgap evaluate: ") and message in printed.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["embedder.pt", "--tests", "a=photo"], "--model is required"),
        (["embedder.pt", *MODEL], "--tests"),
        (["embedder.pt", *MODEL, "--tests", "a=photo", "--border", "-1"], "0 or more, found '-1'"),
        (
            ["embedder.pt", *MODEL, "--tests", "a=photo", "--batch-size", "0"],
            "1 or more, found '0'",
        ),
        (["embedder.pt", *MODEL, "--tests", "a=photo", "--max-bad-fraction", "2"], "from 0 to 1"),
    ],
)
def test_words_that_make_no_command_are_refused(
    capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    with pytest.raises(SystemExit):
        main(words)
    assert message in capsys.readouterr().err
