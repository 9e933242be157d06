"""What lets every backend give the same bits: checks of the input, the error bound, exact merges.

Similarity is the dot product of two stored float16 rows, as a real number. README.md proves that
float64 holds it exactly in any order of summation, and that `float32_bound` holds.

Shapes: N pool rows, M queries, D dimensions, S test sets (S1 = S + 1), K neighbours, R any rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.float16]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Progress = Callable[[int, int], None]
"""Called as `progress(rows_done, rows)`."""

UNIT_TOLERANCE = 2.0**-10
"""How far a row's length may be from 1: twice what rounding a unit row to float16 can do."""

LARGEST_SIMILARITY = (1 + UNIT_TOLERANCE) ** 2
"""No two rows of allowed length have a similarity beyond it, nor does a threshold (no unit)."""

MOST_DIMENSIONS = 2**16
"""`float32_bound` is proven up to here."""

ROUNDING = 2.0**-22
"""More than rounding to float32 changes a number below 2, twice: what bounds are widened by."""

_ROWS_AT_ONCE = 4096


def float32_bound(dimensions: int) -> float:
    """How far a float32 dot product of two checked rows is from their similarity, at most.

    D * 2^-24 * 1.01, for any order of the D additions, with or without fused multiply-add
    (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 3.1; README.md).
    It does not hold for TF32 or bfloat16 products.
    """
    return dimensions * 2.0**-24 * 1.01


def tensor_core_bound(dimensions: int) -> float:
    """The same for float16 tensor cores that accumulate in float32, and may truncate.

    D * 2^-23 * 1.31, 1e-4 for D = 640: aligning 16 products with the sum so far, and normalising,
    cuts off less than 1.2 units in the last place per product (README.md). Hardware is documented
    less well than IEEE arithmetic, so this one is an assumption; every pair that is compared again
    tests it.
    """
    return dimensions * 2.0**-23 * 1.31


def check_thresholds(queries_MD: Rows, threshold_M: Floats, offsets_S1: Ints) -> None:
    """Refuse thresholds and offsets that mean nothing for these queries.

    Raises:
        TypeError: an array has the wrong dtype.
        ValueError: a wrong shape, a threshold that is NaN or that no similarity can reach,
            offsets that do not run from 0 to M in steps of one or more.
    """
    _check_dtype("threshold_M", threshold_M, np.float64, "a rounded threshold breaks ties wrongly")
    _check_dtype("offsets_S1", offsets_S1, np.int64, "they index the queries")
    if threshold_M.shape != (len(queries_MD),):
        raise ValueError(
            f"threshold_M has shape {threshold_M.shape}, expected one for each query: "
            f"({len(queries_MD)},)"
        )
    outside = np.flatnonzero(~(np.abs(threshold_M) <= LARGEST_SIMILARITY))
    if len(outside):
        check_threshold(f"threshold_M[{outside[0]}]", threshold_M[outside[0]])
    _check_offsets(offsets_S1, len(queries_MD))


def check_threshold(name: str, threshold: float) -> None:
    """Refuse a threshold that is NaN or that no similarity can reach.

    Raises:
        ValueError: names it and its value.
    """
    if not abs(threshold) <= LARGEST_SIMILARITY:
        raise ValueError(
            f"{name} is {threshold}, expected a cosine within "
            f"{LARGEST_SIMILARITY:.6f} of 0 (that value itself makes no row near)"
        )


def _check_offsets(offsets_S1: Ints, queries: int) -> None:
    if offsets_S1.ndim != 1 or len(offsets_S1) < 2:
        raise ValueError(f"offsets_S1 has shape {offsets_S1.shape}, expected (S + 1,) with S >= 1")
    if offsets_S1[0] != 0 or offsets_S1[-1] != queries:
        raise ValueError(
            f"offsets_S1 runs from {offsets_S1[0]} to {offsets_S1[-1]}, "
            f"expected 0 to the number of queries, {queries}"
        )
    empty = np.flatnonzero(np.diff(offsets_S1) < 1)
    if len(empty):
        raise ValueError(
            f"offsets_S1[{empty[0]}:{empty[0] + 2}] is {offsets_S1[empty[0] : empty[0] + 2]}, "
            "expected increasing offsets: every test set has a query"
        )


