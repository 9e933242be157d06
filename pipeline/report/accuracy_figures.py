"""The figures of accuracy: by similarity, by images kept, pruned against control, robustness."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hpc.words import count
from pipeline.report.comparisons import MatrixRow, PruningCurves, PruningLine, Robustness, logit
from pipeline.report.statistics import Bin, bins_correlation
from pipeline.report.svg import GRID, INK, MUTED, PAPER, ROLES, Plot, Value, drawing, finish
from pipeline.report.uncertainty import Estimate
from pipeline.report.words import (
    RHO,
    correlation,
    enumerate_names,
    interval,
    percent,
    points,
    short_count,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ESTIMATE = ("value", "low", "high", "images_low", "images_high", "seeds_low", "seeds_high", "seeds")
"""Columns of an estimate: the mean; its interval; that over images, and over seeds; by seed."""
_MARKERS = {"full": "o", "near": "v", "control": "s", "far": "^"}
_DASHES = {"full": "-", "near": "-", "control": (0, (4, 2)), "far": (0, (1, 1))}
_PERCENTS = (0.1, 0.5, 1, 2, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 98, 99, 99.5, 99.9)
_KINDS = {"full": "other", "near": "near-pruned", "control": "random", "far": "far-pruned"}
_NAMED = 6
"""More points than this are not named in the drawing."""


def estimate_cells(found: Estimate) -> tuple[Value, ...]:
    """An estimate in the columns ESTIMATE."""
    seeds = found.over_seeds
    return (
        found.value,
        found.interval.low,
        found.interval.high,
        found.over_images.low,
        found.over_images.high,
        seeds.low if seeds else None,
        seeds.high if seeds else None,
        " ".join(map(repr, found.by_seed)),
    )


@dataclass(frozen=True)
class Curve:
    """Accuracy by similarity of the models of one split."""

    role: str
    """`full`, `near` or `control`: decides colour, marker and dashes."""
    split: str
    bins: tuple[Bin, ...]

    @property
    def correlation(self) -> float | None:
        """Spearman's rho over bins."""
        return bins_correlation(list(self.bins))


def draw_by_similarity(test: str, curves: Sequence[Curve]) -> Plot:
    """Accuracy by similarity above the number of images of each bin."""
    bins = max((curve.bins for curve in curves), key=len)
    name = f"accuracy-by-similarity-{test}"
    splits = enumerate_names([curve.split for curve in curves])
    with drawing(name, 5.2, 3.5) as figure:
        axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        for place, curve in enumerate(curves):
            # side by side, so that the ranges of seeds do not hide each other
            _draw_curve(axes, curve, 0.12 * (place - (len(curves) - 1) / 2))
        axes.set(ylabel="accuracy, %", ylim=(-3, 103), yticks=range(0, 101, 25))
        axes.tick_params(axis="x", length=0)
        _draw_counts(below, bins)
        figure.legend(loc="outside upper left", ncols=2)
        return finish(
            figure,
            name,
            test,
            alt=f"Accuracy by similarity on {test} for models trained on {splits}; the numbers are "
            "in the table below.",
            caption=_about_bins(curves),
            columns=("split", "similarity_from", "similarity_to", "images", "accuracy",
                     "lowest_seed", "highest_seed"),
            rows=[
                (curve.split, one.low, one.high, one.images, one.score.mean, one.score.low,
                 one.score.high)
                for curve in curves
                for one in curve.bins
            ],
        )  # fmt: skip


def _about_bins(curves: Sequence[Curve]) -> str:
    first = next((one for curve in curves for one in curve.bins), None)
    wide = f"Bins {first.high - first.low:.3g} wide. " if first else ""
    said = [
        f"{curve.split}: " + (f"no {RHO}" if rho is None else f"{RHO} = {correlation(rho)}")
        for curve in curves
        for rho in [curve.correlation]
    ]
    return f"{wide}{'; '.join(said)}."


