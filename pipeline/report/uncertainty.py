"""How far a measured accuracy, or a difference of two, may be off.

Two things vary: which images a test set happens to hold, and which numbers a training happens to
draw (its seed). Both are given, and together:

- images: the percentile bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, 1993,
  chapter 13) over the test images. A difference resamples the images once for both models, so what
  makes an image hard for both cancels.
- seeds: Student's t interval over the seeds' accuracies, or over the seeds' differences.
- both: the distances of the two intervals' ends from the mean, added in squares (Zou and Donner,
  Construction of confidence limits about effect measures, Statistics in Medicine 27, 2008). Adding
  variances, with the degrees of freedom of Satterthwaite, is narrower, and too narrow: it misses
  one truth in nine with two seeds.

Letters in shapes: m images, S seeds.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.artifacts import Array

CONFIDENCE = 0.95
"""Of every interval."""
RESAMPLES = 10_000
"""Of the bootstrap."""
METHOD = (
    f"Intervals are {CONFIDENCE:.0%} intervals: over images by the percentile bootstrap "
    f"({RESAMPLES:,} resamples, of the same images for both sides of a difference; Efron and "
    "Tibshirani 1993), over seeds by Student's t, and both together by adding the distances from "
    "the mean in squares (Zou and Donner 2008)."
)

_TAIL = (1 - CONFIDENCE) / 2


@dataclass(frozen=True)
class Interval:
    """What the truth may be, as far as the data tell."""

    low: float
    high: float

    @property
    def has_zero(self) -> bool:
        """Whether no difference is among it."""
        return self.low <= 0 <= self.high

    def within(self, limits: tuple[float, float]) -> Interval:
        """Without what no accuracy can be."""
        low, high = limits
        return Interval(min(max(self.low, low), high), max(min(self.high, high), low))


@dataclass(frozen=True)
class Estimate:
    """An accuracy in [0, 1], or a difference of two in [-1, 1], and how sure it is."""

    by_seed: tuple[float, ...]
    """The mean over images with each seed."""
    images: int
    """Test images, m."""
    over_images: Interval
    """If other images of the same kind had been taken."""
    over_seeds: Interval | None
    """If other seeds had been taken; None with one seed, which says nothing of others."""
    interval: Interval
    """If other images and other seeds had been taken; with one seed, other images only."""

    @property
    def value(self) -> float:
        """The mean over images and seeds."""
        return math.fsum(self.by_seed) / len(self.by_seed)

    @property
    def shows_nothing(self) -> bool:
        """Of a difference: whether it could as well be none."""
        return self.interval.has_zero

    @property
    def excluded(self) -> float:
        """Of a difference: the size that a difference can't well exceed."""
        return max(abs(self.interval.low), abs(self.interval.high))


def estimate(values: Array, limits: tuple[float, float] = (0.0, 1.0), name: str = "") -> Estimate:
    """The mean of what was measured on each image with each seed.

    Args:
        values: (S, m) for each seed and image, S and m at least 1: 1 or 0 for an accuracy, the
            difference of two such for a difference. Nothing may be nan.
        limits: the least and the most that a value can be.
        name: of what is measured; decides which resamples are drawn, always the same for one name.

    Raises:
        ValueError: there is no seed or no image.
    """
    if 0 in values.shape:
        raise ValueError(f"{name}: expected at least one seed and one image, found {values.shape}")
    by_seed = tuple(values.mean(axis=1, dtype=np.float64).tolist())
    images = bootstrap(values.mean(axis=0, dtype=np.float64), limits, name)
    seeds = student(by_seed)
    mean = math.fsum(by_seed) / len(by_seed)
    both = images if seeds is None else _together(mean, images, seeds)
    return Estimate(
        by_seed,
        values.shape[1],
        images,
        None if seeds is None else seeds.within(limits),
        both.within(limits),
    )


def mean_estimate(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of several, on different images with the same seeds.

    Raises:
        ValueError: they have different numbers of seeds.
    """
    rows = zip(*(one.by_seed for one in estimates), strict=True)
    by_seed = tuple(math.fsum(row) / len(row) for row in rows)
    mean = math.fsum(by_seed) / len(by_seed)
    images = _together(
        mean,
        *(
            Interval(
                mean + (one.over_images.low - one.value) / len(estimates),
                mean + (one.over_images.high - one.value) / len(estimates),
            )
            for one in estimates
        ),
    )
    seeds = student(by_seed)
    count = sum(one.images for one in estimates)
    both = images if seeds is None else _together(mean, images, seeds)
    return Estimate(by_seed, count, images, seeds, both)


def bootstrap(values: Array, limits: tuple[float, float], name: str = "") -> Interval:
    """Percentile bootstrap of a mean.

    A resample is decided by how often each value occurs in it, and images have few different
    values: all resamples are one draw from a multinomial distribution, whatever the number of
    images.

    If all values are the same, resampling finds no spread. Then the interval says what share of
    images with other values could have been missed (Clopper and Pearson 1934): 1 - 0.025^(1/m).

    Args:
        values: (m,) one for each image.
        limits: the least and the most that a value can be.
        name: decides the random numbers.
    """
    distinct, counts = np.unique(values, return_counts=True)
    if len(distinct) == 1:
        value = float(distinct[0])
        missed = 1 - _TAIL ** (1 / len(values))
        return Interval(value - missed * (value - limits[0]), value + missed * (limits[1] - value))
    random = np.random.default_rng(zlib.crc32(name.encode()))
    means = random.multinomial(len(values), counts / len(values), RESAMPLES) @ distinct
    low, high = np.quantile(means / len(values), (_TAIL, 1 - _TAIL))
    return Interval(float(low), float(high))


def student(by_seed: tuple[float, ...]) -> Interval | None:
    """Student's t interval of a mean over seeds; None with one seed."""
    from scipy.stats import t

    if len(by_seed) < 2:
        return None
    mean, error = float(np.mean(by_seed)), float(np.std(by_seed, ddof=1)) / math.sqrt(len(by_seed))
    reach = float(t.isf(_TAIL, len(by_seed) - 1)) * error
    return Interval(mean - reach, mean + reach)


def _together(mean: float, *intervals: Interval) -> Interval:
    """Independent reasons to be off in one interval; each side for itself."""
    below = math.hypot(*(mean - one.low for one in intervals))
    above = math.hypot(*(one.high - mean for one in intervals))
    return Interval(mean - below, mean + above)
