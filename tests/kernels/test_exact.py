"""The proven bound, the merge, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import kernels
from kernels.exact import LARGEST_SIMILARITY, float32_bound
from tests.kernels.cases import assert_same_bits, make_case, unit_rows


@pytest.mark.parametrize("dimensions", [1, 8, 640, 4096])
def test_float32_products_stay_within_the_bound(dimensions: int) -> None:
    row_RD = np.abs(unit_rows(np.random.default_rng(0), 64, dimensions))
    exact = (row_RD[:32].astype(np.float64) * row_RD[32:].astype(np.float64)).sum(axis=1)
    product = row_RD[:32].astype(np.float32) * row_RD[32:].astype(np.float32)
    one_by_one = np.cumsum(product, axis=1)[:, -1]  # the worst order of summation
    assert np.abs(one_by_one - exact).max() <= float32_bound(dimensions)
    if dimensions > 8:
        assert np.abs(one_by_one - exact).max() > 0


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_precision_of_the_caller_is_overruled_and_restored(precision: str) -> None:
    case = make_case(rows=50, queries=20, dimensions=64, tests=1)
    torch.set_float32_matmul_precision(precision)
    try:
        kernels.scan(*case, k=3, backend="cpu-float32")
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision("highest")


def neighbours(*pairs: tuple[float, int]) -> tuple[np.ndarray, np.ndarray]:
    """One query's neighbours."""
    similarity, row = zip(*pairs, strict=True)
    return np.array([similarity], dtype=np.float64), np.array([row], dtype=np.int64)


