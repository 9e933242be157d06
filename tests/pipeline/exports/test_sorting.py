"""Sorting on disk equals sorting in memory, and no duplicate that counts is missed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.exports.sorting import DuplicateError, Sorter

Array = np.ndarray[Any, np.dtype[Any]]


def _sort(folder: Path, high: Array, low: Array, keep: Array, run_rows: int) -> list[Any]:
    sorter = Sorter(folder, run_rows)
    rows = np.arange(len(high))
    for block in np.array_split(rows, 7):  # whose sizes have nothing to do with the runs'
        sorter.add(high[block], low[block], rows[block], keep[block])
    pairs = [
        pair for a, b in sorter.sorted_kept() for pair in zip(a.tolist(), b.tolist(), strict=True)
    ]
    assert list(folder.iterdir()) == []  # its files have no names
    return pairs


@pytest.mark.parametrize("run_rows", [1000, 3001, 100_000])
@pytest.mark.parametrize("kind", ["hashes", "counted", "one high half", "sorted"])
def test_any_identifiers_come_out_in_order(tmp_path: Path, run_rows: int, kind: str) -> None:
    generator = np.random.default_rng(0)
    count = 20_000
    high = generator.integers(0, 2**64, count, dtype=np.uint64)
    low = generator.permutation(count).astype(np.uint64)
    if kind == "counted":
        high[:] = 0
    elif kind == "one high half":
        high[: count // 2] = 2**63
    elif kind == "sorted":
        high, low = np.sort(high), np.arange(count, dtype=np.uint64)
    keep = generator.random(count) < 0.4
    expected = sorted(zip(high[keep].tolist(), low[keep].tolist(), strict=True))
    assert _sort(tmp_path, high, low, keep, run_rows) == expected


@pytest.mark.parametrize("run_rows", [4, 7, 1000])
@pytest.mark.parametrize(
    ("same", "kept", "named"),
    [
        ([3, 90], [3], (3, 90)),
        ([3, 90], [90], (3, 90)),
        ([3, 90], [], None),  # a duplicate of which nothing is kept harms nobody
        ([3, 4, 5, 90, 91, 92], [92], (3, 4)),
        (list(range(100)), [50], (0, 1)),
        (list(range(100)), [], None),
    ],
)
def test_a_duplicate_counts_if_a_row_of_it_is_kept(
    tmp_path: Path, run_rows: int, same: list[int], kept: list[int], named: tuple[int, int] | None
) -> None:
    low = np.arange(100, 200, dtype=np.uint64)[::-1].copy()
    low[same] = 7
    keep = np.zeros(100, dtype=bool)
    keep[kept] = True
    if named is None:
        assert _sort(tmp_path, np.zeros(100, np.uint64), low, keep, run_rows) == []
        return
    with pytest.raises(DuplicateError) as error:
        _sort(tmp_path, np.zeros(100, np.uint64), low, keep, run_rows)
    first, second = error.value.rows
    assert {first, second} <= set(same)
    if run_rows == 1000:
        assert (first, second) == named


def test_ranges_stay_small(tmp_path: Path) -> None:
    """However many runs there are, a range is about as large as one."""
    sorter = Sorter(tmp_path, 2000)
    generator = np.random.default_rng(0)
    for start in range(0, 60_000, 1000):
        values = generator.permutation(1000).astype(np.uint64) + np.uint64(start * 3)
        rows = np.arange(start, start + 1000)
        sorter.add(values * 0, values, rows, np.ones(1000, bool))
    sizes = [len(low) for _, low in sorter.sorted_kept()]
    assert sum(sizes) == 60_000
    assert max(sizes) <= 3000
