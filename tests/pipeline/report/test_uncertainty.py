"""Intervals: against tables, against formulas by hand, and whether they hold what they promise."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pipeline.report.uncertainty import Interval, bootstrap, estimate, mean_estimate


def test_bootstrap_is_that_of_resampled_images() -> None:
    """Against resampling as the book has it: images drawn with replacement, one by one."""
    values = np.random.default_rng(1).choice([0, 0.5, 1.0], size=60, p=[0.2, 0.3, 0.5])
    drawn = np.random.default_rng(2).integers(60, size=(20_000, 60))
    low, high = np.quantile(values[drawn].mean(axis=1), (0.025, 0.975))
    found = bootstrap(values, (0, 1), "any name")
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.01)


def test_the_same_name_gives_the_same_interval() -> None:
    values = np.random.default_rng(3).random((2, 50))
    assert estimate(values, name="a") == estimate(values, name="a")
    other = [estimate(values, name=name).over_images for name in "bcdefgh"]
    assert len(set(other)) > 1


def test_one_seed_says_nothing_of_others() -> None:
    found = estimate(np.array([[1.0, 0, 1, 1]]))
    assert found.value == 0.75
    assert found.over_seeds is None
    assert found.interval == found.over_images


def test_seeds_and_images_by_hand() -> None:
    values = np.array([[1.0, 1, 1, 0, 1, 0], [1, 0, 1, 0, 1, 0], [1, 1, 1, 0, 1, 1]])
    found = estimate(values)
    means = [4 / 6, 3 / 6, 5 / 6]
    assert found.by_seed == pytest.approx(means)
    error = math.sqrt(sum((mean - 4 / 6) ** 2 for mean in means) / 2) / math.sqrt(3)
    assert found.over_seeds == Interval(
        pytest.approx(4 / 6 - 4.302653 * error, abs=1e-6), pytest.approx(1.0)
    )
    reach = math.hypot(found.value - found.over_images.low, 4.302653 * error)
    assert found.interval.low == pytest.approx(4 / 6 - reach, abs=1e-6)


@pytest.mark.parametrize(("right", "expected"), [(1.0, (0.6915, 1.0)), (0.0, (0.0, 0.3085))])
def test_all_right_or_all_wrong_is_not_certain(right: float, expected: tuple[float, float]) -> None:
    """Clopper and Pearson's interval for 10 of 10 is 0.6915 to 1."""
    found = estimate(np.full((3, 10), right)).interval
    assert (found.low, found.high) == pytest.approx(expected, abs=1e-4)


def test_models_that_agree_on_every_image_may_still_differ() -> None:
    found = estimate(np.zeros((1, 100)), (-1, 1))
    assert found.shows_nothing
    assert found.excluded == pytest.approx(1 - 0.025**0.01)


def test_one_image_leaves_everything_open() -> None:
    assert estimate(np.array([[1.0]])).interval == Interval(pytest.approx(0.025), 1.0)
    with pytest.raises(ValueError, match="at least one seed and one image"):
        estimate(np.empty((2, 0)))


def test_mean_over_test_sets_adds_their_errors() -> None:
    first, second = (estimate(np.random.default_rng(seed).random((3, 80)).round()) for seed in (1, 2)
                     )  # fmt: skip
    both = mean_estimate([first, second])
    assert both.value == pytest.approx((first.value + second.value) / 2)
    below = (one.value - one.over_images.low for one in (first, second))
    assert both.value - both.over_images.low == pytest.approx(math.hypot(*below) / 2)
    assert both.images == 160


@pytest.mark.parametrize(
    ("seeds", "spread", "least"),
    [(1, 0.0, 0.92), (2, 0.05, 0.92), (3, 0.02, 0.94), (5, 0.05, 0.94)],
)
def test_intervals_hold_the_truth_as_often_as_they_say(
    seeds: int, spread: float, least: float
) -> None:
    """Images differ in how hard they are, seeds in how good the model is; the truth is 2/3."""
    random = np.random.default_rng(seeds)
    held = 0
    for trial in range(150):
        hardness = random.beta(2, 1, size=200)
        better = random.normal(0, spread, size=(seeds, 1))
        right = random.random((seeds, 200)) < np.clip(hardness + better, 0, 1)
        found = estimate(right.astype(float), name=str(trial)).interval
        held += found.low <= 2 / 3 <= found.high
    assert held / 150 >= least


def test_paired_differences_are_surer_than_separate_accuracies() -> None:
    """What makes an image hard makes it hard for both."""
    random = np.random.default_rng(5)
    hardness = random.random(500)
    first = (hardness < 0.70).astype(float)[None]
    second = (hardness < 0.75).astype(float)[None]
    difference = estimate(second - first, (-1, 1))
    assert not difference.shows_nothing
    alone = estimate(first).interval, estimate(second).interval
    assert alone[0].high > alone[1].low
