"""The figures: similarity to pool and reference, and accuracy by similarity."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.artifacts import Array
from pipeline.report.similarity import Neighbours, Queries
from pipeline.report.statistics import Bin, bins_correlation
from pipeline.report.svg import GRID, INK, MUTED, PAPER, ROLES, as_svg, drawing
from pipeline.report.words import RHO, correlation, cosine

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_HISTOGRAM_BINS = (0.05, 0.02, 0.01)
_TICK = 0.05
_MARKERS = {"full": "o", "near": "v", "control": "s"}
_DASHES = {"full": "-", "near": "-", "control": (0, (4, 2))}


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


def similarity_range(queries: Mapping[str, Queries]) -> tuple[float, float]:
    """One range of similarity for all histograms, so that test sets can be compared."""
    both = (values for one in queries.values() for values in (one.pool, one.reference))
    lows, highs = zip(*(_ends(values.similarity) for values in both), strict=True)
    low = math.floor(min(lows) / _TICK + 1e-9) * _TICK
    # nothing but rounding lies above 1
    return low, min(1.0, (math.floor(max(highs) / _TICK) + 1) * _TICK)


def _ends(values: Array) -> tuple[float, float]:
    values = values[np.isfinite(values)]
    return (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)


def draw_similarities(queries: Queries, limits: tuple[float, float]) -> str:
    """Histogram of nearest-neighbour similarity, pool against reference, as SVG."""
    width = min(_histogram_bin(one.similarity) for one in (queries.pool, queries.reference))
    edges = np.linspace(*limits, round((limits[1] - limits[0]) / width) + 1)
    with drawing(f"similarity {queries.name}", 5.2, 2.9) as figure:
        axes = figure.add_subplot()
        for name, found, dash in (
            ("reference", queries.reference, "--"),
            ("pool", queries.pool, "-"),
        ):
            _draw_histogram(axes, name, found, edges, dash)
        if not isinstance(queries.threshold_from, str):
            axes.axvline(queries.threshold_from, color=INK, linewidth=1, linestyle=":")
        axes.set(xlabel="similarity to the nearest image", ylabel="test images", xlim=limits)
        axes.margins(y=0.02)
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles[::-1], labels[::-1], loc="outside upper left", ncols=2)
        return as_svg(figure)


def _histogram_bin(values: Array) -> float:
    """The width that Freedman and Diaconis give, rounded down to a plain number."""
    values = values[np.isfinite(values)]
    if not len(values):
        return _HISTOGRAM_BINS[0]
    low, high = np.quantile(values, (0.25, 0.75))
    ideal = 2 * (high - low) / len(values) ** (1 / 3)
    return next((width for width in _HISTOGRAM_BINS if width <= ideal), _HISTOGRAM_BINS[-1])


def _draw_histogram(axes: Axes, name: str, found: Neighbours, edges: Array, dash: str) -> None:
    values = found.similarity[np.isfinite(found.similarity)]
    counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
    colour = ROLES[name]
    label = f"{name}, median {cosine(found.median)}"
    axes.stairs(counts, edges, fill=True, color=colour, alpha=0.16, linewidth=0)
    axes.stairs(counts, edges, color=colour, linewidth=1.5, linestyle=dash, label=label)
    axes.axvline(found.median, color=colour, linewidth=1.2, linestyle=dash)


def draw_accuracy(test: str, curves: Sequence[Curve]) -> str:
    """Accuracy by similarity above the number of images of each bin, as SVG."""
    bins = max((curve.bins for curve in curves), key=len)
    with drawing(f"accuracy {test}", 5.2, 3.5) as figure:
        axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        for place, curve in enumerate(curves):
            # side by side, so that the ranges of seeds do not hide each other
            _draw_curve(axes, curve, 0.12 * (place - (len(curves) - 1) / 2))
        axes.set(ylabel="accuracy, %", ylim=(-3, 103), yticks=range(0, 101, 25))
        axes.tick_params(axis="x", length=0)
        _draw_counts(below, bins)
        figure.legend(loc="outside upper left", ncols=2)
        return as_svg(figure)


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
    for x, count in zip(centres, counts, strict=True):
        axes.annotate(
            short_count(count),
            (x, count),
            (0, 1.5),
            textcoords="offset points",
            ha="center",
            fontsize=7.5 if len(bins) < 13 else 6,
            color=INK,
        )
    axes.set(xlabel="similarity to the nearest pool image", ylabel="images", yticks=[])
    axes.margins(y=0.35)
    axes.spines["left"].set_visible(False)


def short_count(count: int) -> str:
    """A count in at most four characters: 987, 1.2k, 45k, 3.1M."""
    for unit, size in (("M", 10**6), ("k", 10**3)):
        if count >= 0.9995 * size:
            value = count / size
            return f"{value:.1f}{unit}" if value < 9.95 else f"{value:.0f}{unit}"
    return str(count)
