"""The pool's files as selections look at them: opened when asked, closed again, in threads.

A pool may have tens of thousands of files, more than a process may hold open.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from hpc.stage import OutputError
from pipeline import artifacts
from pipeline.artifacts import Array
from pipeline.layout import POOL, Layout
from pipeline.ordered import ordered
from pipeline.selection.deduplication import read_duplicates
from pipeline.selection.ranks import Item, Mapper
from pipeline.selection.rows import PoolFile

_BLOCK_ROWS = 1 << 20


@dataclass(frozen=True)
class PoolFiles:
    """What selections need to know of a run's pool."""

    run: Layout
    count: int
    """Embeddings files."""
    tests: Sequence[str]
    """Test sets that are looked at; without any, no similarities need to be there."""
    duplicates: int | None = None
    """Files of duplicates, if they are looked at."""

    def open(self) -> list[PoolFile]:
        """Every file; only their numbers of rows and the duplicates are read now.

        Raises:
            OutputError: a file is missing, can't be read, or does not fit the others.
        """
        rows = [self._rows(file) for file in range(self.count)]
        duplicates = [np.empty(0, dtype=np.uint8)] * self.count
        if self.duplicates is not None:
            paths = [self.run.duplicates(index) for index in range(self.duplicates)]
            duplicates = _packed_duplicates(paths, rows)
        return [self._file(file, rows[file], duplicates[file]) for file in range(self.count)]

    def near_pool_images(self) -> dict[str, Array]:
        """For each test set, (m,): how many pool images are above each test image's threshold."""
        totals: dict[str, Array] = {}
        for file in range(self.count):
            scan = self._scan(file)
            ends = scan.attributes["offsets"]
            for test in self.tests:
                column = scan.attributes["tests"].index(test)
                counts = scan["above_threshold"][ends[column] : ends[column + 1]]
                totals[test] = totals.get(test, 0) + np.asarray(counts)
        return totals

    def _rows(self, file: int) -> int:
        if self.tests:
            return len(self._scan(file)["near"])
        return len(artifacts.read(self.run.embeddings(POOL, file), artifacts.EMBEDDINGS)["key"])

    def _scan(self, file: int) -> artifacts.Artifact:
        return artifacts.read(self.run.similarity(file), artifacts.SIMILARITY)

    def _file(self, file: int, rows: int, duplicates: Array) -> PoolFile:
        def columns(name: str) -> Callable[[Sequence[str]], list[Array]]:
            def read(tests: Sequence[str]) -> list[Array]:
                scan = self._scan(file)
                places = [scan.attributes["tests"].index(test) for test in tests]
                return [np.asarray(scan[name])[:, place] for place in places]

            return read

        def duplicate_rows() -> Array:
            return np.unpackbits(duplicates, count=rows).astype(bool)

        return PoolFile(rows, columns("near"), columns("best_similarity"), duplicate_rows)


def _packed_duplicates(paths: Sequence[Path], rows: Sequence[int]) -> list[Array]:
    """For each embeddings file, its duplicates as packed bits; a byte a row while they are read."""
    sizes = np.array(rows, dtype=np.int64)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    duplicate = np.zeros(starts[-1], dtype=bool)
    for found in read_duplicates(paths, int(starts[-1])):
        for first in range(0, len(found["row"]), _BLOCK_ROWS):
            block = slice(first, first + _BLOCK_ROWS)
            file, row = found["file"][block], found["row"][block]
            if (file >= len(rows)).any() or (row >= sizes[file]).any():
                raise OutputError(f"{found.path}: names rows that the embeddings do not have")
            duplicate[starts[file] + row] = True
    return [np.packbits(duplicate[a:b]) for a, b in pairwise(starts)]


@contextmanager
def in_threads(count: int) -> Iterator[Mapper]:
    """A `map` that works on `count` items at once and holds few results."""
    with ThreadPoolExecutor(count, thread_name_prefix="selection") as pool:

        def run(work: Callable[[int], Item], items: Iterable[int]) -> Iterator[Item]:
            return ordered(pool, work, items, count)

        yield run