def _draw_curve(axes: Axes, curve: Curve, shift: float) -> None:
    colour, marker = ROLES[curve.role], _MARKERS[curve.role]
    rho = curve.correlation
    label = curve.split if rho is None else f"{curve.split}, {RHO} = {correlation(rho)}"
    enough = [one for one in curve.bins if not one.few]
    few = [one for one in curve.bins if one.few]
    x = [_place(one, shift) for one in enough]
    y = [100 * one.score.mean for one in enough]
    low = [100 * one.score.low for one in enough]
    high = [100 * one.score.high for one in enough]
    axes.vlines(x, low, high, color=colour, linewidth=1.2, alpha=0.7)
    axes.plot(
        x, y, color=colour, marker=marker, markersize=5, linestyle=_DASHES[curve.role], label=label
    )
    axes.plot(
        [_place(one, shift) for one in few],
        [100 * one.score.mean for one in few],
        color=colour,
        marker=marker,
        markersize=4,
        markerfacecolor=PAPER,
        linestyle="none",
    )


def _place(one: Bin, shift: float) -> float:
    """A shift in widths of the bin, off its centre."""
    return one.centre + shift * (one.high - one.low)


def _draw_counts(axes: Axes, bins: Sequence[Bin]) -> None:
    counts = [one.images for one in bins]
    centres = [one.centre for one in bins]
    widths = [0.8 * (one.high - one.low) for one in bins]
    axes.bar(centres, counts, width=widths, color=GRID, edgecolor=MUTED, linewidth=0.6)
    for x, images in zip(centres, counts, strict=True):
        axes.annotate(
            short_count(images),
            (x, images),
            (0, 1.5),
            textcoords="offset points",
            ha="center",
            fontsize=7.5 if len(bins) < 13 else 6,
            color=INK,
        )
    axes.set(xlabel="similarity to the nearest pool image", ylabel="images", yticks=[])
    axes.margins(y=0.35)
    axes.spines["left"].set_visible(False)


def draw_pruning(curves: PruningCurves) -> Plot:
    """Accuracy against images kept, all of them on the left, as in the paper."""
    title = f"{curves.test}, {curves.within}" if curves.within else curves.test
    name = "pruning-" + "-".join("".join(c if c.isalnum() else " " for c in title).split())
    said = "; ".join(map(_in_words, curves.lines))
    with drawing(name, 5.2, 3.4) as figure:
        axes = figure.add_subplot()
        for line in curves.lines:
            _draw_pruning_line(axes, line)
        axes.invert_xaxis()
        axes.xaxis.set_major_formatter(lambda kept, _: short_count(round(kept)))
        axes.set(xlabel="pool images kept", ylabel="accuracy, %")
        axes.margins(y=0.08)
        figure.legend(loc="outside upper left", ncols=2)
        return finish(
            figure,
            name,
            title,
            alt=f"Accuracy on {curves.test} against the number of pool images kept: {said}.",
            caption=f"Vertical lines are intervals. {said}.",
            columns=("rule", "split", "kept", *ESTIMATE),
            rows=[
                (line.label, point.split, point.kept, *estimate_cells(point.accuracy))
                for line in curves.lines
                for point in line.points
            ],
        )  # fmt: skip


def _draw_pruning_line(axes: Axes, line: PruningLine) -> None:
    colour = ROLES[line.role]
    x = [point.kept for point in line.points]
    axes.vlines(
        x,
        [100 * point.accuracy.interval.low for point in line.points],
        [100 * point.accuracy.interval.high for point in line.points],
        color=colour,
        linewidth=1.2,
        alpha=0.6,
    )
    axes.plot(
        x,
        [100 * point.accuracy.value for point in line.points],
        color=colour,
        marker=_MARKERS[line.role],
        markersize=5,
        linestyle=_DASHES[line.role],
        label=line.label,
    )


def _in_words(line: PruningLine) -> str:
    first, last = line.points[0], line.points[-1]
    return (
        f"{line.label}: {percent(first.accuracy.value)}% with {first.kept:,} images, "
        f"{percent(last.accuracy.value)}% with {last.kept:,}"
    )


