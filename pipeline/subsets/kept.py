"""Where the samples lie that a split keeps of a range of the pool's embeddings files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import artifacts
from pipeline.data.tars import Span, index_shard
from pipeline.experiment.sections import Pool
from pipeline.experiment.sources import tars_of
from pipeline.layout import POOL, Layout
from pipeline.subsets.plus_reference import refuse_such_keys
from pipeline.subsets.shards import refuse_other


@dataclass(frozen=True)
class KeptTar:
    """The kept samples of one of the pool's tars."""

    path: Path
    position: int
    """Among the pool's."""
    identity: list[Any]
    """When it was embedded: name, bytes, modification time."""
    embeddings: artifacts.Artifact
    rows: artifacts.Array
    """Of the embeddings file, in order."""

    @property
    def samples(self) -> int:
        """How many."""
        return len(self.rows)

    def blocks(self) -> list[tuple[Span, ...]]:
        """The tar blocks of each sample.

        Raises:
            ValueError: the tar has changed since it was embedded.
        """
        refuse_other(self.path, self.identity)
        if "span_size" in self.embeddings.arrays:
            sizes = self.embeddings["span_size"][self.rows]
            if sizes.all():
                offsets = self.embeddings["span_offset"][self.rows]
                return [
                    (Span(offset, size),)
                    for offset, size in zip(offsets.tolist(), sizes.tolist(), strict=True)
                ]
        return _look_up(self.path, self.embeddings.text("key", self.rows))


class KeptSamples:
    """The kept samples of a range of embeddings files, in order.

    Attributes:
        tars: every tar of the range, also one of which nothing is kept.
        total: samples that the mask keeps of the whole pool.
    """

    def __init__(
        self,
        layout: Layout,
        pool: Pool,
        mask: artifacts.Artifact,
        files: range,
    ) -> None:
        self._mask, self._files = mask, files
        self.total: int = mask.attributes["kept"]
        self.tars = [tar for index in files for tar in _tars(layout, pool, mask, index)]

    def __len__(self) -> int:
        return sum(tar.samples for tar in self.tars)

    @property
    def before(self) -> int:
        """Samples that the mask keeps of the embeddings files before this range."""
        return sum(
            int(artifacts.keep_of(self._mask, one).sum()) for one in range(self._files.start)
        )

    def twins(self) -> list[int]:
        """Which samples, counted over the range, have the key of the one before, in another tar."""
        second, at, last = [], 0, None
        for tar in self.tars:
            if tar.samples:
                key = tar.embeddings["key"]
                if key[tar.rows[0]] == last:
                    second.append(at)
                last, at = key[tar.rows[-1]], at + tar.samples
        return second

    def refuse_reference_keys(self) -> None:
        """Raise ValueError if a kept sample's key could be that of one of the reference."""
        for tar in self.tars:
            refuse_such_keys(np.asarray(tar.embeddings["key"][tar.rows]), str(tar.path))


def _tars(layout: Layout, pool: Pool, mask: artifacts.Artifact, index: int) -> Iterator[KeptTar]:
    """The kept samples of each tar of an embeddings file.

    Raises:
        ValueError: the mask is of another number of rows.
    """
    path, keep = layout.embeddings(POOL, index), artifacts.keep_of(mask, index)
    embeddings = artifacts.read(path, artifacts.EMBEDDINGS)
    if len(keep) != len(embeddings["key"]):
        raise ValueError(f"{path}: {len(embeddings['key'])} rows, but the mask has {len(keep)}")
    sources, of_shard = embeddings.attributes["sources"], np.asarray(embeddings["shard"])
    first = index * pool.shards_per_file
    for number, shard in enumerate(tars_of(pool, index, sources)):
        rows = np.flatnonzero((of_shard == number) & keep)
        source = sources[number]
        position = source.get("position", first + number)
        yield KeptTar(shard, position, source["identity"], embeddings, rows)


def _look_up(shard: Path, keys: list[str]) -> list[tuple[Span, ...]]:
    """The blocks of samples, from the tar's headers."""
    blocks = {sample.key: sample.blocks for sample in index_shard(shard).samples}
    if missing := [key for key in keys if key not in blocks]:
        raise ValueError(
            f"{shard}: {len(missing)} samples that were embedded are not in it; the first is "
            f"{missing[0]}"
        )
    return [blocks[key] for key in keys]
