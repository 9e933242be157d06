"""The rows of a split, embeddings file by embeddings file: one is in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import artifacts
from pipeline.artifacts import Artifact
from pipeline.layout import POOL, Layout

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Part:
    """One embeddings file of the pool. n: its rows."""

    index: int
    first: int
    """Number of its first row in the pool."""
    embeddings: Artifact
    keep: Array
    """(n,) bool."""

    @property
    def keys(self) -> Array:
        """(n,) fixed-length bytes."""
        return self.embeddings["key"]

    @cached_property
    def sources(self) -> list[str]:
        """File names of its tars, in which its dataset `shard` counts; without tars its own."""
        return [Path(source["path"]).name for source in self.embeddings.attributes["sources"]]

    def name(self, row: int) -> str:
        """A row for people: `00012.tar: 000120007`."""
        source = self.sources[int(self.embeddings["shard"][row])]
        (key,) = self.embeddings.text("key", slice(row, row + 1))
        return f"{source}: {key}"


@dataclass(frozen=True)
class Selected:
    """A split of a run."""

    layout: Layout
    split: str

    @cached_property
    def mask(self) -> Artifact:
        """Its keep mask."""
        return artifacts.read(self.layout.mask(self.split), artifacts.MASK)

    @property
    def kept(self) -> int:
        """How many rows it keeps."""
        return int(self.mask.attributes["kept"])

    @property
    def files(self) -> int:
        """How many embeddings files the pool has."""
        return len(self.mask["rows"])

    @cached_property
    def starts(self) -> list[int]:
        """Number of the first row of each file, and of all rows."""
        return [0, *np.cumsum(self.mask["rows"], dtype=np.int64).tolist()]

    def part(self, index: int) -> Part:
        """One embeddings file.

        Raises:
            OutputError: it can't be read.
            ValueError: it has other rows than when the mask was made.
        """
        path = self.layout.embeddings(POOL, index)
        found = artifacts.read(path, artifacts.EMBEDDINGS)
        keep = artifacts.keep_of(self.mask, index)
        if len(found["key"]) != len(keep):
            raise ValueError(
                f"{path} has {len(found['key'])} rows, but {self.mask.path} knows {len(keep)}"
            )
        return Part(index, self.starts[index], found, keep)

    def parts(self) -> Iterator[Part]:
        """Every embeddings file, in order."""
        return map(self.part, range(self.files))

    def name(self, row: int) -> str:
        """A row of the pool for people."""
        index = int(np.searchsorted(self.starts, row, side="right")) - 1
        return self.part(index).name(row - self.starts[index])
