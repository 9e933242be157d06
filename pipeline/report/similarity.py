"""Test images, their thresholds, and their nearest images in the reference and in the pool.

Letters in shapes: m queries (test images) of one test set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hpc.stage import OutputError
from pipeline import artifacts
from pipeline.artifacts import Array, Artifact
from pipeline.layout import Layout

SAME_IMAGE = 2e-4
"""Two float16 unit vectors this close to a similarity of 1 are taken for the same image."""
_BLOCK_ROWS = 1 << 20


@dataclass(frozen=True)
class Neighbours:
    """The nearest image of each query; -inf and -1 where there is none."""

    similarity: Array
    """(m,) float64."""
    file: Array
    """(m,) int64: which embeddings file of the set."""
    row: Array
    """(m,) int64: which row of that file."""

    @classmethod
    def none(cls, queries: int) -> Neighbours:
        """Nothing found yet."""
        unset = np.full(queries, -1, np.int64)
        return cls(np.full(queries, -np.inf), unset, unset.copy())

    @property
    def median(self) -> float:
        """The median similarity; nan if there is no neighbour at all."""
        there = self.similarity[np.isfinite(self.similarity)]
        return float(np.median(there)) if len(there) else float("nan")

    def update(self, file: int, similarity: Array, row: Array) -> None:
        """Take over what is nearer in one more file; files come in order, so ties stay."""
        nearer = similarity > self.similarity
        self.similarity[nearer] = similarity[nearer]
        self.file[nearer] = file
        self.row[nearer] = row[nearer]


@dataclass(frozen=True)
class Queries:
    """A test set as the search saw it."""

    name: str
    embeddings: Artifact
    threshold: Array
    """(m,) float64: tau."""
    threshold_from: str | float
    """`reference`, or the one number that all thresholds are."""
    reference: Neighbours
    pool: Neighbours
    above_threshold: Array
    """(m,) int64: how many pool images are nearer than tau."""

    def __len__(self) -> int:
        return len(self.threshold)

    @property
    def keys(self) -> Array:
        """(m,) the images' paths within their folder, as bytes."""
        return self.embeddings["key"]

    @property
    def nearer_in_pool(self) -> float:
        """The share of queries whose nearest pool image is nearer than the reference's."""
        return float(np.mean(self.pool.similarity > self.reference.similarity))

    @property
    def in_reference(self) -> int:
        """Queries that are in the reference themselves."""
        return int(np.sum(self.reference.similarity >= 1 - SAME_IMAGE))

    @property
    def in_pool(self) -> int:
        """Queries that are in the pool themselves."""
        return int(np.sum(self.pool.similarity >= 1 - SAME_IMAGE))

    @property
    def with_near_images(self) -> int:
        """Queries with at least one pool image above their threshold."""
        return int(np.sum(self.above_threshold > 0))


@dataclass
class NearImages:
    """How many pool images are near to each test set."""

    rows: int = 0
    near: dict[str, int] = field(default_factory=dict)
    near_only: dict[str, int] = field(default_factory=dict)
    """Those that are near to no other test set."""
    near_any: int = 0


@dataclass(frozen=True)
class Searched:
    """Everything the search found, in the order of the experiment's test sets."""

    queries: Mapping[str, Queries]
    near: NearImages
    reference_files: tuple[Path, ...]
    backends: tuple[str, ...]
    """What computed the similarities."""
    rechecked: int
    """Pairs of pool and test images that had to be compared again, exactly."""


def read_searched(run: Layout, tests: list[str], pool_files: int) -> Searched:
    """Read thresholds and neighbours; of the pool's files one at a time.

    Args:
        run: the run.
        tests: names of the test sets.
        pool_files: how many embeddings files the pool has.

    Raises:
        OutputError: a file is missing, or its queries are not those of the test set.
    """
    references = {test: artifacts.read(run.reference(test), artifacts.REFERENCE) for test in tests}
    files = next(iter(references.values())).attributes["reference_files"]
    queries = {test: _queries(run, test, found) for test, found in references.items()}
    near = NearImages(near=dict.fromkeys(tests, 0), near_only=dict.fromkeys(tests, 0))
    backends = {str(found.attributes["backend"]) for found in references.values()}
    rechecked = 0
    for index in range(pool_files):
        found = artifacts.read(run.similarity(index), artifacts.SIMILARITY)
        for test in tests:
            _merge(queries[test], index, found)
        _count_near(near, found)
        backends.add(str(found.attributes["backend"]))
        rechecked += int(found.attributes["rechecked"])
    paths = tuple(run.run / entry["file"] for entry in files)
    return Searched(queries, near, paths, tuple(sorted(backends)), rechecked)


def _queries(run: Layout, test: str, found: Artifact) -> Queries:
    embeddings = artifacts.read(run.embeddings(test, 0), artifacts.EMBEDDINGS)
    count = len(embeddings["key"])
    if len(found["threshold"]) != count:
        raise OutputError(
            f"{found.path}: {len(found['threshold'])} thresholds, "
            f"expected one for each of the {count} rows of {embeddings.path}"
        )
    return Queries(
        test,
        embeddings,
        np.array(found["threshold"]),
        found.attributes["threshold_from"],
        _in_reference(found),
        Neighbours.none(count),
        np.zeros(count, np.int64),
    )


def _in_reference(found: Artifact) -> Neighbours:
    """Rows counted through all files of the reference -> file and row."""
    sizes = [int(entry["rows"]) for entry in found.attributes["reference_files"]]
    ends = np.cumsum([0, *sizes])
    row = np.array(found["neighbour_row"][:, 0])
    file = np.searchsorted(ends, row, side="right") - 1
    there = row >= 0
    local = np.where(there, row - ends[file], -1)
    similarity = np.array(found["neighbour_similarity"][:, 0])
    return Neighbours(similarity, np.where(there, file, -1), local)


def _merge(queries: Queries, index: int, found: Artifact) -> None:
    here = _slice(found, queries)
    queries.pool.update(
        index, found["neighbour_similarity"][here, 0], found["neighbour_row"][here, 0]
    )
    queries.above_threshold[:] += found["above_threshold"][here]


def _slice(found: Artifact, queries: Queries) -> slice:
    column = column_of(found, queries.name)
    start, end = found.attributes["offsets"][column : column + 2]
    if end - start != len(queries):
        raise OutputError(
            f"{found.path}: {end - start} queries of {queries.name}, expected {len(queries)}"
        )
    return slice(start, end)


def column_of(found: Artifact, test: str) -> int:
    """The column of a test set in a similarity file.

    Raises:
        OutputError: it has none.
    """
    names: list[Any] = found.attributes["tests"]
    if test not in names:
        raise OutputError(f"{found.path}: no test set {test!r}, only {', '.join(names)}")
    return names.index(test)


def _count_near(near: NearImages, found: Artifact) -> None:
    """Add one file's counts, in blocks: the rows of a pool do not fit into memory."""
    columns = {test: column_of(found, test) for test in near.near}
    flags = found["near"]
    near.rows += len(flags)
    for start in range(0, len(flags), _BLOCK_ROWS):
        block = flags[start : start + _BLOCK_ROWS, list(columns.values())]
        sets = block.sum(axis=1)
        near.near_any += int(np.count_nonzero(sets))
        for test, column in zip(columns, block.T, strict=True):
            near.near[test] += int(np.count_nonzero(column))
            near.near_only[test] += int(np.count_nonzero(column & (sets == 1)))
