"""Zero-shot classification of an image set by one model: predictions, and what counts of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hpc.files import read_json, write_json
from hpc.stage import OutputError
from pipeline import artifacts
from pipeline.data.classes import ClassList
from pipeline.experiment.sections import Evaluation, ImageSet
from pipeline.experiment.sources import classes_in, ignored_folders

if TYPE_CHECKING:
    from pipeline.models import Embedder

_LOGIT_SCALE = 100.0  # open_clip_train's zero-shot evaluation; ranks don't depend on it


@dataclass(frozen=True)
class Predictions:
    """What a model says of the usable images of a set.

    Attributes:
        classes: c classes.
        keys: m images.
        labels: (m,) int32.
        logits: (m, c) float32.
        skipped: key and reason of the images that can't be used.
        ignored_folders: sub-folders that are not in the class list.
    """

    classes: ClassList
    keys: list[str]
    labels: Any
    logits: Any
    skipped: list[tuple[str, str]]
    ignored_folders: int

    @property
    def read(self) -> int:
        """Images that were met, used or not."""
        return len(self.keys) + len(self.skipped)

    @cached_property
    def ranks(self) -> Any:
        """(m,) int64: how many classes a model prefers to the true one; of equals the first."""
        return true_ranks(self.logits, self.labels)

    def top(self, k: int) -> float:
        """The share of images whose class is among the `k` that the model prefers."""
        return float((self.ranks < k).mean())

    @property
    def class_accuracy(self) -> Any:
        """(c,) float64: top-1 accuracy of each class; nan for a class without images."""
        return class_accuracy(self.ranks < 1, self.labels, len(self.classes))

    @property
    def mean_per_class(self) -> float:
        """The mean of the classes' accuracies, of those that have images."""
        return float(np.nanmean(self.class_accuracy))


def true_ranks(scores: Any, labels: Any) -> Any:
    """How many classes come before the true one; of equal scores the first class comes first.

    Args:
        scores: (m, c) floats.
        labels: (m,) int.

    Returns:
        (m,) int64.
    """
    own = scores[np.arange(len(labels)), labels][:, None]
    before = np.arange(scores.shape[1]) < labels[:, None]
    return ((scores > own) | ((scores == own) & before)).sum(axis=1)


def class_accuracy(correct: Any, labels: Any, classes: int) -> Any:
    """Top-1 accuracy of each class.

    Args:
        correct: (m,) bool.
        labels: (m,) int32.
        classes: c, their number.

    Returns:
        (c,) float64; nan for a class without images.
    """
    images = np.bincount(labels, minlength=classes)
    hits = np.bincount(labels, weights=correct, minlength=classes)
    return np.where(images, hits / np.maximum(images, 1), np.nan)


def classify(
    model: Embedder,
    images: ImageSet,
    evaluation: Evaluation,
    on_progress: Callable[[int, int], None],
) -> Predictions:
    """Classify the images of a set, with the set's own class list.

    Args:
        model: the model.
        images: the set.
        evaluation: captions, batch size and workers.
        on_progress: called with (images done, images in all).

    Raises:
        FileNotFoundError: a class has no folder.
        ValueError: more than `max_bad_fraction` of the images can't be used, or all.
    """
    from pipeline.data.folders import list_images
    from pipeline.data.loader import Source, load_images
    from pipeline.models import image_features, zero_shot_classifier

    classes = classes_in(images)
    found = list_images(images.images, classes)
    classifier = zero_shot_classifier(model, classes.names, templates_of(evaluation))
    used: list[int] = []
    skipped: list[tuple[str, str]] = []
    logits = [np.empty((0, len(classes)), dtype=np.float32)]
    for batch in load_images(
        [Source(image.path, None, images.border) for image in found],
        model.preprocess,
        batch_size=evaluation.batch_size,
        workers=evaluation.workers,
        pin_memory=model.device != "cpu",
    ):
        scores = _LOGIT_SCALE * image_features(model, batch.images).float() @ classifier
        logits.append(scores.cpu().numpy())
        used += batch.positions
        skipped += [(found[position].key, reason) for position, reason in batch.failed]
        on_progress(len(used) + len(skipped), len(found))
    check_usable(images, len(used), skipped)
    return Predictions(
        classes,
        [found[position].key for position in used],
        np.array([found[position].label for position in used], dtype=np.int32),
        np.concatenate(logits),
        skipped,
        len(ignored_folders(images)),
    )


