"""Bins, ranks, quantiles and sentences, on numbers that can be checked by eye."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.report.similarity import Neighbours
from pipeline.report.statistics import (
    BIN_WIDTHS,
    Score,
    bin_scores,
    bin_width,
    bins_correlation,
    spearman,
    spread_over,
)
from pipeline.report.words import (
    ABSENT,
    MINUS,
    direction,
    enumerate_names,
    percent,
    points,
    short_count,
)


def test_correlation_of_the_papers_sketch_figure() -> None:
    similarity = np.array([48, 53, 58, 63, 68, 73, 78, 83, 87, 92, 97]) / 100
    accuracy = np.array([33.3, 42.7, 42.8, 43.1, 41.3, 47.3, 52.8, 57.0, 62.5, 67.1, 69.9])
    assert spearman(similarity, accuracy) == pytest.approx(0.945, abs=0.001)  # printed as 0.95


def test_correlation_shares_the_ranks_of_equal_values() -> None:
    assert spearman(np.array([1, 2, 2, 3]), np.array([1, 2, 2, 3])) == pytest.approx(1)
    assert spearman(np.array([1, 2, 3]), np.array([3, 2, 1])) == pytest.approx(-1)
    assert spearman(np.array([1, 2, 3]), np.array([5, 5, 5])) is None
    # by hand: ranks 0, 1, 2, 3 and 0.5, 0.5, 2, 3
    assert spearman(np.arange(4), np.array([1, 1, 2, 3])) == pytest.approx(4.5 / np.sqrt(5 * 4.5))


@pytest.mark.parametrize("value", [0.15, 0.3, 0.35, 0.55, 0.6, 0.7, 0.95])
def test_a_similarity_on_an_edge_belongs_to_the_bin_that_begins_there(value: float) -> None:
    (one,) = bin_scores(np.array([value]), np.ones((1, 1)), 0.05)
    assert one.low == value


def test_similarity_that_rounding_lifts_above_one_stays_in_the_last_bin() -> None:
    bins = bin_scores(np.array([0.96, 1.0, 1.0002]), np.ones((1, 3)), 0.05)
    assert [(one.low, one.high, one.images) for one in bins] == [(0.95, 1.0, 3)]


def test_bins_leave_out_what_was_not_evaluated() -> None:
    correct = np.array([[1, 0, np.nan, 1], [1, 1, 1, 0.0]])
    bins = bin_scores(np.array([0.51, 0.52, 0.53, -np.inf]), correct, 0.05)
    assert len(bins) == 1 and bins[0].images == 2 and bins[0].few
    assert bins[0].score == Score((0.5, 1.0))
    assert bins_correlation(bins) is None


def test_bins_get_narrower_only_where_images_crowd() -> None:
    assert bin_width(np.linspace(0.4, 1, 1000)) == 0.05
    assert bin_width(np.linspace(0.96, 1, 1000)) < 0.02
    assert bin_width(np.array([0.5] * 3)) == BIN_WIDTHS[0]


def test_gallery_goes_from_near_to_far_and_breaks_ties_by_position() -> None:
    values = np.array([0.9, 0.1, 0.5, -np.inf, 0.1])
    assert spread_over(values, 3) == [0, 2, 1]
    assert spread_over(values, 1) == [2]
    assert spread_over(values, 9) == [0, 2, 1, 4]
    assert spread_over(np.array([0.0, 0.01, 0.02, 0.9, 1.0]), 3) == [4, 3, 0]
    assert spread_over(values, 0) == []
    assert spread_over(np.array([-np.inf]), 3) == []


def test_nearest_of_several_files_is_the_first_of_equals() -> None:
    best = Neighbours.none(3)
    best.update(0, np.array([0.5, -np.inf, 0.2]), np.array([7, -1, 1]))
    best.update(1, np.array([0.5, -np.inf, 0.3]), np.array([2, -1, 9]))
    assert best.file.tolist() == [0, -1, 1]
    assert best.row.tolist() == [7, -1, 9]
    assert best.median == pytest.approx(0.4)


def test_changes_have_a_sign_unless_they_round_to_nothing() -> None:
    shown = [points(value) for value in (1.25, -48.5, 0.04, -0.04)]
    assert shown == ["+1.2", f"{MINUS}48.5", "0.0", "0.0"]
    assert [direction(value) for value in (0.06, -0.06, -0.01)] == ["rise", "fall", "same"]
    assert percent(float("nan")) == ABSENT


def test_counts_fit_above_a_bar() -> None:
    counts = (0, 987, 1000, 1234, 9960, 45_100, 3_140_000)
    assert [short_count(one) for one in counts] == [
        "0",
        "987",
        "1.0k",
        "1.2k",
        "10k",
        "45k",
        "3.1M",
    ]
    assert short_count(999_999) == "1.0M"


def test_names_are_enumerated_as_people_do() -> None:
    assert enumerate_names(["a"]) == "a"
    assert enumerate_names(["a", "b"]) == "a and b"
    assert enumerate_names(["a", "b", "c"], "or") == "a, b or c"
