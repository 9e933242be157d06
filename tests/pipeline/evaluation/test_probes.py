"""Little training on frozen features, against scikit-learn itself; retrieval, against its words."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from hpc.stage import Context, Resources
from pipeline import artifacts
from pipeline.data.classes import ClassList, built_in, matching_labels
from pipeline.evaluation import probing, retrieval
from pipeline.experiment.probes import FewShot, Retrieval
from pipeline.experiment.sections import Evaluation, TestSet, Training
from pipeline.layout import PROBE_TRAINING, Layout
from pipeline.stages import probe, retrieve
from tests.pipeline import small

TRAINING = Training(model="ViT-B-32", epochs=1, batch_size=1)


def _context() -> Context:
    return Context(
        digest="d", inputs={}, resources=Resources(), progress=lambda done, total, unit: None
    )


def _classes(*ids: str) -> ClassList:
    return ClassList(ids, ids)


def _write(path: Path, classes: ClassList, rng: Any, each: int) -> tuple[Any, Any]:
    """Features of `each` images a class, around a place of the class that its name decides."""
    labels = np.repeat(np.arange(len(classes)), each).astype(np.int32)
    places = np.stack(
        [np.random.default_rng(list(one.encode())).normal(size=8) for one in classes.ids]
    )
    rows = places[labels] + 1.3 * rng.normal(size=(len(labels), 8))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    artifacts.write(
        path,
        artifacts.FEATURES,
        "d",
        {
            "feature": rows,
            "label": labels,
            "key": artifacts.encode_text([str(row) for row in range(len(rows))]),
            "skipped_key": artifacts.encode_text([]),
            "skipped_reason": artifacts.encode_text([]),
        },
        {
            "split": "full",
            "seed": 0,
            "classes": {"ids": list(classes.ids), "names": list(classes.names)},
            "read": len(rows),
        },
    )
    return rows, labels


@pytest.mark.parametrize("asked", [("cup", "key", "boat"), ("key", "cup")])
def test_accuracies_are_those_of_scikit_learn(tmp_path: Path, asked: tuple[str, ...]) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier

    run, rng = Layout(tmp_path), np.random.default_rng(0)
    known = _classes("boat", "crown", "cup", "key")
    train, train_label = _write(run.features("full", 0, PROBE_TRAINING), known, rng, 12)
    test, test_label = _write(run.features("full", 0, "odd"), _classes(*asked), rng, 30)
    section = FewShot(shots=[1, 3], draws=4, seed=7, linear_probe=True, knn=5, c=2.0)
    stage = probe.Probe(
        run, {"odd": TestSet(images=tmp_path)}, ["full"], TRAINING, Evaluation(few_shot=section)
    )
    (task,) = stage.tasks()
    record = stage.run(task, _context())
    assert stage.check(task, "d")

    # The same once more: of the training images those of the test set's classes, in its order.
    own = [known.ids.index(one) for one in asked]
    label = np.full(len(known), -1)
    label[own] = np.arange(len(asked))
    rows = np.flatnonzero(label[train_label] >= 0)
    train_label, truth = label[train_label], test_label
    assert record["train_images"] == len(rows) == 12 * len(asked)
    assert record["test_images"] == 30 * len(asked)
    whole = LogisticRegression(C=2.0, max_iter=1000).fit(train[rows], train_label[rows])
    found = whole.predict(test)
    assert record["linear_probe"]["top1"] == (found == truth).mean()
    per_class = [(found == truth)[truth == one].mean() for one in range(len(asked))]
    assert record["linear_probe"]["mean_per_class"] == pytest.approx(np.mean(per_class))
    assert record["linear_probe"]["top5"] == 1.0  # there are fewer classes
    near = KNeighborsClassifier(5, metric="cosine").fit(train[rows], train_label[rows])
    assert record["knn"] == {"top1": (near.predict(test) == truth).mean(), "k": 5}
    for shots in (1, 3):
        expected = []
        for draw in range(4):
            drawn = probing.draw_shots(train_label, _classes(*asked), shots, (7, shots, draw))
            assert np.bincount(train_label[drawn]).tolist() == [shots] * len(asked)
            model = LogisticRegression(C=2.0, max_iter=1000)
            model.fit(train[drawn], train_label[drawn])
            expected.append(model.score(test, test_label))
        assert record["few_shot"][str(shots)] == expected
        assert len(set(expected)) > 1  # the draws differ
    assert 0.4 < record["linear_probe"]["top1"] < 1


def test_too_few_images_are_said() -> None:
    classes = _classes("boat", "cup")
    labels = np.array([0, 0, 0, 1, 1])
    with pytest.raises(ValueError, match="3 images of each class asked for, class 'cup' has 2"):
        probing.draw_shots(labels, classes, 3, (0,))
    rows = np.eye(5, dtype=np.float32)
    features = probing.Features(rows, labels, rows, labels, classes)
    with pytest.raises(ValueError, match="6 neighbours asked for, there are 5 training images"):
        probing.neighbours(features, 6)


def test_classes_match_by_folder_or_else_by_name() -> None:
    train = ClassList(("n1", "n2", "n3"), ("crane", "crane", "tench"))
    assert matching_labels(train, ClassList(("n3", "n1"), ("anything", "else"))) == [2, 0]
    assert matching_labels(train, ClassList(("0", "1", "2"), train.names)) == [0, 1, 2]
    with pytest.raises(ValueError, match="class 'n4' is not among the 3 classes of the training"):
        matching_labels(train, ClassList(("n1", "n4"), ("crane", "shark")))
    imagenet = built_in("imagenet-1k")
    assert matching_labels(imagenet, built_in("imagenet-v2")) == list(range(1000))
    assert len(set(matching_labels(imagenet, built_in("imagenet-r")))) == 200
    with pytest.raises(ValueError, match="is not among the 1000 classes"):
        matching_labels(imagenet, built_in("objectnet"))


@pytest.mark.parametrize("shots", [[2, 1], [1, 1], [0]])
def test_shots_rise(shots: list[int]) -> None:
    with pytest.raises(ValidationError, match="shots"):
        FewShot(shots=shots)


def _by_the_words(image_ID: Any, text_UD: Any, caption_C: Any, image_C: Any) -> dict[str, Any]:
    """R@k by sorting everything."""
    captions = text_UD[caption_C]
    found: dict[str, Any] = {"image_to_text": {}, "text_to_image": {}}
    for k in (1, 5):
        hits = []
        for image, feature in enumerate(image_ID):
            order = sorted(range(len(captions)), key=lambda c: (-float(captions[c] @ feature), c))
            hits.append(any(image_C[caption] == image for caption in order[:k]))
        found["image_to_text"][str(k)] = float(np.mean(hits))
        hits = []
        for caption, feature in enumerate(captions):
            order = sorted(range(len(image_ID)), key=lambda i: (-float(image_ID[i] @ feature), i))
            hits.append(image_C[caption] in order[:k])
        found["text_to_image"][str(k)] = float(np.mean(hits))
    return found


@pytest.mark.parametrize("at_once", [1, 40, 2**25])
def test_recalls_are_those_of_the_words(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "_NUMBERS_AT_ONCE", at_once)
    rng = np.random.default_rng(2)
    # Small whole numbers: similarities are exact, and many of them equal.
    images = rng.integers(-2, 3, (12, 4)).astype(np.float64)
    texts = rng.integers(-2, 3, (15, 4)).astype(np.float64)
    image_of = np.concatenate([np.arange(12), rng.integers(0, 12, 8)])
    caption = rng.integers(0, 15, 20)
    found = retrieval.recalls(images, texts, caption, image_of)
    assert found == _by_the_words(images, texts, caption, image_of)
    assert 0 < found["text_to_image"]["1"] < found["text_to_image"]["5"] < 1
    perfect = retrieval.recalls(np.eye(3), np.eye(3), np.arange(3), np.arange(3))
    assert perfect["image_to_text"] == perfect["text_to_image"] == {"1": 1.0, "5": 1.0}


def test_a_line_of_a_caption_file_is_a_caption() -> None:
    assert retrieval.captions_in("a cat\r\n\n  a dog \n") == ["a cat", "a dog"]
    assert retrieval.captions_in(" \n") == []
    texts, which = retrieval.distinct(["b", "a", "b"])
    assert (texts, which.tolist()) == (["b", "a"], [0, 1, 0])


def _retrieve(folder: Path, **section: Any) -> tuple[retrieve.Retrieve, dict[str, Any]]:
    """The stage on a model that was not trained, and its counts."""
    run = Layout(folder / "run")
    checkpoint = run.checkpoint("full", 0)
    checkpoint.parent.mkdir(parents=True)
    (folder / "embedder.pt").rename(checkpoint)
    training = Training(model=str(folder / "small-model.json"), epochs=1, batch_size=1)
    sets = {"held": Retrieval(shards=f"{folder}/held/*.tar", **section)}
    evaluation = Evaluation(retrieval=sets, batch_size=4, workers=0)
    stage = retrieve.Retrieve(run, ["full"], training, evaluation)
    (task,) = stage.tasks()
    counts = stage.run(task, _context())
    assert isinstance(counts, dict)
    assert stage.check(task, "d")
    return stage, counts


def _tars(folder: Path, *members: list[tuple[str, bytes]]) -> None:
    small.make(folder)
    (folder / "held").mkdir()
    for index, shard in enumerate(members):
        small.write_tar(folder / "held" / f"{index}.tar", shard)


def test_retrieval_is_that_of_open_clip_itself(tmp_path: Path) -> None:
    import open_clip
    import torch
    from PIL import Image

    pictures = [("photo", 0), ("photo", 1), ("sketch", 2), ("sketch", 0), ("photo", 2)]
    captions = [["a disc", "a round thing"], ["a square"], ["two lines"], ["a disc"], ["it", "x"]]
    samples = [
        small.sample(f"s{number}", *picture, number, "\n".join(lines))
        for number, (picture, lines) in enumerate(zip(pictures, captions, strict=True))
    ]
    blank = small.sample("s9", "photo", 0, 9, "\n")
    _tars(tmp_path, [*samples[0], *samples[1], *samples[2]], [*samples[3], *samples[4], *blank])
    stage, counts = _retrieve(tmp_path, max_bad_fraction=0.2)
    assert (counts["images"], counts["captions"]) == (5, 7)
    assert counts["read"] == 6
    assert counts["skipped"] == {"empty caption": 1}

    model, _, preprocess = open_clip.create_model_and_transforms(
        "small-model", pretrained=str(stage.run_layout.checkpoint("full", 0))
    )
    model.eval()
    decoded = []
    for path in sorted((tmp_path / "held").iterdir()):
        with tarfile.open(path) as tar:
            names = [name for name in tar.getnames() if name.endswith(".jpg")]
            files = [tar.extractfile(name) for name in names if name != "s9.jpg"]
            decoded += [preprocess(Image.open(file)) for file in files if file]
    tokens = open_clip.get_tokenizer("small-model")([one for lines in captions for one in lines])
    with torch.inference_mode():
        images = model.encode_image(torch.stack(decoded), normalize=True).double().numpy()
        texts = model.encode_text(tokens, normalize=True).double().numpy()
    image_of = np.repeat(np.arange(5), [len(lines) for lines in captions])
    expected = _by_the_words(images, texts, np.arange(7), image_of)
    assert {way: counts[way] for way in expected} == expected


def test_what_is_no_whole_benchmark_is_refused(tmp_path: Path) -> None:
    blank = small.sample("s1", "photo", 0, 1, " ")
    _tars(tmp_path, [*small.sample("s0", "photo", 0, 0), *blank])
    with pytest.raises(ValueError, match=r"full/seed-0/held: 1 of 2 samples can't be used .*s1: e"):
        _retrieve(tmp_path)
    whole = (tmp_path / "held" / "0.tar").read_bytes()
    (tmp_path / "held" / "0.tar").write_bytes(whole[:2000])
    with pytest.raises(ValueError, match=r"0\.tar: .*a part of a benchmark is another one"):
        retrieve._read(Retrieval(shards=f"{tmp_path}/held/0.tar"))
