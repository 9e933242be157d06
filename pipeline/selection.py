"""Which pool rows a split keeps: the definitions, in code and in words.

A split is a pure function of the pool's rows, of which rows are near to which test sets, and of the
other splits that it names, so a mask never depends on another mask having been made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.sections import Split

Splits = Mapping[str, Split]
Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class PoolFile:
    """One embeddings file of the pool, as far as selections look at it."""

    rows: int
    near: Callable[[str], Array]
    """Test set -> (rows,) bool: near to one of its images. Read when called."""


def tests_of(splits: Splits, name: str) -> list[str]:
    """The test sets that a split depends on."""
    split = splits[name]
    if split.random:
        return tests_of(splits, split.random.like)
    return list(dict.fromkeys(split.near or []))


def definition(splits: Splits, name: str) -> dict[str, Any]:
    """What a split is, with the splits that it names written out; names of splits don't matter."""
    split = splits[name]
    if split.random:
        like = definition(splits, split.random.like)
        return {"random": {"like": like, "seed": split.random.seed}}
    return {"near": sorted(set(split.near))} if split.near else {"all": True}


def in_words(splits: Splits, name: str) -> str:
    """A split's definition for people."""
    split = splits[name]
    if split.random:
        return f"random images, as many as in {split.random.like} (seed {split.random.seed})"
    if split.near:
        sets = ", ".join(split.near)
        return f"without images that are near to an image of {sets}"
    return "every usable image of the pool"


def keep(splits: Splits, name: str, files: Sequence[PoolFile]) -> Iterator[Array]:
    """Yield, for each embeddings file of the pool, which rows a split keeps.

    Args:
        splits: all splits by name.
        name: the split.
        files: the pool's embeddings files.

    Yields:
        (rows,) bool for each file.
    """
    split = splits[name]
    if split.random:
        kept = sum(int(rows.sum()) for rows in keep(splits, split.random.like, files))
        yield from _random([file.rows for file in files], kept, split.random.seed)
    else:
        for file in files:
            rows = np.ones(file.rows, dtype=bool)
            for test in split.near or []:
                rows &= ~file.near(test)
            yield rows


def _random(rows: Sequence[int], kept: int, seed: int) -> Iterator[Array]:
    """A uniform sample of `kept` of all rows, file by file.

    How many rows fall into each file is drawn first (multivariate hypergeometric), then which:
    together exactly a uniform sample without replacement, and only one file is in memory.
    """
    counts = np.random.default_rng([seed]).multivariate_hypergeometric(
        np.asarray(rows, dtype=np.int64), kept, method="marginals"
    )
    for index, (size, count) in enumerate(zip(rows, counts, strict=True)):
        chosen = np.zeros(size, dtype=bool)
        generator = np.random.default_rng([seed, index])
        chosen[generator.choice(size, int(count), replace=False)] = True
        yield chosen
