"""Which pool rows a split keeps.

A split is a pure function of the pool's rows, of how near they are to which test sets, of the
duplicates among them, and of the other splits that it names, so a mask never depends on another
mask having been made. What a split is, as data and in words, is in
`pipeline.selection.definitions`.

Rows are asked for file by file, from several threads if need be: whatever the size of the pool,
only a few files are in memory.

Letters in shapes: n rows of a file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from pipeline.experiment.splits import RankCut, Split
from pipeline.selection import ranks

Splits = Mapping[str, Split]
Array = np.ndarray[Any, np.dtype[Any]]
_BLOCK_ROWS = 1 << 15
_MOST_ROWS = 999_999_999
"""What numpy draws a multivariate hypergeometric sample from."""
Rows = Callable[[int], Array]
"""Embeddings file -> (n,) bool: which of its rows are kept."""


@dataclass(frozen=True)
class PoolFile:
    """One embeddings file of the pool, as far as selections look at it. All is read when called."""

    rows: int
    near: Callable[[Sequence[str]], list[Array]]
    """Test sets -> for each, (n,) bool: near to one of its images."""
    best: Callable[[Sequence[str]], list[Array]]
    """Test sets -> for each, (n,) float32: the largest similarity to one of its images."""
    duplicates: Callable[[], Array]
    """(n,) bool: duplicates of an earlier row."""


@dataclass
class Selection:
    """All splits over one pool; what is known of one is kept for those that are made from it."""

    splits: Splits
    files: Sequence[PoolFile]
    run: ranks.Mapper = map
    """Maps over embeddings files."""
    _known: dict[str, Rows] = field(default_factory=dict)

    def rows(self, name: str) -> Rows:
        """What a split keeps of each file. Reads as much as has to be known before: counts, cuts.

        Raises:
            ValueError: the split is to keep more rows than there are.
        """
        if name not in self._known:
            self._known[name] = self._rows(name, self.splits[name])
        return self._known[name]

    def base(self, name: str) -> Rows:
        """The rows within which a split is taken."""
        base = self.splits[name].base
        return self._all if base is None else self.rows(base)

    def counts(self, rows: Rows) -> list[int]:
        """How many rows are kept of each file."""
        return list(
            self.run(lambda file: int(np.count_nonzero(rows(file))), range(len(self.files)))
        )

    def _rows(self, name: str, split: Split) -> Rows:
        if split.cut:
            return self._ranked(name, split.cut, largest=split.far is not None)
        if split.random:
            return self._random(name)
        base, kept = self.base(name), self._definition(split)
        return kept if base == self._all else lambda file: base(file) & kept(file)

    def _definition(self, split: Split) -> Rows:
        """What a definition that looks at each row alone keeps of the pool."""
        files = self.files
        if split.pruned_for:
            return lambda file: ~_over(np.logical_or, files[file].near(split.pruned_for))
        if split.deduplicated:
            return lambda file: ~files[file].duplicates()
        if split.complement:
            return partial(_without, self._all, [self.rows(split.complement)])
        if split.difference:
            first, *others = map(self.rows, split.difference)
            return partial(_without, first, others)
        if split.union:
            return partial(_joined, np.logical_or, list(map(self.rows, split.union)))
        if split.intersection:
            return partial(_joined, np.logical_and, list(map(self.rows, split.intersection)))
        return self._all

    def _all(self, file: int) -> Array:
        return np.ones(self.files[file].rows, dtype=bool)

    def _ranked(self, name: str, cut: RankCut, largest: bool) -> Rows:
        base = self.base(name)

        def values(file: int) -> tuple[Array, Array]:
            return _over(np.maximum, self.files[file].best(cut.tests)), base(file)

        try:
            packed = ranks.first(values, len(self.files), cut.keep, largest, self.run)
        except ValueError as error:
            raise ValueError(f"split {name}{self._within(name)}: {error}") from error
        return lambda file: np.unpackbits(packed[file], count=self.files[file].rows).astype(bool)

    def _random(self, name: str) -> Rows:
        random = self.splits[name].random
        assert random is not None
        wanted = random.keep or sum(self.counts(self.rows(str(random.like))))
        base = self.base(name)
        sizes = self.counts(base)
        if wanted > sum(sizes):
            like = f", as many as {random.like}" if random.like else ""
            raise ValueError(
                f"split {name}{self._within(name)}: {wanted:,} rows are to be kept{like}, but "
                f"there are {sum(sizes):,}"
            )
        if (found := sum(sizes)) > _MOST_ROWS:
            raise ValueError(
                f"split {name}: expected at most {_MOST_ROWS:,} rows to draw from, found {found:,}"
            )
        return partial(_sample, base, _shares(sizes, wanted, random.seed), random.seed)

    def _within(self, name: str) -> str:
        base = self.splits[name].base
        return f", within {base}" if base else ""


def keep(splits: Splits, name: str, files: Sequence[PoolFile]) -> Iterator[Array]:
    """Yield, for each embeddings file of the pool, which rows a split keeps: (n,) bool.

    Args:
        splits: all splits by name.
        name: the split.
        files: the pool's embeddings files.

    Raises:
        ValueError: the split is to keep more rows than there are.
    """
    yield from map(Selection(splits, files).rows(name), range(len(files)))


def _without(first: Rows, others: Sequence[Rows], file: int) -> Array:
    rows = first(file)
    for other in others:
        rows = rows & ~other(file)
    return rows


def _joined(operation: np.ufunc, operands: Sequence[Rows], file: int) -> Array:
    return _over(operation, [rows(file) for rows in operands])


def _over(operation: np.ufunc, columns: Sequence[Array]) -> Array:
    """(n,) an operation over columns, in blocks, because columns of a row lie side by side."""
    result = np.array(columns[0])
    for start in range(0, len(result), _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        for column in columns[1:]:
            operation(result[block], column[block], out=result[block])
    return result


def _shares(sizes: Sequence[int], wanted: int, seed: int) -> Array:
    """(files,) how many rows of a uniform sample fall into each file."""
    generator = np.random.default_rng([seed])
    shares: Array = generator.multivariate_hypergeometric(
        np.asarray(sizes, dtype=np.int64), wanted, method="marginals"
    )
    return shares


def _sample(base: Rows, shares: Array, seed: int, file: int) -> Array:
    """(n,) bool: a uniform sample of a file's base rows.

    How many rows fall into each file is drawn before (multivariate hypergeometric), then which:
    together exactly a uniform sample without replacement, and only one file is in memory.
    """
    candidates = np.flatnonzero(rows := base(file))
    generator = np.random.default_rng([seed, file])
    chosen = np.zeros(len(rows), dtype=bool)
    chosen[candidates[generator.choice(len(candidates), int(shares[file]), replace=False)]] = True
    return chosen
