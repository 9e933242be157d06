"""The N rows that rank first among hundreds of millions, without sorting them.

A float32 has 32 bits, so two passes over the data are enough: one counts rows by the upper 16 bits
of their value; then it is known which upper bits the N-th row has. The other marks the rows with
smaller ones, which are kept, and takes the lower 16 bits of those with the same. Among these the
N-th value is found, and of the rows that have just this value the first fill what is left of N.
Memory is two bits a row, and two bytes for each row with the N-th row's upper bits.

Letters in shapes: n rows of a file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
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
class _Boundary:
    """A file's rows below the bin in which the last kept row lies, and those in it."""

    below: Array
    """Packed bits of (n,) bool."""
    inside: Array
    """Packed bits of (n,) bool."""
    lower: Array
    """uint16: the lower bits of the rows inside."""

    def kept(self, lower: int, ties: int) -> Array:
        """Packed bits of (n,) bool: the rows below `lower`, and the first `ties` just there."""
        inside = np.flatnonzero(np.unpackbits(self.inside))
        kept = np.unpackbits(self.below)
        kept[inside[self.lower < lower]] = 1
        kept[inside[self.lower == lower][:ties]] = 1
        return np.packbits(kept)


def first(values: Values, files: int, keep: int, largest: bool, run: Mapper = map) -> list[Array]:
    """Find the rows with the `keep` smallest (or largest) values; of equal ones the first.

    Args:
        values: reads a file. Called twice for each, in any order.
        files: how many there are; their order and the rows' within them is the row order.
        keep: at least 1, and no more than there are candidates.
        largest: take the largest values and not the smallest.
        run: maps over the files.

    Returns:
        For each file, packed bits of (n,) bool: which rows are kept.

    Raises:
        ValueError: there are not so many candidates, or a value is not finite; the message has the
            numbers, or the file and row.
    """
    counts = _total(
        run(lambda file: _upper_histogram(*_finite(values, file), largest), range(files))
    )
    if not 0 < keep <= counts.sum():
        raise ValueError(f"{keep:,} rows are to be kept, but there are {counts.sum():,}")
    upper, left = _bin_of(counts, keep)
    near = list(run(lambda file: _boundary(*values(file), largest, upper), range(files)))
    lower, left = _bin_of(_total(np.bincount(one.lower, minlength=_HALF) for one in near), left)
    ties = np.array([np.count_nonzero(one.lower == lower) for one in near], dtype=np.int64)
    ties = np.clip(left - (np.cumsum(ties) - ties), 0, ties)
    return [one.kept(lower, int(taken)) for one, taken in zip(near, ties, strict=True)]


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


def _upper_histogram(values: Array, candidates: Array, largest: bool) -> Array:
    """(65536,) candidates by their upper bits."""
    counts = np.zeros(_HALF, dtype=np.int64)
    for block in _blocks(values):
        bits = ordered_bits(values[block], largest)[candidates[block]]
        counts += np.bincount(bits >> 16, minlength=_HALF)
    return counts


def _boundary(values: Array, candidates: Array, largest: bool, upper: int) -> _Boundary:
    below, inside = np.zeros((2, len(values)), dtype=bool)
    lower = [np.empty(0, dtype=np.uint16)]
    for block in _blocks(values):
        bits = ordered_bits(values[block], largest)
        half = bits >> 16
        below[block] = (half < upper) & candidates[block]
        inside[block] = (half == upper) & candidates[block]
        lower.append(bits[inside[block]].astype(np.uint16))
    return _Boundary(np.packbits(below), np.packbits(inside), np.concatenate(lower))


def _blocks(values: Array) -> Iterator[slice]:
    for start in range(0, len(values), _BLOCK_ROWS):
        yield slice(start, start + _BLOCK_ROWS)


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
