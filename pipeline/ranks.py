"""The N rows that rank first among hundreds of millions, without sorting them.

A float32 has 32 bits, so the N-th smallest value is found in two passes over the data: one counts
rows by the upper 16 bits of their value, one those that share the N-th row's upper bits by the
lower 16. A third counts the rows that have just this value in each file, and the first of them in
row order fill what is left of N. Memory is a few histograms, whatever the number of rows.

Letters in shapes: n rows of a file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Item = TypeVar("Item")

_HALF = 1 << 16
_BLOCK_ROWS = 1 << 16


class Values(Protocol):
    """The values of a file's candidates."""

    def __call__(self, file: int) -> tuple[Array, Array]:
        """Read a file: (n,) float32 values, and (n,) bool: which rows are candidates."""


class Mapper(Protocol):
    """`map`, maybe in threads; results come in order."""

    def __call__(self, work: Callable[[int], Item], items: Iterable[int], /) -> Iterable[Item]:
        """Yield `work(item)` for each item."""


@dataclass(frozen=True)
class Cut:
    """The rows that rank before the cut."""

    values: Values
    largest: bool
    key: int
    """Of the last row that is kept: keys are in the order of ranks."""
    ties: Array
    """(files,) rows with just this key that each file keeps: its first ones."""

    def rows(self, file: int) -> Array:
        """(n,) bool: which rows of a file are kept."""
        values, candidates = self.values(file)
        key = ordered_bits(values, self.largest)
        kept: Array = (key < self.key) & candidates
        if self.ties[file]:
            kept[np.flatnonzero((key == self.key) & candidates)[: self.ties[file]]] = True
        return kept


def first(values: Values, files: int, keep: int, largest: bool, run: Mapper = map) -> Cut:
    """Find the rows with the `keep` smallest (or largest) values; of equal ones the first.

    Args:
        values: reads a file. Called three times for each, in any order.
        files: how many there are; their order and the rows' within them is the row order.
        keep: at least 1, and no more than there are candidates.
        largest: take the largest values and not the smallest.
        run: maps over the files.

    Raises:
        ValueError: there are not so many candidates, or a value is not finite; the message has the
            numbers, or the file and row.
    """

    def upper(file: int) -> Array:
        return _histogram(*_finite(values, file), largest)

    def lower(file: int) -> Array:
        return _histogram(*values(file), largest, upper=high)

    def equal(file: int) -> int:
        numbers, candidates = values(file)
        return int(np.count_nonzero((ordered_bits(numbers, largest) == key) & candidates))

    counts = _total(run(upper, range(files)))
    if not 0 < keep <= counts.sum():
        raise ValueError(f"{keep:,} rows are to be kept, but there are {counts.sum():,}")
    high, left = _bin_of(counts, keep)
    low, left = _bin_of(_total(run(lower, range(files))), left)
    key = high * _HALF + low
    ties = np.fromiter(run(equal, range(files)), dtype=np.int64, count=files)
    before = np.cumsum(ties) - ties
    return Cut(values, largest, key, np.clip(left - before, 0, ties))


def ordered_bits(values: Array, largest: bool) -> Array:
    """(n,) uint32 in the order of (n,) float32 values, or in the opposite one; -0 is 0."""
    bits = (values + np.float32(0)).view(np.uint32)
    negative = (bits.view(np.int32) >> 31).view(np.uint32)
    bits ^= negative | np.uint32(1 << 31)
    return ~bits if largest else bits


def _finite(values: Values, file: int) -> tuple[Array, Array]:
    numbers, candidates = values(file)
    if not np.isfinite(numbers).all():
        row = int(np.flatnonzero(~np.isfinite(numbers))[0])
        raise ValueError(f"file {file}, row {row}: the similarity is {numbers[row]}")
    return numbers, candidates


def _histogram(values: Array, candidates: Array, largest: bool, upper: int | None = None) -> Array:
    """(65536,) candidates by their upper bits, or those with these upper bits by their lower."""
    counts = np.zeros(_HALF, dtype=np.int64)
    for start in range(0, len(values), _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        bits = ordered_bits(values[block], largest)[candidates[block]]
        if upper is not None:
            bits = bits[bits >> 16 == upper]
        half = bits >> 16 if upper is None else bits & (_HALF - 1)
        counts += np.bincount(half, minlength=_HALF)
    return counts


def _total(histograms: Iterable[Array]) -> Array:
    total = np.zeros(_HALF, dtype=np.int64)
    for one in histograms:
        total += one
    return total


def _bin_of(counts: Array, keep: int) -> tuple[int, int]:
    """The bin of the row of rank `keep`, counted from 1, and its rank within the bin."""
    ends = np.cumsum(counts)
    place = int(np.searchsorted(ends, keep))
    return place, keep - int(ends[place] - counts[place])
