"""Rows of a pool by file and by cluster: which to draw, which belong together, what they hold.

A row's identity is (embeddings file, row). Nothing here holds the embeddings of a whole pool, nor
of a whole cluster if that is large.

Letters in shapes: N rows in question, D dimensions, F embeddings files.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from hpc.stage import OutputError
from pipeline import artifacts

Array = np.ndarray[Any, np.dtype[Any]]

_NO_ROWS = np.empty(0, dtype=np.int32)


@dataclass(frozen=True)
class Members:
    """Rows of some clusters, by rising cluster and, within one, by rising identity."""

    cluster: Array
    """(N,) int32."""
    file: Array
    """(N,) int32."""
    row: Array
    """(N,) int32, within the file."""

    def __len__(self) -> int:
        return len(self.cluster)

    def __getitem__(self, some: slice) -> Members:
        return Members(self.cluster[some], self.file[some], self.row[some])

    def spans(self) -> list[slice]:
        """Where each cluster is; clusters without rows are nowhere."""
        starts = np.flatnonzero(np.diff(self.cluster, prepend=-1))
        bounds = [*starts.tolist(), len(self)]
        return [slice(*pair) for pair in pairwise(bounds)]

    def batches(self, most: int) -> Iterator[Members]:
        """Cut between clusters into batches of at most `most` rows, or of one larger cluster."""
        first = last = 0
        for span in self.spans():
            if span.stop - first > most and last > first:
                yield self[first:last]
                first = last
            last = span.stop
        if last > first:
            yield self[first:last]


def draw(rows: Sequence[int], count: int, seed: int) -> Iterator[tuple[int, Array]]:
    """Draw `count` of all rows, uniformly and without replacement.

    How many fall into each file is drawn first (multivariate hypergeometric), then which.

    Args:
        rows: how many each file has; (F,).
        count: how many to draw; all if there are fewer.
        seed: decides which.

    Yields:
        A file and its rows, rising; files without any are left out.
    """
    count = min(count, sum(rows))
    counts = np.random.default_rng([seed]).multivariate_hypergeometric(
        np.asarray(rows, dtype=np.int64), count, method="marginals"
    )
    for index, (size, drawn) in enumerate(zip(rows, counts.tolist(), strict=True)):
        if drawn:
            generator = np.random.default_rng([seed, index])
            yield index, np.sort(generator.choice(size, drawn, replace=False))


def members_of(assignments: Sequence[Path], first: int, last: int) -> Members:
    """Find the rows of clusters first:last.

    Args:
        assignments: files of the cluster of each row, in the order of the embeddings files.
        first: the first cluster.
        last: the one after the last cluster.

    Raises:
        ValueError: a row has a cluster that does not exist: it would be in no range.
    """
    parts = [(_NO_ROWS, _NO_ROWS, _NO_ROWS)]
    for index, path in enumerate(assignments):
        assignment = artifacts.read(path, artifacts.ASSIGNMENT)
        cluster, clusters = np.asarray(assignment["cluster"]), assignment.attributes["clusters"]
        bad = np.flatnonzero((cluster < 0) | (cluster >= clusters))
        if len(bad):
            raise ValueError(
                f"{path} row {bad[0]}: cluster {cluster[bad[0]]}, expected 0 to {clusters - 1}"
            )
        row = np.flatnonzero((cluster >= first) & (cluster < last)).astype(np.int32)
        parts.append((cluster[row], np.full(len(row), index, dtype=np.int32), row))
    cluster, file, row = (np.concatenate(part) for part in zip(*parts, strict=True))
    order = np.argsort(cluster, kind="stable")
    return Members(cluster[order], file[order], row[order])


@contextmanager
def gathered(
    members: Members, embeddings: Sequence[Path], memory: float, scratch: Path
) -> Iterator[Array]:
    """Bring the embeddings of rows together.

    Args:
        members: which rows.
        embeddings: the pool's embeddings files.
        memory: bytes; what is larger goes to a file without a name, which vanishes with the
            process however that ends.
        scratch: the folder of that file.

    Yields:
        (N, D) float16, in the order of `members`.

    Raises:
        ValueError: a file has other dimensions than the first.
    """
    shape = (len(members), rows_of(embeddings[0]).shape[1])
    if 2 * shape[0] * shape[1] <= memory:
        rows = np.empty(shape, dtype=np.float16)
        _fill(rows, members, embeddings)
        yield rows
        return
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=scratch) as file:
        rows = np.memmap(file, dtype=np.float16, mode="w+", shape=shape)
        _fill(rows, members, embeddings)
        yield rows


def _fill(rows_ND: Array, members: Members, embeddings: Sequence[Path]) -> None:
    """File after file, so that each is opened once and read in one direction."""
    order = np.lexsort((members.row, members.file))
    starts = np.searchsorted(members.file[order], np.arange(len(embeddings) + 1))
    for index, path in enumerate(embeddings):
        places = order[starts[index] : starts[index + 1]]
        if len(places):
            found = rows_of(path)
            if found.shape[1] != rows_ND.shape[1]:
                raise ValueError(
                    f"{path}: expected {rows_ND.shape[1]} dimensions as in {embeddings[0]}, found "
                    f"{found.shape[1]}"
                )
            rows_ND[places] = found[members.row[places]]


def rows_of(path: Path) -> Array:
    """The embeddings of a file (n, D) float16, as a memory map."""
    return artifacts.read(path, artifacts.EMBEDDINGS)["embedding"]


def read_duplicates(paths: Sequence[Path], rows: int) -> Iterator[artifacts.Artifact]:
    """Open the files of duplicates one by one.

    Args:
        paths: those of all ranges of clusters, in order.
        rows: rows of the pool.

    Yields:
        Each file of the schema `artifacts.DUPLICATES`.

    Raises:
        OutputError: a cluster is in no file or in two, or the files are not about all of the pool.
    """
    next_cluster = clusters = seen = 0
    for path in paths:
        found = artifacts.read(path, artifacts.DUPLICATES)
        first, clusters = found.attributes["first_cluster"], found.attributes["clusters"]
        if first != next_cluster:
            raise OutputError(f"{path}: expected clusters from {next_cluster}, found from {first}")
        next_cluster = found.attributes["last_cluster"]
        seen += found.attributes["rows"]
        yield found
    if next_cluster != clusters or seen != rows:
        raise OutputError(
            f"files of duplicates cover {next_cluster} of {clusters} clusters and {seen} of {rows} "
            f"pool rows; the last is {paths[-1] if paths else 'missing'}"
        )


def on_gpu(requested: str, gpus: int) -> bool:
    """Whether FAISS is to use GPUs.

    Args:
        requested: `auto`, `cpu`, `cuda` or `cuda:N`.
        gpus: how many the job was given; one that was given a GPU uses it, or fails.
    """
    from kernels.faiss_backend import gpus as seen

    if requested == "cpu":
        return False
    return requested != "auto" or gpus > 0 or seen() > 0
