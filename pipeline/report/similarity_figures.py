"""The figures of similarity: to the pool, to the reference, and how many images are near."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.artifacts import Array
from pipeline.report.similarity import Neighbours, Queries
from pipeline.report.svg import INK, MUTED, ROLES, Plot, drawing, finish
from pipeline.report.words import DASH, cosine, count, percent, short_count

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DENSITY_EDGES = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000)
"""Numbers of near images at which a bar begins; and so on at 1, 2, 5."""
_HISTOGRAM_BINS = (0.05, 0.02, 0.01)
_TICK = 0.05
_DOTS = 1500
"""More test images than this are counted in hexagons instead of drawn one by one."""


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


def draw_similarities(queries: Queries, limits: tuple[float, float]) -> Plot:
    """Histogram of nearest-neighbour similarity, pool against reference."""
    width = min(_histogram_bin(one.similarity) for one in (queries.pool, queries.reference))
    edges = np.linspace(*limits, round((limits[1] - limits[0]) / width) + 1)
    counts = {name: _counts(found, edges) for name, found in _sides(queries).items()}
    name = f"similarity-{queries.name}"
    with drawing(name, 5.2, 2.9) as figure:
        axes = figure.add_subplot()
        for side, found in _sides(queries).items():
            _draw_histogram(axes, side, found, counts[side], edges)
        if not isinstance(queries.threshold_from, str):
            axes.axvline(queries.threshold_from, color=INK, linewidth=1, linestyle=":")
        axes.set(xlabel="similarity to the nearest image", ylabel="test images", xlim=limits)
        axes.margins(y=0.02)
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles[::-1], labels[::-1], loc="outside upper left", ncols=2)
        return finish(
            figure,
            name,
            queries.name,
            alt="Histogram of nearest-neighbour similarity of the images of "
            f"{queries.name}: median {cosine(queries.pool.median)} for the pool, "
            f"{cosine(queries.reference.median)} for the reference.",
            caption=f"{percent(queries.nearer_in_pool)}% of the {count(len(queries))} images have "
            "a nearer image in the pool than in the reference. Vertical lines: medians"
            + _dotted(queries),
            columns=("similarity_from", "similarity_to", "pool", "reference"),
            rows=[
                (round(low, 4), round(high, 4), *pair)
                for low, high, *pair in zip(
                    edges[:-1].tolist(),
                    edges[1:].tolist(),
                    counts["pool"].tolist(),
                    counts["reference"].tolist(),
                    strict=True,
                )
            ],
        )


def _sides(queries: Queries) -> dict[str, Neighbours]:
    return {"reference": queries.reference, "pool": queries.pool}


def _dotted(queries: Queries) -> str:
    fixed = queries.threshold_from
    return "." if isinstance(fixed, str) else f"; dotted: the threshold, {fixed}."


def _histogram_bin(values: Array) -> float:
    """The width that Freedman and Diaconis give, rounded down to a plain number."""
    values = values[np.isfinite(values)]
    if not len(values):
        return _HISTOGRAM_BINS[0]
    low, high = np.quantile(values, (0.25, 0.75))
    ideal = 2 * (high - low) / len(values) ** (1 / 3)
    return next((width for width in _HISTOGRAM_BINS if width <= ideal), _HISTOGRAM_BINS[-1])


def _counts(found: Neighbours, edges: Array) -> Array:
    values = found.similarity[np.isfinite(found.similarity)]
    return np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0]


def _draw_histogram(axes: Axes, side: str, found: Neighbours, counts: Array, edges: Array) -> None:
    colour, dash = ROLES[side], "-" if side == "pool" else "--"
    label = f"{side}, median {cosine(found.median)}"
    axes.stairs(counts, edges, fill=True, color=colour, alpha=0.16, linewidth=0)
    axes.stairs(counts, edges, color=colour, linewidth=1.5, linestyle=dash, label=label)
    axes.axvline(found.median, color=colour, linewidth=1.2, linestyle=dash)


def draw_against(queries: Queries) -> Plot:
    """Each test image by its similarity to the reference and to the pool."""
    limits = similarity_range({queries.name: queries})
    reference, pool = queries.reference.similarity, queries.pool.similarity
    there = np.isfinite(reference) & np.isfinite(pool)
    x, y = reference[there], pool[there]
    name = f"pool-against-reference-{queries.name}"
    with drawing(name, 3.9, 3.9) as figure:
        axes = figure.add_subplot()
        if len(x) > _DOTS:
            _hexagons(axes, x, y, limits)
        else:
            axes.scatter(x, y, s=9, color=ROLES["pool"], alpha=0.45, linewidths=0)
        axes.axline((limits[0], limits[0]), slope=1, color=INK, linewidth=0.9, linestyle="--")
        axes.set(
            xlabel="similarity to the nearest reference image",
            ylabel="similarity to the nearest pool image",
            xlim=limits,
            ylim=limits,
            aspect="equal",
        )
        axes.grid(axis="x")
        above, below = int(np.sum(y > x)), int(np.sum(y < x))
        return finish(
            figure,
            name,
            queries.name,
            alt=f"Similarity to the pool against similarity to the reference for {count(len(x))} "
            f"images of {queries.name}: {count(above)} lie above the diagonal, "
            f"{count(below)} below.",
            caption=f"Above the diagonal, the nearest image is in the pool: {count(above)} of "
            f"{count(len(x))}; below it, in the reference: {count(below)}."
            + (" Darker hexagons hold more images." if len(x) > _DOTS else ""),
            columns=("key", "reference", "pool"),
            rows=list(zip(_names(queries, there), x.tolist(), y.tolist(), strict=True)),
        )


def _names(queries: Queries, there: Array) -> list[str]:
    keys = queries.embeddings.text("key")
    return [keys[place] for place in np.flatnonzero(there)]


def _hexagons(axes: Axes, x: Array, y: Array, limits: tuple[float, float]) -> None:
    """Counts as shades of one colour, which the page can change."""
    from matplotlib.colors import to_rgb

    made = axes.hexbin(x, y, gridsize=36, extent=(*limits, *limits), mincnt=1, linewidths=0)
    counts: Any = made.get_array()
    shades = 0.15 + 0.85 * np.log1p(counts) / math.log1p(max(counts.max(), 1))
    made.set_array(None)
    made.set_facecolor([(*to_rgb(ROLES["pool"]), float(shade)) for shade in shades])


def draw_density(queries: Queries) -> Plot:
    """How many pool images are nearer to a test image than its threshold: the histogram."""
    edges = density_edges(int(queries.above_threshold.max(initial=0)))
    ends = [*edges[1:], None]
    counts, _ = np.histogram(queries.above_threshold, [*edges, np.inf])
    labels = [_span(low, high) for low, high in zip(edges, ends, strict=True)]
    name = f"near-images-{queries.name}"
    mean, most = queries.above_threshold.mean(), queries.above_threshold.max()
    with drawing(name, 5.2, 2.7) as figure:
        axes = figure.add_subplot()
        colours = [MUTED, *[ROLES["near"]] * (len(labels) - 1)]
        bars = axes.bar(range(len(labels)), counts, width=0.8, color=colours, alpha=0.75)
        axes.bar_label(bars, [short_count(number) for number in counts.tolist()], fontsize=7.5)
        axes.set_xticks(range(len(labels)), labels, rotation=45 if len(labels) > 8 else 0)
        axes.set(xlabel="pool images above the threshold", ylabel="test images")
        axes.margins(y=0.1)
        return finish(
            figure,
            name,
            queries.name,
            alt=f"Histogram of how many pool images are near to an image of {queries.name}: "
            f"{count(int(counts[0]))} test images have none, the mean is {mean:.1f}, the most "
            f"{count(int(most))}.",
            caption=f"{count(int(counts[0]))} of {count(len(queries))} images have no near pool "
            f"image; the mean is {mean:,.1f}, the median "
            f"{np.median(queries.above_threshold):,.0f}, the most {count(int(most))}.",
            columns=("near_images_from", "near_images_to", "test_images"),
            rows=[
                (low, None if high is None else high - 1, number)
                for low, high, number in zip(
                    edges, [*edges[1:], None], counts.tolist(), strict=True
                )
            ],
        )


def density_edges(most: int) -> list[int]:
    """The DENSITY_EDGES up to the largest number of near images; further ones if it needs them."""
    edges = list(DENSITY_EDGES)
    while edges[-1] < most:
        edges.append(edges[-3] * 10)
    return edges[: max(2, sum(edge <= most for edge in edges))]


def _span(low: int, high: int | None) -> str:
    if high is None:
        return f"{short_count(low)}+"
    last = "" if high == low + 1 else f"{DASH}{short_count(high - 1)}"
    return f"{short_count(low)}{last}"
