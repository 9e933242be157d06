"""What the trained models score: splits by test sets by seeds.

Letters in shapes: m queries (test images) of one test set, S seeds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from hpc.stage import OutputError
from pipeline import artifacts
from pipeline.artifacts import Array, Artifact
from pipeline.experiment.sections import Experiment
from pipeline.layout import POOL, Layout
from pipeline.report.roles import Roles, rule_of
from pipeline.report.statistics import Score
from pipeline.report.uncertainty import Estimate, estimate

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
    """Pool images that it is taken from: those of its base, or all."""
    near: tuple[str, ...]
    """Test sets that it is pruned for."""
    scores: Mapping[str, Score]
    """By test set; top-1 in [0, 1]."""
    seeds: Mapping[str, tuple[int, ...]]
    """By test set: the seeds of which there is an evaluation."""


@dataclass(frozen=True)
class Results:
    """All splits in order, and which of them is compared with which."""

    splits: Mapping[str, SplitResult]
    seeds: tuple[int, ...]
    tests: tuple[str, ...]
    roles: Roles
    full: str | None
    """The split that the others are parts of, if a model was trained on it."""
    controls: Mapping[str, str]
    """Split -> the random sample of the same size, where a model was trained on one."""
    missing: tuple[str, ...]
    """What is not there yet, in words."""
    pool_files: int

    @property
    def evaluated(self) -> bool:
        """Whether there is any model."""
        return any(split.scores for split in self.splits.values())

    def full_of(self, split: str) -> str | None:
        """The trained split that this one is a part of."""
        return self.roles.full(split)

    def pruned_for(self, test: str) -> str | None:
        """The split that is pruned for a test set, and for as few others as possible."""
        pruned = [split for split in self.splits.values() if test in split.near]
        return min(pruned, key=lambda split: len(split.near)).name if pruned else None

    def baseline(self, split: str) -> str | None:
        """What a pruned split is measured by: its control, or else what it is a part of."""
        return self.controls.get(split) or self.full_of(split)

    def of_interest(self, test: str) -> dict[str, str]:
        """The models that tell a test set's story: role (`full`, `near`, `control`) -> split."""
        roles: dict[str, str] = {}
        near = self.pruned_for(test)
        if near is not None:
            roles["near"] = near
            if near in self.controls:
                roles["control"] = self.controls[near]
        full = (self.full_of(near) if near else self.full) or self.full or next(iter(self.splits))
        roles = roles if full in roles.values() else {"full": full, **roles}
        return {role: name for role, name in roles.items() if test in self.splits[name].scores}


def read_results(experiment: Experiment, run: Layout) -> Results:
    """Read the splits that models were trained on, and every evaluation that is there.

    Raises:
        OutputError: a file can't be read.
    """
    trained = experiment.trained_splits
    masks, missing = {}, []
    for name in trained or list(experiment.splits):
        if run.mask(name).exists():
            masks[name] = artifacts.read(run.mask(name), artifacts.MASK)
        else:
            missing.append(f"the mask of {name}")
    kept = {name: int(mask.attributes["kept"]) for name, mask in masks.items()}
    roles = Roles({name: rule_of(split) for name, split in experiment.splits.items()}, kept)
    splits = {
        name: _split(experiment, run, mask, roles, missing if name in trained else [])
        for name, mask in masks.items()
    }
    controls = {name: control for name in kept if (control := roles.control(name))}
    return Results(
        splits,
        tuple(experiment.seeds),
        tuple(experiment.tests),
        roles,
        roles.main(),
        controls,
        tuple(missing),
        _pool_files(run, masks),
    )


def _pool_files(run: Layout, masks: Mapping[str, Artifact]) -> int:
    """Embeddings files of the pool."""
    if masks:
        return len(next(iter(masks.values()))["rows"])
    return len(list(run.embeddings(POOL, 0).parent.glob("*.h5")))


def _split(
    experiment: Experiment, run: Layout, mask: Artifact, roles: Roles, missing: list[str]
) -> SplitResult:
    facts = mask.attributes
    name = str(facts["split"])
    scores, seeds = {}, {}
    for test in experiment.tests:
        found = dict(_evaluations(experiment, run, name, test, missing))
        if found:
            scores[test] = Score(tuple(float(one.attributes["accuracy"]) for one in found.values()))
            seeds[test] = tuple(found)
    return SplitResult(
        name,
        str(facts["definition"]),
        int(facts["kept"]),
        _rows(experiment, run, name, int(facts["rows_total"])),
        roles.pruned_for(name),
        scores,
        seeds,
    )


def _rows(experiment: Experiment, run: Layout, name: str, pool: int) -> int:
    """Images that a split is taken from."""
    base = rule_of(experiment.splits[name]).base
    if base is None:
        return pool
    return int(artifacts.read(run.mask(base), artifacts.MASK).attributes["kept"])