def check_matrix(name: str, rows_RD: Rows, dimensions: int | None = None) -> None:
    """Refuse what is no matrix of embeddings; the rows themselves: `check_rows`.

    Args:
        name: what it is called.
        rows_RD: the matrix.
        dimensions: those of the queries that it is compared with.

    Raises:
        TypeError: not a numpy array of float16.
        ValueError: not (rows, D) with at least one row, or D differs or is beyond 65536.
    """
    _check_dtype(name, rows_RD, np.float16, "similarity is defined on the stored rows")
    if rows_RD.ndim != 2 or 0 in rows_RD.shape:
        raise ValueError(f"{name} has shape {rows_RD.shape}, expected at least one row (R, D)")
    if dimensions is not None and rows_RD.shape[1] != dimensions:
        raise ValueError(
            f"{name} has {rows_RD.shape[1]} dimensions and queries_MD {dimensions}, "
            "expected the same"
        )
    if rows_RD.shape[1] > MOST_DIMENSIONS:
        raise ValueError(f"{name} has {rows_RD.shape[1]} dimensions, at most {MOST_DIMENSIONS}")


def _check_dtype(name: str, array: Any, dtype: type[np.generic], why: str) -> None:
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{name} is a {type(array).__name__}, expected a numpy array")
    if array.dtype != dtype:
        raise TypeError(f"{name} is {array.dtype}, expected {np.dtype(dtype).name}: {why}")


def check_count(name: str, value: int, least: int) -> None:
    """Refuse a count that is not an integer, or too small.

    Raises:
        TypeError: not an integer.
        ValueError: below `least`.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} is {value!r}, expected an integer")
    if value < least:
        raise ValueError(f"{name} is {value}, expected at least {least}")


def check_rows(name: str, rows_RD: Rows) -> None:
    """Refuse rows (R, D) that are not finite or not of length one.

    Raises:
        ValueError: names the first such row and its length.
    """
    for first in range(0, len(rows_RD), _ROWS_AT_ONCE):
        block_RD = rows_RD[first : first + _ROWS_AT_ONCE].astype(np.float64)
        check_squares(name, np.einsum("rd,rd->r", block_RD, block_RD), first)


def check_squares(name: str, square_R: Floats, first_row: int) -> None:
    """Refuse rows by their squared lengths (R,); the first of them is row `first_row` of `name`.

    Raises:
        ValueError: as `check_rows`.
    """
    length_R = np.sqrt(square_R)
    bad = np.flatnonzero(~(np.abs(length_R - 1) <= UNIT_TOLERANCE))
    if len(bad):
        raise ValueError(
            f"{name} row {first_row + bad[0]} has length {length_R[bad[0]]:.6g}, "
            f"expected finite values and a length within {UNIT_TOLERANCE:.6f} of 1"
        )


def no_neighbours(queries: int, k: int) -> tuple[Floats, Ints]:
    """Similarity (M, K) and row (M, K) where there is no pool row."""
    return np.full((queries, k), -np.inf), np.full((queries, k), -1, dtype=np.int64)


def merge_neighbours(parts: Iterable[tuple[Floats, Ints]]) -> tuple[Floats, Ints]:
    """Merge the nearest neighbours that were found in different parts of a pool.

    Ordered by (-similarity, lowest row), so the result does not depend on the order or the
    grouping of the parts. A missing neighbour, -inf and row -1, comes last.

    Args:
        parts: similarity (M, K) and row (M, K) of each part; rows count over the whole pool.

    Raises:
        ValueError: no part, shapes that differ, or a row that is in two parts.
    """
    merged: tuple[Floats, Ints] | None = None
    for number, part in enumerate(parts):
        similarity_MK, row_MK = part
        expected = merged[0].shape if merged else similarity_MK.shape
        if similarity_MK.shape != expected or row_MK.shape != expected:
            raise ValueError(
                f"part {number} has shapes {similarity_MK.shape} and {row_MK.shape}, "
                f"expected {expected}"
            )
        merged = _merge_two(merged, part) if merged else part
    if merged is None:
        raise ValueError("no parts to merge, expected at least one")
    return merged


def _merge_two(a: tuple[Floats, Ints], b: tuple[Floats, Ints]) -> tuple[Floats, Ints]:
    similarity_M2K = np.concatenate([a[0], b[0]], axis=1)
    row_M2K = np.concatenate([a[1], b[1]], axis=1)
    sorted_M2K = np.sort(row_M2K, axis=1)
    twice = np.argwhere((sorted_M2K[:, 1:] == sorted_M2K[:, :-1]) & (sorted_M2K[:, 1:] >= 0))
    if len(twice):
        query, place = twice[0]
        raise ValueError(
            f"row {sorted_M2K[query, place]} is in two parts (query {query}), expected rows that "
            "count over the whole pool: pass row_offset"
        )
    order_MK = np.lexsort((row_M2K, -similarity_M2K), axis=1)[:, : a[0].shape[1]]
    return (
        np.take_along_axis(similarity_M2K, order_MK, axis=1),
        np.take_along_axis(row_M2K, order_MK, axis=1),
    )