def draw_matrix(rows: Sequence[MatrixRow], tests: Sequence[str]) -> Plot:
    """Differences to the control for each pruned split on each test set, as coloured cells."""
    name = "pruned-against-control"
    widest = max(len(row.split) for row in rows)
    with drawing(name, 0.09 * widest + 0.95 * len(tests) + 0.2, 0.5 * len(rows) + 0.6) as figure:
        axes = figure.add_subplot()
        axes.grid(visible=False)
        for y, row in enumerate(rows):
            for x, test in enumerate(tests):
                if test in row.cells:
                    _draw_cell(axes, x, y, row.cells[test], framed=test in row.pruned_for)
        axes.set(xlim=(-0.5, len(tests) - 0.5), ylim=(len(rows) - 0.5, -0.5))
        axes.set_xticks(range(len(tests)), tests)
        axes.set_yticks(range(len(rows)), [row.split for row in rows])
        axes.tick_params(length=0)
        axes.xaxis.tick_top()
        for spine in axes.spines.values():
            spine.set_visible(False)
        return finish(
            figure,
            name,
            "Pruned for, and tested on",
            wide=True,
            alt="Differences in accuracy between pruned splits and what they are compared with: "
            + "; ".join(_row_in_words(row) for row in rows)
            + ".",
            caption="Points of accuracy, split minus "
            + enumerate_names(list(dict.fromkeys(row.baseline for row in rows)))
            + ", with intervals. Framed: what a split is pruned for. No colour: no difference, "
            "the interval contains 0.",
            columns=("split", "compared_with", "pruned_for", "test", *ESTIMATE),
            rows=[
                (row.split, row.baseline, " ".join(row.pruned_for), test, *estimate_cells(found))
                for row in rows
                for test, found in row.cells.items()
            ],
        )


def _draw_cell(axes: Axes, x: int, y: int, found: Estimate, *, framed: bool) -> None:
    from matplotlib.patches import Rectangle

    colour = ROLES["near"] if found.value < 0 else ROLES["control"]
    strength = 0.0 if found.shows_nothing else 0.15 + 0.45 * min(1.0, abs(found.value) / 0.5)
    corner, (width, height) = (x - 0.46, y - 0.44), (0.92, 0.88)
    edge, thick = (INK, 1.4) if framed else (GRID, 0.7)
    axes.add_patch(Rectangle(corner, width, height, color=colour, alpha=strength, linewidth=0))
    axes.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=edge, linewidth=thick))
    axes.text(x, y - 0.12, points(100 * found.value), ha="center", va="center", weight="bold")
    axes.text(x, y + 0.22, interval(found.interval), ha="center", va="center", fontsize=7)


def _row_in_words(row: MatrixRow) -> str:
    cells = [
        f"{test} {points(100 * found.value)}" + (" (no difference)" if found.shows_nothing else "")
        for test, found in row.cells.items()
    ]
    return f"{row.split} against {row.baseline}: {', '.join(cells)}"


def draw_robustness(found: Robustness, roles: dict[str, str]) -> Plot:
    """Accuracy on a test set against accuracy on the standard one, on logit scales.

    Args:
        found: what to draw.
        roles: split -> `full`, `near`, `control` or `far`, for those that have a role.
    """
    name = f"robustness-{found.test}"
    with drawing(name, 4.0, 3.7) as figure:
        axes = figure.add_subplot()
        if found.baselines:
            x, y = (logit(np.array(side)) for side in zip(*found.baselines.values(), strict=True))
            label = f"{len(x)} baseline models"
            axes.scatter(x, y, s=14, color=MUTED, alpha=0.6, linewidths=0, label=label)
        named = len(found.models) <= _NAMED
        for split, pair in found.models.items():
            _draw_model(axes, split, pair, roles.get(split, "full"), named)
        _draw_lines(axes, found)
        _logit_ticks(axes)
        axes.set(xlabel=f"accuracy on {found.standard}, %", ylabel=f"accuracy on {found.test}, %")
        axes.grid(axis="x")
        if found.baselines or not named:
            handles, labels = axes.get_legend_handles_labels()
            once = dict(zip(labels, handles, strict=True))  # one of each kind of split
            figure.legend(once.values(), once.keys(), loc="outside upper left", ncols=2)
        return finish(
            figure,
            name,
            found.test,
            alt=f"Accuracy on {found.test} against accuracy on {found.standard}: "
            + "; ".join(
                f"{split} {percent(y.value)}% at {percent(x.value)}%"
                for split, (x, y) in found.models.items()
            )
            + ".",
            caption=_about_line(found),
            columns=("model", "kind", *(f"{found.standard}_{c}" for c in ESTIMATE[:3]),
                     *(f"{found.test}_{c}" for c in ESTIMATE[:3]), "expected", "above_line"),
            rows=[*_robust_rows(found), *(
                (model, "baseline", x, None, None, y, None, None, found.expected(x), None)
                for model, (x, y) in found.baselines.items()
            )],
        )  # fmt: skip