def test_merging_breaks_ties_by_the_lowest_row_in_any_grouping() -> None:
    missing = (-np.inf, -1)
    a = neighbours((0.5, 7), (0.25, 3), missing)
    b = neighbours((0.5, 2), (-0.5, 9), missing)
    c = neighbours((0.25, 1), missing, missing)
    merge = kernels.merge_neighbours
    expected = neighbours((0.5, 2), (0.5, 7), (0.25, 1))
    for found in (
        merge([a, b, c]),
        merge([c, b, a]),
        merge([merge([a, c]), b]),
        merge([a, merge(iter([b, c]))]),
    ):
        assert_same_bits(found[0], expected[0])
        assert_same_bits(found[1], expected[1])
    few = merge([c, neighbours(missing, missing, missing)])
    assert few[1].tolist() == [[1, -1, -1]]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([], "no parts to merge, expected at least one"),
        (
            [neighbours((0.5, 1)), neighbours((0.5, 2), (0.4, 3))],
            r"part 1 has shapes \(1, 2\) and \(1, 2\), expected \(1, 1\)",
        ),
        (
            [neighbours((0.5, 1), (0.4, 0)), neighbours((0.7, 4), (0.3, 1))],
            r"row 1 is in two parts \(query 0\).* pass row_offset",
        ),
    ],
)
def test_parts_that_cannot_be_merged(parts: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kernels.merge_neighbours(parts)


def bad_row(name: str, row: int, value: float) -> dict[str, np.ndarray]:
    row_RD = unit_rows(np.random.default_rng(0), 12, 8)
    row_RD[row, 3] = value
    return {name: row_RD}


BAD = [
    ({"pool_ND": [[1.0]]}, TypeError, "pool_ND is a list, expected a numpy array"),
    ({"pool_ND": np.ones((3, 8))}, TypeError, "pool_ND is float64, expected float16"),
    ({"pool_ND": np.ones(8, np.float16)}, ValueError, r"pool_ND has shape \(8,\)"),
    ({"pool_ND": np.ones((0, 8), np.float16)}, ValueError, r"at least one row \(R, D\)"),
    ({"queries_MD": np.ones((0, 8), np.float16)}, ValueError, r"queries_MD has shape \(0, 8\)"),
    (
        {"pool_ND": unit_rows(np.random.default_rng(0), 4, 9)},
        ValueError,
        "pool_ND has 9 dimensions and queries_MD 8",
    ),
    (bad_row("pool_ND", 11, np.nan), ValueError, "pool_ND row 11 has length nan, expected finite"),
    (bad_row("pool_ND", 10, np.inf), ValueError, "pool_ND row 10 has length inf"),
    (bad_row("pool_ND", 0, 2.0), ValueError, r"pool_ND row 0 has length 2\.\d+, .*0\.000977 of 1"),
    (bad_row("queries_MD", 5, -np.inf), ValueError, "queries_MD row 5 has length inf"),
    ({"queries_MD": np.zeros((12, 8), np.float16)}, ValueError, "queries_MD row 0 has length 0"),
    (
        {"threshold_M": np.zeros(12, np.float32)},
        TypeError,
        "threshold_M is float32, expected float64: a rounded threshold",
    ),
    ({"threshold_M": np.zeros(11)}, ValueError, r"shape \(11,\), .*each query: \(12,\)"),
    ({"threshold_M": np.r_[np.zeros(11), np.nan]}, ValueError, r"threshold_M\[11\] is nan"),
    ({"threshold_M": np.r_[-np.inf, np.zeros(11)]}, ValueError, r"threshold_M\[0\] is -inf"),
    ({"threshold_M": np.full(12, 1.01)}, ValueError, r"threshold_M\[0\] is 1\.01"),
    ({"offsets_S1": np.array([0.0, 12])}, TypeError, "offsets_S1 is float64, expected int64"),
    ({"offsets_S1": np.array([12])}, ValueError, r"offsets_S1 has shape \(1,\)"),
    ({"offsets_S1": np.array([0, 11])}, ValueError, "runs from 0 to 11, expected 0 to .* 12"),
    ({"offsets_S1": np.array([0, 4, 4, 12])}, ValueError, r"offsets_S1\[1:3\] is \[4 4\]"),
    ({"offsets_S1": np.array([0, 9, 4, 12])}, ValueError, r"offsets_S1\[1:3\] is \[9 4\]"),
    ({"k": 0}, ValueError, "k is 0, expected at least 1"),
    ({"k": 2.0}, TypeError, r"k is 2\.0, expected an integer"),
    ({"k": 13}, ValueError, "k is 13, expected at most the number of pool rows, 12"),
]


@pytest.mark.parametrize("backend", ["reference", "cpu-float32"])
@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_bad_input_is_refused(
    change: dict[str, Any], error: type[Exception], message: str, backend: str
) -> None:
    case = make_case(rows=12, queries=12, dimensions=8, tests=2)
    arguments: dict[str, Any] = {**case._asdict(), "k": 3, "backend": backend}
    with pytest.raises(error, match=message):
        kernels.scan(**{**arguments, **change})


def test_bad_arguments_of_a_scanner_and_of_duplicates() -> None:
    case = make_case(rows=12, queries=12, dimensions=8, tests=2)
    with pytest.raises(ValueError, match="threshold_M and offsets_S1 go together"):
        kernels.Scanner(case.queries_MD, case.threshold_M, k=1)
    scanner = kernels.Scanner(case.queries_MD, k=1, backend="cpu-float32")
    with pytest.raises(ValueError, match="row_offset is -3, expected at least 0"):
        scanner.add(case.pool_ND, row_offset=-3)
    with pytest.raises(ValueError, match="pool_ND has 9 dimensions and queries_MD 8"):
        scanner.add(unit_rows(np.random.default_rng(0), 4, 9))
    for threshold in (1.1, np.nan):
        with pytest.raises(ValueError, match=f"threshold is {threshold}, expected a cosine"):
            kernels.duplicates(case.pool_ND, threshold=threshold)
    with pytest.raises(ValueError, match="rows_ND row 11 has length nan"):
        kernels.duplicates(bad_row("rows_ND", 11, np.nan)["rows_ND"], threshold=0.5)


def test_the_extreme_thresholds_are_allowed() -> None:
    case = make_case(rows=12, queries=12, dimensions=8, tests=2)
    for threshold, near in ((LARGEST_SIMILARITY, False), (-LARGEST_SIMILARITY, True)):
        found = kernels.scan(*case._replace(threshold_M=np.full(12, threshold)), k=1)
        assert (found.near_NS == near).all()
