"""A range of a split as even tars, the reference's samples spread among the pool's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from hpc.stage import Progress
from pipeline.data.rewriting import Sources, TarWriter, joined
from pipeline.data.tars import Span
from pipeline.subsets.kept import KeptSamples
from pipeline.subsets.plus_reference import ReferenceSamples

Added = Sequence[tuple[ReferenceSamples, int]]
"""Samples of the reference, by their position."""


def share(total: int, before: int, kept: int, kept_in_all: int, task: int, tasks: int) -> range:
    """Which of the reference's samples a task adds: as large a share as it has of the pool's.

    Args:
        total: images of the reference.
        before: kept samples of the pool in the tasks before this one.
        kept: in this one.
        kept_in_all: in all.
        task: its number, which counts if nothing is kept at all.
        tasks: how many tasks there are.
    """
    if not kept_in_all:
        before, kept, kept_in_all = task, 1, tasks
    return range(total * before // kept_in_all, total * (before + kept) // kept_in_all)


@dataclass
class TarFolder:
    """Writes 00000.tar, 00001.tar, ..., of at most `samples_per_shard` samples, as even as can be.

    Readers take neighbours with one key for one sample. Where keys begin anew in each of the pool's
    tars, two such neighbours go into different tars.

    Attributes:
        files: `samples` and `xxh3` of each tar that was written.
        size: bytes written in all.
    """

    folder: Path
    samples_per_shard: int
    progress: Progress
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    size: int = 0

    def write(self, kept: KeptSamples | None, added: Added = ()) -> None:
        """Write all samples: the kept ones in order, with the added ones at equal distances."""
        total = (len(kept) if kept else 0) + len(added)
        pool = _Cursor(kept)
        tars = -(-total // self.samples_per_shard)
        cuts = {total * at // tars for at in range(tars + 1)} if tars else set()
        cuts |= _between_twins(kept, len(added), total) if kept else set()
        try:
            for number, (low, high) in enumerate(pairwise(sorted(cuts))):
                self._write_tar(f"{number:05d}.tar", pool, added, range(low, high), total)
                self.progress(high, total, "samples")
        finally:
            pool.close()

    def _write_tar(self, name: str, pool: _Cursor, added: Added, here: range, total: int) -> None:
        samples, at = 0, here.start
        with TarWriter(self.folder / name) as out:
            for number, place in places(len(added), total, here):
                samples += pool.copy(place - at, out)
                source, position = added[number]
                for member, data in source.members(position):
                    out.add(member, data)
                samples, at = samples + 1, place + 1
            samples += pool.copy(here.stop - at, out)
        self.files[name] = {"samples": samples, "xxh3": out.xxh3}
        self.size += out.size


def _between_twins(kept: KeptSamples, added: int, total: int) -> set[int]:
    """Positions of samples with the key of the one before, if no added one is between the two."""
    second = kept.twins()
    if not second:
        return set()
    pool = np.ones(total, dtype=bool)
    pool[[place for _, place in places(added, total, range(total))]] = False
    position = np.flatnonzero(pool)
    return {int(position[at]) for at in second if position[at] == position[at - 1] + 1}


def places(added: int, total: int, here: range) -> Iterator[tuple[int, int]]:
    """Where added samples go among all, at equal distances.

    Args:
        added: how many there are.
        total: samples in all, the added ones included.
        here: a run of positions.

    Yields:
        Number and position of each added sample whose position is in `here`.
    """
    # The middle of each of `added` equal pieces: sample i is at (2 i + 1) total // (2 added).
    first = max(0, (2 * added * here.start // total - 1) // 2) if added else 0
    for number in range(first, added):
        place = (2 * number + 1) * total // (2 * added)
        if place >= here.stop:
            return
        if place >= here.start:
            yield number, place


class _Cursor:
    """Walks through the kept samples of several tars."""

    def __init__(self, kept: KeptSamples | None) -> None:
        self._tars = iter([tar for tar in kept.tars if tar.samples] if kept else [])
        self._path = Path()
        self._blocks: list[tuple[Span, ...]] = []
        """Of the samples that are left of the tar at `_path`, the last one first."""
        self._sources = Sources()

    def copy(self, samples: int, out: TarWriter) -> int:
        """Copy the next samples, or those that are left; returns how many."""
        left = samples
        while left and self._more():
            blocks = [self._blocks.pop() for _ in range(min(left, len(self._blocks)))]
            try:
                for run in joined(blocks):
                    out.copy(self._sources.open(self._path), run)
            except ValueError as error:
                raise ValueError(f"{self._path}: {error}") from error
            left -= len(blocks)
        return samples - left

    def _more(self) -> bool:
        """Go on to the next tar if this one is used up; whether there is anything left."""
        if not self._blocks and (tar := next(self._tars, None)) is not None:
            self._path, self._blocks = tar.path, tar.blocks()[::-1]
        return bool(self._blocks)

    def close(self) -> None:
        """Close the tar that is open."""
        self._sources.close()
