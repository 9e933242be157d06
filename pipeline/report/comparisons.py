"""What the trained models tell together: pruning curves, the matrix, effective robustness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.artifacts import Array
from pipeline.evaluation.baselines import Baselines
from pipeline.report.results import Models, Results
from pipeline.report.roles import Rule
from pipeline.report.uncertainty import Estimate
from pipeline.report.words import enumerate_names

FIT = 3
"""A line through fewer baseline models would say nothing."""


@dataclass(frozen=True)
class Point:
    """A split of a pruning curve."""

    split: str
    kept: int
    accuracy: Estimate


@dataclass(frozen=True)
class PruningLine:
    """Splits that differ only in how many images they keep, most first."""

    role: str
    """`near`, `far` or `control`: which images are kept; control: any."""
    label: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class PruningCurves:
    """Accuracy on a test set against the number of images kept."""

    test: str
    within: str
    """What all of its splits have in common; empty where there is one such group."""
    lines: tuple[PruningLine, ...]


def pruning_curves(results: Results, models: Models) -> list[PruningCurves]:
    """For each test set that splits are ranked by, one set of curves in each base."""
    groups = dict.fromkeys(_group(results, name) for name in results.splits)
    found = [
        curves
        for test in results.tests
        for group in groups
        if (curves := _curves(results, models, test, group))
    ]
    several = len({curves.within for curves in found}) > 1
    return [one if several else PruningCurves(one.test, "", one.lines) for one in found]


def _group(results: Results, name: str) -> tuple[str, str | None]:
    """Splits are comparable within one base, with or without the reference's images."""
    return results.roles.domain(name), results.roles.rules[name].caption


def _curves(
    results: Results, models: Models, test: str, group: tuple[str, str | None]
) -> PruningCurves | None:
    lines: dict[tuple[str, tuple[str, ...]], list[Point]] = {}
    ends: list[Point] = []
    for name, split in results.splits.items():
        accuracy = models.accuracy(name, test)
        rule = results.roles.rules[name]
        if accuracy is None or rule.caption != group[1]:
            continue
        point = Point(name, split.kept, accuracy)
        if results.roles.whole(name) == group[0]:
            ends = ends or [point]
        elif results.roles.domain(name) == group[0] and (role := _ranked(rule, test)):
            lines.setdefault((role, rule.tests), []).append(point)
    if not any(role != "control" for role, _ in lines):
        return None
    drawn = [
        PruningLine(role, _label(role, tests), _by_size(ends, points))
        for (role, tests), points in sorted(lines.items())
    ]
    domain, caption = group
    within = f"within {domain}" if domain else "within the pool"
    return PruningCurves(test, within + (", with the reference" if caption else ""), tuple(drawn))


def _by_size(ends: Sequence[Point], points: Sequence[Point]) -> tuple[Point, ...]:
    return tuple(sorted([*ends, *points], key=lambda point: -point.kept))


def _ranked(rule: Rule, test: str) -> str:
    """The role of a split in the curves of a test set, if it has one."""
    if rule.kind == "random":
        return "control"
    ranked = rule.kind in ("near", "far") and rule.keep is not None and test in rule.tests
    return rule.kind if ranked else ""


def _label(role: str, tests: Sequence[str]) -> str:
    if role == "control":
        return "random"
    jointly = f", jointly {enumerate_names(tests)}" if len(tests) > 1 else ""
    return f"{role}-pruned{jointly}"


@dataclass(frozen=True)
class MatrixRow:
    """A pruned split against what it is measured by, on every test set."""

    split: str
    pruned_for: tuple[str, ...]
    baseline: str
    cells: Mapping[str, Estimate]
    """By test set: the difference in accuracy."""

    def finds(self, test: str) -> bool:
        """Whether there is a difference on a test set."""
        return test in self.cells and not self.cells[test].shows_nothing


def matrix(results: Results, models: Models) -> list[MatrixRow]:
    """What pruning for some test sets changes on each of them."""
    rows = []
    for name, split in results.splits.items():
        baseline = results.baseline(name)
        if not split.near or baseline is None:
            continue
        differences = {test: models.difference(name, baseline, test) for test in results.tests}
        cells = {test: found for test, found in differences.items() if found is not None}
        if cells:
            rows.append(MatrixRow(name, split.near, baseline, cells))
    return rows


@dataclass(frozen=True)
class Robustness:
    """Accuracy on a test set against accuracy on the standard one."""

    test: str
    standard: str
    models: Mapping[str, tuple[Estimate, Estimate]]
    """Split -> accuracy on the standard set and on the test set."""
    baselines: Mapping[str, tuple[float, float]]
    """Model -> the same of models that the user named."""
    line: tuple[float, float] | None
    """Slope and intercept between the logits of both, through the baselines; None with fewer
    than FIT of them."""

    def expected(self, standard: float) -> float | None:
        """The accuracy that the line gives a model of some standard accuracy."""
        if self.line is None:
            return None
        return float(1 / (1 + np.exp(-(self.line[0] * logit(standard) + self.line[1]))))


def logit(accuracy: float | Array) -> Array:
    """log(p / (1 - p)); what is closer to 0 or 1 than one in ten thousand counts as that."""
    inside = np.clip(accuracy, 1e-4, 1 - 1e-4)
    found: Array = np.log(inside / (1 - inside))
    return found


def robustness(
    results: Results, models: Models, standard: str, baselines: Baselines
) -> list[Robustness]:
    """For each test set but the standard one."""
    found = []
    for test in results.tests:
        if test == standard:
            continue
        ours = {
            name: (x, y)
            for name in results.splits
            if (x := models.accuracy(name, standard)) and (y := models.accuracy(name, test))
        }
        others = {
            name: (accuracies[standard], accuracies[test])
            for name, accuracies in baselines.items()
            if standard in accuracies and test in accuracies
        }
        if ours:
            found.append(Robustness(test, standard, ours, others, _line(list(others.values()))))
    return found


def _line(pairs: Sequence[tuple[float, float]]) -> tuple[float, float] | None:
    if len(pairs) < FIT:
        return None
    x, y = (logit(np.array(side)) for side in zip(*pairs, strict=True))
    if np.ptp(x) == 0:
        return None
    slope, intercept = np.polyfit(x, y, 1).tolist()
    return slope, intercept