def _evaluations(
    experiment: Experiment, run: Layout, split: str, test: str, missing: list[str]
) -> Iterator[tuple[int, Artifact]]:
    for seed in experiment.seeds:
        if run.evaluation(split, seed, test).exists():
            yield seed, read_evaluation(run, split, seed, test)
        else:
            missing.append(f"the evaluation of {split}, seed {seed}, on {test}")


def read_evaluation(run: Layout, split: str, seed: int, test: str) -> Artifact:
    """Open the predictions of one model on one test set.

    Raises:
        OutputError: the file is missing or can't be read.
    """
    return artifacts.read(run.evaluation(split, seed, test), artifacts.EVALUATION)


class Models:
    """What each model makes of each image, read once, and the intervals that follow from it."""

    def __init__(self, run: Layout, results: Results, keys: Mapping[str, Array]) -> None:
        """Nothing is read yet.

        Args:
            run: the run.
            results: which models there are.
            keys: (m,) of each test set, the images, as bytes.
        """
        self.run = run
        self.results = results
        self.keys = keys
        self._correct: dict[tuple[str, str], Array] = {}
        self._estimates: dict[tuple[str, ...], Estimate | None] = {}

    def correct(self, split: str, test: str) -> Array:
        """(S, m) float32: 1 or 0 for each seed that was evaluated, nan for images that were not."""
        if (split, test) not in self._correct:
            seeds = self.results.splits[split].seeds[test]
            found = correctness(self.run, split, seeds, test, self.keys[test])
            self._correct[split, test] = found
        return self._correct[split, test]

    def accuracy(self, split: str, test: str) -> Estimate | None:
        """The accuracy of a split's models; None if there is no model."""
        if (split, test) not in self._estimates:
            self._estimates[split, test] = self._accuracy(split, test)
        return self._estimates[split, test]

    def _accuracy(self, split: str, test: str) -> Estimate | None:
        if test not in self.results.splits[split].scores:
            return None
        correct = self.correct(split, test)
        asked = np.isfinite(correct).all(axis=0)
        return estimate(correct[:, asked], name=f"{split} {test}") if asked.any() else None

    def difference(self, split: str, other: str | None, test: str) -> Estimate | None:
        """How much better a split's models do than another's, with the same seeds and images.

        None if there is no other, or no seed with which both were evaluated.
        """
        if other is None or other == split:
            return None
        if (split, other, test) not in self._estimates:
            self._estimates[split, other, test] = self._difference(split, other, test)
        return self._estimates[split, other, test]

    def _difference(self, split: str, other: str, test: str) -> Estimate | None:
        mine, theirs = (self.results.splits[one].seeds.get(test, ()) for one in (split, other))
        both = [seed for seed in mine if seed in theirs]
        if not both:
            return None
        rows = self.correct(split, test)[[mine.index(seed) for seed in both]]
        rows = rows - self.correct(other, test)[[theirs.index(seed) for seed in both]]
        asked = np.isfinite(rows).all(axis=0)
        name = f"{split} {other} {test}"
        return estimate(rows[:, asked], (-1.0, 1.0), name) if asked.any() else None


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
        (S, m) float32: 1 or 0, nan where an image was not evaluated.

    Raises:
        OutputError: an evaluation is missing, or has no image in common with the keys.
    """
    correct = np.full((len(seeds), len(keys)), np.nan, np.float32)
    for row, seed in zip(correct, seeds, strict=True):
        found = read_evaluation(run, split, seed, test)
        _, ours, theirs = np.intersect1d(keys, found["key"], return_indices=True)
        if len(keys) and not len(ours):
            raise OutputError(f"{found.path}: none of its images is among those of {test}")
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
    run: Layout, results: Results, split: str, baseline: str, test: str
) -> list[ClassChange]:
    """Accuracy by class, means over seeds, from the largest loss to the largest gain."""
    first = read_evaluation(run, split, results.splits[split].seeds[test][0], test)
    names = first.attributes["classes"]["names"]
    images = np.bincount(first["label"], minlength=len(names))
    means = [_class_means(run, results.splits[one], test) for one in (split, baseline)]
    both = np.isfinite(means[0]) & np.isfinite(means[1])
    rows = [
        ClassChange(names[c], int(images[c]), float(means[0][c]), float(means[1][c]))
        for c in np.flatnonzero(both)
    ]
    return sorted(rows, key=lambda row: (row.change, row.name))


def _class_means(run: Layout, split: SplitResult, test: str) -> Array:
    seeds = split.seeds[test]
    found = [read_evaluation(run, split.name, seed, test)["class_accuracy"] for seed in seeds]
    means: Array = np.stack(found).mean(axis=0)
    return means