def _robust_rows(found: Robustness) -> list[tuple[Value, ...]]:
    rows: list[tuple[Value, ...]] = []
    for split, (x, y) in found.models.items():
        expected = found.expected(x.value)
        above = None if expected is None else y.value - expected
        both = (*estimate_cells(x)[:3], *estimate_cells(y)[:3])
        rows.append((split, "trained here", *both, expected, above))
    return rows


def _about_line(found: Robustness) -> str:
    axes = (
        "Both axes are logit scales; bars are intervals, some end outside; dashed: equal accuracy."
    )
    if found.line is None:
        return f"{axes} No baseline models are given, so there is no line to be above or below."
    above = [
        f"{split} {points(100 * (y.value - expected))}"
        for split, (x, y) in found.models.items()
        if (expected := found.expected(x.value)) is not None
    ]
    given = count(len(found.baselines), "baseline model")
    fit = f"Grey line: least squares through the logits of the {given}."
    return f"{axes} {fit} Points of accuracy above it: {', '.join(above)}."


def _draw_model(
    axes: Axes, split: str, pair: tuple[Estimate, Estimate], role: str, named: bool
) -> None:
    x, y = (float(logit(one.value)) for one in pair)
    bars = [
        [[at - float(logit(one.interval.low))], [float(logit(one.interval.high)) - at]]
        for at, one in zip((x, y), pair, strict=True)
    ]
    axes.errorbar(
        x, y, xerr=np.maximum(bars[0], 0), yerr=np.maximum(bars[1], 0),
        color=ROLES[role], marker=_MARKERS[role], markersize=6, elinewidth=1, linestyle="none",
        label="" if named else _KINDS[role],
    )  # fmt: skip
    if named:
        axes.annotate(split, (x, y), (5, 5), textcoords="offset points", fontsize=7.5)


def _draw_lines(axes: Axes, found: Robustness) -> None:
    """Equal accuracy and the baselines' line; then the marks fill the drawing.

    An interval that ends at 100% has no end on a logit scale.
    """
    axes.axline((0, 0), slope=1, color=GRID, linewidth=1.2, linestyle="--")
    if found.line:
        axes.axline((0, found.line[1]), slope=found.line[0], color=MUTED, linewidth=1.2)
    pairs = [(x.value, y.value) for x, y in found.models.values()]
    x, y = (logit(np.array(side)) for side in zip(*pairs, *found.baselines.values(), strict=True))
    axes.set(xlim=(x.min() - 0.8, x.max() + 0.8), ylim=(y.min() - 0.8, y.max() + 0.8))


def _logit_ticks(axes: Axes) -> None:
    """Percentages within the limits, not closer than they can be read."""
    for axis, limits in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
        low, high = sorted(limits)
        steps = (_PERCENTS, range(5, 100, 5), range(1, 100))
        found = [[p for p in step if low <= float(logit(p / 100)) <= high] for step in steps]
        inside = next((step for step in found if len(step) > 2), found[-1])
        shown = inside[:: max(1, -(-len(inside) // 8))]
        axis.set_ticks([float(logit(p / 100)) for p in shown], [f"{p:g}" for p in shown])
