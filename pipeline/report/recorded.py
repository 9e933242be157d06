"""What stages leave beside the artefacts, as plain files: training curves, probes, statistics."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc.stage import OutputError
from pipeline.layout import Layout
from pipeline.report.results import Results
from pipeline.report.statistics import Score
from pipeline.training.curve import read_curve

_DRAWN = 300
"""Points of a training's curve that are drawn, at most."""


@dataclass(frozen=True)
class TrainingCurve:
    """Loss and speed of one training, over all its attempts."""

    split: str
    seed: int
    samples: Sequence[float]
    """Seen since the start."""
    loss: Sequence[float]
    samples_per_second: Sequence[float]


def training_curves(run: Layout, results: Results) -> list[TrainingCurve]:
    """The curves that are there.

    Raises:
        OutputError: one can't be read.
    """
    found = []
    for split in results.splits:
        for seed in results.seeds:
            path = run.curve(split, seed)
            if path.exists() and (columns := _columns(path)):
                found.append(TrainingCurve(split, seed, *columns))
    return found


def _columns(path: Path) -> list[list[float]]:
    """Samples, loss and speed; neighbouring lines are averaged where there are very many."""
    try:
        points = read_curve(path)
    except (OSError, ValueError) as error:
        raise OutputError(f"{path}: can't be read: {error}") from error
    lines = [(point.samples, point.loss, point.samples_per_second) for point in points]
    step = max(1, math.ceil(len(lines) / _DRAWN))
    groups = [lines[start : start + step] for start in range(0, len(lines), step)]
    means = [[math.fsum(side) / len(side) for side in zip(*group, strict=True)] for group in groups]
    return [list(side) for side in zip(*means, strict=True)]


@dataclass(frozen=True)
class Probe:
    """What a linear model, and neighbours, make of a split's frozen features on a test set."""

    split: str
    test: str
    few_shot: Mapping[int, Score]
    """Images of each class -> top-1 of every draw and seed."""
    linear: Score | None
    """Linear probe, top-1 by seed."""
    neighbours: Score | None
    """k-NN, top-1 by seed."""
    k: int | None


def probes(run: Layout, results: Results, tests: Sequence[str]) -> list[Probe]:
    """The probes that are there, of all seeds together.

    Args:
        run: the run.
        results: the splits and seeds.
        tests: the test sets that the study asks for; what an earlier form of it left is not read.

    Raises:
        OutputError: one can't be read.
    """
    found = []
    for split in results.splits:
        folders = [run.probes(split, seed) for seed in results.seeds]
        for test in tests:
            paths = [path for folder in folders if (path := folder / f"{test}.json").exists()]
            records = [_record(path) for path in paths]
            if records:
                found.append(_probe(split, test, records))
    return found


def _probe(split: str, test: str, records: Sequence[Mapping[str, Any]]) -> Probe:
    draws: dict[int, list[float]] = {}
    for record in records:
        for shots, accuracies in (record.get("few_shot") or {}).items():
            draws.setdefault(int(shots), []).extend(map(float, accuracies))
    k = next((one["knn"].get("k") for one in records if one.get("knn")), None)
    few_shot = {shots: Score(tuple(found)) for shots, found in sorted(draws.items()) if found}
    linear, neighbours = (_top1(records, part) for part in ("linear_probe", "knn"))
    return Probe(split, test, few_shot, linear, neighbours, k)


def _top1(records: Sequence[Mapping[str, Any]], part: str) -> Score | None:
    found = tuple(float(record[part]["top1"]) for record in records if record.get(part))
    return Score(found) if found else None


RECALLS = (("image_to_text", "image to text"), ("text_to_image", "text to image"))


@dataclass(frozen=True)
class Retrieval:
    """How often a split's models find the right caption, or the right image, among the first."""

    split: str
    name: str
    images: int
    captions: int
    recalls: Mapping[tuple[str, int], Score]
    """(direction, rank) -> recall by seed."""


def retrievals(run: Layout, results: Results, sets: Sequence[str]) -> list[Retrieval]:
    """The retrieval results that are there, of all seeds together.

    Args:
        run: the run.
        results: the splits and seeds.
        sets: the image-caption sets that the study asks for, as `probes`.

    Raises:
        OutputError: one can't be read.
    """
    found = []
    for split in results.splits:
        for name in sets:
            paths = [run.retrieval(split, seed, name) for seed in results.seeds]
            records = [_record(path) for path in paths if path.exists()]
            if records:
                found.append(_retrieval(split, name, records))
    return found


def _retrieval(split: str, name: str, records: Sequence[Mapping[str, Any]]) -> Retrieval:
    ranks = [(way, rank) for way, _ in RECALLS for rank in records[0][way]]
    recalls = {
        (way, int(rank)): Score(tuple(float(record[way][rank]) for record in records))
        for way, rank in ranks
    }
    return Retrieval(split, name, int(records[0]["images"]), int(records[0]["captions"]), recalls)


@dataclass(frozen=True)
class Overlaps:
    """How many images of one base are near to each test set, and to two of them at once."""

    within: str
    """The base's name; empty for the whole pool."""
    rows: int
    near: Mapping[str, int]
    both: Mapping[frozenset[str], int]
    any: int
    all: int

    def of(self, first: str, second: str) -> int | None:
        """Images near to both; to one, for a test set and itself."""
        return self.near[first] if first == second else self.both.get(frozenset((first, second)))


def overlaps(run: Layout, results: Results) -> list[Overlaps]:
    """One for each base that splits are taken within, as the masks counted it.

    Raises:
        OutputError: a file can't be read.
    """
    found: dict[str, Overlaps] = {}
    for split in results.splits:
        base = results.roles.rules[split].base or ""
        path = run.statistics(split)
        if base not in found and path.exists():
            found[base] = _overlaps(base, _record(path), results.tests)
    return [found[base] for base in sorted(found)]


def _overlaps(base: str, record: Mapping[str, Any], tests: Sequence[str]) -> Overlaps:
    pairs = {
        frozenset(names): int(number)
        for key, number in record["overlaps"].items()
        if len(names := key.split(" & ")) == 2
    }
    near = {test: int(record["near"].get(test, 0)) for test in tests}
    return Overlaps(base, int(record["base"]), near, pairs, int(record["any"]), int(record["all"]))


def _record(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OutputError(f"{path}: can't be read: {error}") from error
    if not isinstance(found, dict):
        raise OutputError(f"{path}: expected a JSON object, found {type(found).__name__}")
    return found


def by_test(found: Iterable[Probe]) -> Iterator[tuple[str, list[Probe]]]:
    """Test set, and the probes on it that have few-shot accuracies."""
    groups: dict[str, list[Probe]] = {}
    for one in found:
        if one.few_shot:
            groups.setdefault(one.test, []).append(one)
    yield from groups.items()
