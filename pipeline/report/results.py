"""What the trained models score: splits by test sets by seeds.

Letters in shapes: m queries (test images) of one test set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pipeline import artifacts
from pipeline.artifacts import Array, Artifact
from pipeline.layout import Layout
from pipeline.report.statistics import Score
from pipeline.sections import Experiment

_BLOCK_ROWS = 4096


@dataclass(frozen=True)
class SplitResult:
    """A split, and the accuracy of the models that were trained on it."""

    name: str
    definition: str
    """In words."""
    kept: int
    """Pool images that it keeps."""
    rows: int
    """Pool images in all."""
    near: tuple[str, ...]
    """Test sets that it is pruned for."""
    scores: Mapping[str, Score]
    """By test set; top-1 in [0, 1]."""


@dataclass(frozen=True)
class Results:
    """All splits in order, and which of them is compared with which."""

    splits: Mapping[str, SplitResult]
    seeds: tuple[int, ...]
    tests: tuple[str, ...]
    full: str | None
    """The split that keeps every image, if a model was trained on it."""
    controls: Mapping[str, str]
    """Split -> the random sample of the same size, where a model was trained on one."""
    pool_files: int

    @property
    def evaluated(self) -> bool:
        """Whether there is any model."""
        return any(split.scores for split in self.splits.values())

    def change(self, split: str, other: str | None, test: str) -> float | None:
        """Mean accuracy minus that of another split, in points; None if there is none."""
        if other is None or other == split:
            return None
        mine, theirs = (self.splits[name].scores.get(test) for name in (split, other))
        return None if mine is None or theirs is None else 100 * (mine.mean - theirs.mean)

    def pruned_for(self, test: str) -> str | None:
        """The split that is pruned for a test set, and for as few others as possible."""
        pruned = [split for split in self.splits.values() if test in split.near]
        return min(pruned, key=lambda split: len(split.near)).name if pruned else None

    def baseline(self, split: str) -> str | None:
        """What a pruned split is measured by: its control, or else the full pool."""
        return self.controls.get(split, self.full)

    def of_interest(self, test: str) -> dict[str, str]:
        """The models that tell a test set's story: role (`full`, `near`, `control`) -> split."""
        roles: dict[str, str] = {}
        near = self.pruned_for(test)
        if near is not None:
            roles["near"] = near
            if near in self.controls:
                roles["control"] = self.controls[near]
        full = self.full or next(iter(self.splits))
        return roles if full in roles.values() else {"full": full, **roles}


def read_results(experiment: Experiment, run: Layout) -> Results:
    """Read the splits that models were trained on, and every evaluation.

    Raises:
        OutputError: a file is missing or can't be read.
    """
    names = experiment.trained_splits or list(experiment.splits)
    masks = {name: artifacts.read(run.mask(name), artifacts.MASK) for name in names}
    splits = {name: _split(experiment, run, name, mask) for name, mask in masks.items()}
    full = next((name for name in names if experiment.splits[name].all), None)
    controls: dict[str, str] = {}
    for name in names:
        random = experiment.splits[name].random
        if random is not None and random.like in names:
            controls.setdefault(random.like, name)
    return Results(
        splits,
        tuple(experiment.seeds),
        tuple(experiment.tests),
        full,
        controls,
        len(masks[names[0]]["rows"]),
    )


def _split(experiment: Experiment, run: Layout, name: str, mask: Artifact) -> SplitResult:
    facts = mask.attributes
    scores = {}
    if name in experiment.trained_splits:
        for test in experiment.tests:
            found = [read_evaluation(run, name, seed, test) for seed in experiment.seeds]
            scores[test] = Score(tuple(float(one.attributes["accuracy"]) for one in found))
    near = experiment.splits[name].pruned_for
    kept, rows = int(facts["kept"]), int(facts["rows_total"])
    return SplitResult(name, str(facts["definition"]), kept, rows, near, scores)


def read_evaluation(run: Layout, split: str, seed: int, test: str) -> Artifact:
    """Open the predictions of one model on one test set.

    Raises:
        OutputError: the file is missing or can't be read.
    """
    return artifacts.read(run.evaluation(split, seed, test), artifacts.EVALUATION)


def correctness(run: Layout, split: str, seeds: tuple[int, ...], test: str, keys: Array) -> Array:
    """Whether each model gets each image right.

    Args:
        run: the run.
        split: what the models were trained on.
        seeds: one model each.
        test: the test set.
        keys: (m,) the images, as bytes; evaluations are joined by key, for each may have skipped
            images that the other could read.

    Returns:
        (seeds, m) float64: 1 or 0, nan where an image was not evaluated.
    """
    correct = np.full((len(seeds), len(keys)), np.nan)
    for row, seed in zip(correct, seeds, strict=True):
        found = read_evaluation(run, split, seed, test)
        _, ours, theirs = np.intersect1d(keys, found["key"], return_indices=True)
        row[ours] = (_predicted(found["logits"]) == found["label"])[theirs]
    return correct


def _predicted(logits: Array) -> Array:
    """(m,) the class with the highest logit, block by block: logits can be larger than memory."""
    starts = range(0, len(logits), _BLOCK_ROWS)
    blocks = [logits[start : start + _BLOCK_ROWS].argmax(axis=1) for start in starts]
    return np.concatenate(blocks) if blocks else np.empty(0, np.int64)


@dataclass(frozen=True)
class ClassChange:
    """A class, and its accuracy with a split and with the split that it is compared with."""

    name: str
    images: int
    accuracy: float
    baseline: float

    @property
    def change(self) -> float:
        """Points."""
        return 100 * (self.accuracy - self.baseline)


def class_changes(
    run: Layout, split: str, baseline: str, seeds: tuple[int, ...], test: str
) -> list[ClassChange]:
    """Accuracy by class, means over seeds, from the largest loss to the largest gain."""
    first = read_evaluation(run, split, seeds[0], test)
    names = first.attributes["classes"]["names"]
    images = np.bincount(first["label"], minlength=len(names))
    means = [_class_means(run, one, seeds, test) for one in (split, baseline)]
    both = np.isfinite(means[0]) & np.isfinite(means[1])
    rows = [
        ClassChange(names[c], int(images[c]), float(means[0][c]), float(means[1][c]))
        for c in np.flatnonzero(both)
    ]
    return sorted(rows, key=lambda row: (row.change, row.name))


def _class_means(run: Layout, split: str, seeds: tuple[int, ...], test: str) -> Array:
    found = [read_evaluation(run, split, seed, test)["class_accuracy"] for seed in seeds]
    means: Array = np.stack(found).mean(axis=0)
    return means