def check_usable(images: ImageSet, used: int, skipped: Sequence[tuple[str, str]]) -> None:
    """Refuse a set of which too few images can be used.

    Raises:
        ValueError: more than `max_bad_fraction` can't be used, or all.
    """
    bad, read, limit = len(skipped), used + len(skipped), images.max_bad_fraction
    if bad > limit * read or not used:
        raise ValueError(
            f"{images.images}: {bad} of {read} images can't be used (the first is "
            f"{skipped[0][0]}: {skipped[0][1]}), more than max_bad_fraction = {limit} allows"
        )


def templates_of(evaluation: Evaluation) -> Sequence[str] | Sequence[Callable[[str], str]]:
    """The captions of an evaluation, as open_clip's classifier builder takes them."""
    import open_clip

    templates = evaluation.templates
    if templates == "openai":
        return list(open_clip.OPENAI_IMAGENET_TEMPLATES)
    if templates == "simple":
        return list(open_clip.SIMPLE_IMAGENET_TEMPLATES)
    return list(templates)


@dataclass(frozen=True)
class Evaluated:
    """What was evaluated, in the words of its results.

    Attributes:
        test: the test set's name.
        model: the model's name, without a folder.
        pretrained: a tag, a checkpoint, or a training of a study (`split/seed-0`).
        split: the split that the model was trained on; None outside a study.
        seed: of the training; None outside a study.
        templates: as in the evaluation's settings.
    """

    test: str
    model: str
    pretrained: str
    split: str | None
    seed: int | None
    templates: str | list[str]


def write_results(path: Path, digest: str, what: Evaluated, found: Predictions) -> None:
    """Write predictions to an HDF5 file, and beside it what CLIP_benchmark would write.

    Args:
        path: the HDF5 file; the other has `.json` for `.h5`.
        digest: of the task that makes it.
        what: what was evaluated.
        found: the predictions.
    """
    artifacts.write(
        path,
        artifacts.EVALUATION,
        digest,
        {
            "key": artifacts.encode_text(found.keys),
            "label": found.labels,
            "logits": found.logits,
            "class_accuracy": found.class_accuracy,
            "skipped_key": artifacts.encode_text([key for key, _ in found.skipped]),
            "skipped_reason": artifacts.encode_text([reason for _, reason in found.skipped]),
        },
        {
            "split": what.split,
            "seed": what.seed,
            "test": what.test,
            "model": what.model,
            "pretrained": what.pretrained,
            "classes": {"ids": list(found.classes.ids), "names": list(found.classes.names)},
            "templates": what.templates,
            "accuracy": found.top(1),
            "top5": found.top(5),
            "mean_per_class": found.mean_per_class,
            "read": found.read,
            "ignored_folders": found.ignored_folders,
        },
    )
    attributes = artifacts.read(path, artifacts.EVALUATION).attributes
    write_json(benchmark_path(path), benchmark_record(attributes))


def check_results(path: Path, digest: str) -> dict[str, str]:
    """Verify both files of an evaluation.

    Returns:
        The hash of each dataset.

    Raises:
        OutputError: one is missing or damaged, or was made for another digest.
    """
    hashes = artifacts.verify(path, artifacts.EVALUATION, digest)
    expected = benchmark_record(artifacts.read(path, artifacts.EVALUATION).attributes)
    beside = benchmark_path(path)
    try:
        found = read_json(beside)
    except (OSError, ValueError) as error:
        raise OutputError(f"{beside}: can't be read: {error}") from error
    if found != expected:
        raise OutputError(f"{beside}: does not say what {path.name} says")
    return hashes


def benchmark_path(path: Path) -> Path:
    """CLIP_benchmark's JSON beside an evaluation's HDF5 file."""
    return path.with_suffix(".json")


def benchmark_record(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """What CLIP_benchmark would write of an evaluation.

    Args:
        attributes: of the evaluation's HDF5 file.

    Returns:
        JSON values; `acc5` is null where there are fewer than five classes, for which
        CLIP_benchmark has nan.
    """
    enough = len(attributes["classes"]["ids"]) >= 5
    return {
        "dataset": attributes["test"],
        "model": attributes["model"],
        "pretrained": attributes["pretrained"],
        "task": "zeroshot_classification",
        "metrics": {
            "acc1": attributes["accuracy"],
            "acc5": attributes["top5"] if enough else None,
            "mean_per_class_recall": attributes["mean_per_class"],
        },
        "language": "en",
    }
