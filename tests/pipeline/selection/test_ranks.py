"""The first N of all rows, against a plain sort."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.selection import ranks
from pipeline.selection.pool_files import in_threads

ODD = (-1.0, -0.5, -1e-45, -0.0, 0.0, 1e-45, 1e-38, 0.5, np.nextafter(np.float32(0.5), 1), 1.0)


def _kept(values: list[np.ndarray], candidates: list[np.ndarray], keep: int, largest: bool):  # type: ignore[no-untyped-def]
    kept = ranks.first(lambda file: (values[file], candidates[file]), len(values), keep, largest)
    return np.concatenate(_unpacked(kept, values))


def _unpacked(kept: list[np.ndarray], values: list[np.ndarray]) -> list[np.ndarray]:
    return [
        np.unpackbits(bits, count=len(one)).astype(bool)
        for bits, one in zip(kept, values, strict=True)
    ]


def _sorted(values: list[np.ndarray], candidates: list[np.ndarray], keep: int, largest: bool):  # type: ignore[no-untyped-def]
    """The definition: a stable sort of everything."""
    value, candidate = np.concatenate(values).astype(np.float64), np.concatenate(candidates)
    row = np.flatnonzero(candidate)
    order = np.lexsort((row, -value[row] if largest else value[row]))
    kept = np.zeros(len(value), dtype=bool)
    kept[row[order[:keep]]] = True
    return kept


def _split(flat: np.ndarray, sizes: list[int]) -> list[np.ndarray]:
    return np.split(flat, np.cumsum(sizes)[:-1])


@pytest.mark.parametrize("largest", [False, True])
@pytest.mark.parametrize("sizes", [[1], [0, 1, 0], [7, 0, 1, 30], [70_000, 3, 66_000]])
def test_the_first_rows_are_those_of_a_stable_sort(sizes: list[int], largest: bool) -> None:
    rng = np.random.default_rng([3, *sizes])
    total = sum(sizes)
    for flat in (
        rng.uniform(-1, 1, total),
        rng.integers(-3, 4, total) / 4,  # ties everywhere
        rng.choice(ODD, total),
        0.25 + rng.integers(0, 9, total) * 2.0**-26,  # the same upper bits
        np.full(total, 0.25),
    ):
        values = _split(flat.astype(np.float32), sizes)
        candidates = _split(rng.random(total) < 0.7, sizes)
        candidates[-1][-1:] = True
        count = sum(int(one.sum()) for one in candidates)
        for keep in {1, 2, count // 3, count - 1, count} & set(range(1, count + 1)):
            expected = _sorted(values, candidates, keep, largest)
            np.testing.assert_array_equal(_kept(values, candidates, keep, largest), expected)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), largest=st.booleans())
def test_any_numbers(data: st.DataObject, largest: bool) -> None:
    number = st.one_of(st.sampled_from(ODD), st.floats(-1, 1, width=32))
    lists = data.draw(st.lists(st.lists(number, max_size=9), min_size=1, max_size=5))
    values = [np.array(one, dtype=np.float32) for one in lists]
    candidates = [
        np.array(data.draw(st.lists(st.booleans(), min_size=len(one), max_size=len(one))), bool)
        for one in lists
    ]
    count = sum(int(one.sum()) for one in candidates)
    if count:
        keep = data.draw(st.integers(1, count))
        expected = _sorted(values, candidates, keep, largest)
        np.testing.assert_array_equal(_kept(values, candidates, keep, largest), expected)


@pytest.mark.parametrize("keep", [0, 4])
def test_more_than_there_is_or_nothing_is_refused_with_the_numbers(keep: int) -> None:
    values = [np.zeros(3, np.float32), np.zeros(2, np.float32)]
    candidates = [np.array([True, False, True]), np.array([True, False])]
    with pytest.raises(ValueError, match=f"{keep} rows are to be kept, but there are 3"):
        _kept(values, candidates, keep, False)


def test_a_similarity_that_is_no_number_is_named() -> None:
    values = [np.zeros(3, np.float32), np.array([0, np.nan], np.float32)]
    candidates = [np.ones(3, bool), np.ones(2, bool)]
    with pytest.raises(ValueError, match="file 1, row 1: the similarity is nan"):
        _kept(values, candidates, 2, False)


def test_threads_change_nothing() -> None:
    rng = np.random.default_rng(0)
    values = [rng.integers(0, 50, 300).astype(np.float32) / 64 for _ in range(20)]
    candidates = [rng.random(300) < 0.5 for _ in range(20)]

    def read(file: int) -> tuple[np.ndarray, np.ndarray]:
        return values[file], candidates[file]

    with in_threads(4) as run:
        kept = ranks.first(read, 20, 1234, True, run)
    expected = _sorted(values, candidates, 1234, True)
    np.testing.assert_array_equal(np.concatenate(_unpacked(kept, values)), expected)
