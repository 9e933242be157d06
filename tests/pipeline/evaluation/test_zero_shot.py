"""What counts of zero-shot predictions, against other people's definitions; and what is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hpc.files import read_json, write_json
from hpc.stage import OutputError
from pipeline.data.classes import ClassList
from pipeline.evaluation.zero_shot import Evaluated, Predictions, check_results, write_results


def predictions(logits: Any, labels: Any) -> Predictions:
    logits = np.asarray(logits, dtype=np.float32)
    names = tuple(f"class {label}" for label in range(logits.shape[1]))
    keys = [f"{row}.jpg" for row in range(len(logits))]
    return Predictions(ClassList(names, names), keys, np.array(labels, np.int32), logits, [], 0)


@pytest.mark.parametrize("classes", [2, 5, 7, 40])
def test_top_k_is_what_torch_counts(classes: int) -> None:
    random = np.random.default_rng(classes)
    logits, labels = random.normal(size=(500, classes)), random.integers(0, classes, 500)
    found = predictions(logits, labels)
    for k in (1, 5):
        top = torch.topk(torch.tensor(logits), min(k, classes)).indices.numpy()
        assert found.top(k) == (top == labels[:, None]).any(axis=1).mean()
    assert found.top(1) == (logits.argmax(axis=1) == labels).mean()


def test_of_equal_logits_the_first_class_counts() -> None:
    found = predictions(np.zeros((7, 7)), range(7))
    assert found.ranks.tolist() == list(range(7))
    assert (found.top(1), found.top(5)) == (1 / 7, 5 / 7)


def test_five_guesses_among_fewer_classes_are_always_right() -> None:
    assert predictions(np.eye(3), [2, 2, 2]).top(5) == 1


def test_the_mean_over_classes_leaves_out_those_without_images() -> None:
    logits = [[1, 0, 0], [1, 0, 0], [1, 0, 0], [0, 1, 0]]  # class 0: 2 of 3; class 1: all
    found = predictions(logits, [0, 0, 1, 1])
    np.testing.assert_array_equal(found.class_accuracy, [1, 0.5, np.nan])
    assert found.mean_per_class == 0.75


def written(folder: Path, classes: int) -> tuple[Path, Predictions]:
    random = np.random.default_rng(0)
    labels = np.arange(60) % classes
    found = predictions(random.normal(size=(60, classes)) + np.eye(classes)[labels], labels)
    what = Evaluated("sketch", "ViT-B-32", "full/seed-0", "full", 0, "openai")
    write_results(folder / "sketch.h5", "d", what, found)
    return folder / "sketch.h5", found


def test_clip_benchmarks_file_lies_beside(tmp_path: Path) -> None:
    path, found = written(tmp_path, 6)
    assert read_json(tmp_path / "sketch.json") == {
        "dataset": "sketch",
        "model": "ViT-B-32",
        "pretrained": "full/seed-0",
        "task": "zeroshot_classification",
        "metrics": {
            "acc1": found.top(1),
            "acc5": found.top(5),
            "mean_per_class_recall": found.mean_per_class,
        },
        "language": "en",
    }
    assert 0.1 < found.top(1) < found.top(5) < 1
    assert check_results(path, "d").keys() >= {"logits", "label", "key"}


def test_fewer_than_five_classes_have_no_acc5(tmp_path: Path) -> None:
    written(tmp_path, 4)
    assert read_json(tmp_path / "sketch.json")["metrics"]["acc5"] is None


@pytest.mark.parametrize("damage", ["missing", "torn", "changed"])
def test_a_damaged_file_beside_is_noticed(tmp_path: Path, damage: str) -> None:
    path, _ = written(tmp_path, 6)
    beside = tmp_path / "sketch.json"
    if damage == "missing":
        beside.unlink()
    elif damage == "torn":
        beside.write_text(beside.read_text()[:50])
    else:
        write_json(beside, {**read_json(beside), "dataset": "r"})
    with pytest.raises(OutputError, match=r"sketch\.json"):
        check_results(path, "d")
