"""Plain statistics of the report, on arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.artifacts import Array

BIN_WIDTHS = (0.05, 0.02, 0.01, 0.005, 0.002)
"""Bins of nearest-neighbour similarity; the paper's first."""
FEW = 10
"""A bin with fewer images is marked, and left out of correlations."""
ENOUGH_BINS = 5
"""A correlation over fewer bins would say nothing."""


@dataclass(frozen=True)
class Score:
    """One measurement repeated with several training seeds, each in [0, 1]."""

    by_seed: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The mean over seeds."""
        return sum(self.by_seed) / len(self.by_seed)

    @property
    def low(self) -> float:
        """The lowest of the seeds."""
        return min(self.by_seed)

    @property
    def high(self) -> float:
        """The highest of the seeds."""
        return max(self.by_seed)


@dataclass(frozen=True)
class Bin:
    """The images whose similarity lies in [low, high), and how well they do."""

    low: float
    high: float
    images: int
    score: Score

    @property
    def centre(self) -> float:
        """The middle of the bin."""
        return (self.low + self.high) / 2

    @property
    def few(self) -> bool:
        """Whether it has too few images to mean much."""
        return self.images < FEW


def bin_width(similarity: Array) -> float:
    """The widest of BIN_WIDTHS that makes ENOUGH_BINS with enough images; else the paper's.

    An embedder trained on little data finds everything similar: all images in one of the paper's
    bins.

    Args:
        similarity: (m,) one for each image.
    """
    for width in BIN_WIDTHS:
        _, images = np.unique(
            _bin_of(similarity[np.isfinite(similarity)], width), return_counts=True
        )
        if np.count_nonzero(images >= FEW) >= ENOUGH_BINS:
            return width
    return BIN_WIDTHS[0]


def bin_scores(similarity: Array, correct: Array, width: float) -> list[Bin]:
    """Accuracy by similarity, in bins that begin at multiples of `width`.

    Args:
        similarity: (m,) one for each image; images without a finite one are left out.
        correct: (seeds, m) 1 or 0, nan where a model was not asked; images that not all were
            asked are left out.
        width: of a bin.

    Returns:
        The bins that have images, by similarity.
    """
    usable = np.isfinite(similarity) & np.isfinite(correct).all(axis=0)
    index = _bin_of(similarity[usable], width)
    kept = correct[:, usable]
    bins = []
    for one in np.unique(index).tolist():
        inside = kept[:, index == one]
        score = Score(tuple(inside.mean(axis=1, dtype=np.float64).tolist()))
        low, high = round(one * width, 3), round((one + 1) * width, 3)
        bins.append(Bin(low, high, inside.shape[1], score))
    return bins


def _bin_of(similarity: Array, width: float) -> Array:
    # 0.15 / 0.05 is just below 3 in floating point, and belongs to bin 3. What exceeds 1 by
    # rounding belongs to the last bin below 1.
    within = np.minimum(similarity, 1 - width / 2)
    index: Array = np.floor(within / width + 1e-9).astype(int)
    return index


def bins_correlation(bins: list[Bin]) -> float | None:
    """Spearman's rho between similarity and mean accuracy over the bins with enough images.

    None with fewer than ENOUGH_BINS of them.
    """
    enough = [one for one in bins if not one.few]
    if len(enough) < ENOUGH_BINS:
        return None
    return spearman(
        np.array([one.centre for one in enough]), np.array([one.score.mean for one in enough])
    )


def spearman(x: Array, y: Array) -> float | None:
    """Spearman's rank correlation; equal values share the mean of their ranks.

    Args:
        x: (n,) numbers.
        y: (n,) numbers.

    Returns:
        A number in [-1, 1], or None when one side is constant.
    """
    from scipy.stats import spearmanr

    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(spearmanr(x, y).statistic)


def spread_over(values: Array, count: int) -> list[int]:
    """Positions of `count` values at even steps from the highest to the lowest, highest first.

    For each step the value nearest to it that is not yet taken; ties go to the lowest position, so
    the same values give the same choice. With one, the value nearest to the middle. Values that
    are not finite are passed over.
    """
    there = np.flatnonzero(np.isfinite(values))
    left = np.array(values[there], dtype=np.float64)
    count = min(count, len(there))
    if not count:
        return []
    ends = (left.max(), left.min())
    steps = np.linspace(*ends, count) if count > 1 else [sum(ends) / 2]
    chosen = []
    for step in steps:
        nearest = int(np.argmin(np.abs(left - step)))
        chosen.append(int(there[nearest]))
        left[nearest] = np.inf
    return sorted(chosen, key=lambda position: (-values[position], position))
