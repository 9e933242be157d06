"""What a training reads: the tars that were written for its split, or the pool's own, filtered.

The stage `subset` writes, the stage `train` reads; what lies between them is defined here.

    6_subsets/<split>/<task>/subset.json           what the task made: a Record
    6_subsets/<split>/<task>/00000.tar ...         data: tars
    6_subsets/<split>/<task>/keep.spans            data: live (`pipeline.subsets.stream` reads it)
    6_subsets/<split>/sizes.json                   data: tars; samples of each tar of the split
    6_subsets/_reference-<template>/<task>/        data: live; tars of the reference
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hpc.files import read_json
from hpc.stage import OutputError
from hpc.words import count, in_bytes
from pipeline import artifacts
from pipeline.experiment.sections import Pool, Training
from pipeline.experiment.sources import file_identity
from pipeline.layout import Layout
from pipeline.subsets import stream

RECORD = "subset.json"
SPANS = "keep.spans"
ADVISE_REWRITING = 0.5
"""Share of a live training's bandwidth that may be lost before rewriting is advised."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """What one task made of its range of the pool, or of the reference."""

    digest: str
    samples: int
    """Of the pool."""
    reference: int = 0
    """Samples of the reference."""
    reference_total: int = 0
    """Images of the whole reference, of which all tasks together have each once."""
    files: dict[str, Any] = field(default_factory=dict)
    """Each file that was written: `xxh3`, and the `samples` of a tar."""
    shards: list[dict[str, Any]] = field(default_factory=list)
    """Live: the pool's tars of which something is kept: `number` in the spans, `position` among the
    pool's, `identity`, `samples`, and `bytes` that are kept."""

    @property
    def tars(self) -> dict[str, int]:
        """Samples of each tar that was written."""
        return {name: one["samples"] for name, one in self.files.items() if "samples" in one}

    def values(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Shard:
    """One tar as webdataset gets it."""

    url: Path | str
    """A path, or a `pipe:` URL."""
    samples: int
    bytes: int = 0
    """Live: bytes that are streamed."""
    source: Path | None = None
    """Live: the pool's tar."""
    identity: tuple[Any, ...] = ()
    """Live: the tar's when it was embedded: name, bytes, modification time."""

    @property
    def of(self) -> int:
        """Live: bytes of the pool's tar."""
        return int(self.identity[1]) if self.identity else 0


def read_record(folder: Path) -> Record:
    """What a task made.

    Raises:
        OutputError: it is missing or damaged.
    """
    try:
        record = Record(**read_json(folder / RECORD))
        whole = isinstance(record.files, dict) and isinstance(record.shards, list)
        if not whole or not all("xxh3" in one for one in record.files.values()):
            raise ValueError("not a record")
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise OutputError(f"{folder}: no whole {RECORD}: {error!r}") from error
    return record


def file_ranges(files: int, training: Training) -> list[range]:
    """Which of the pool's embeddings files each task of a split works on."""
    step = training.files_per_task
    return [range(start, min(start + step, files)) for start in range(0, files, step)]


def task_names(split: str, tasks: int) -> list[str]:
    """The names of a split's tasks in the stage `subset`."""
    return [f"{split}/{number:05d}" for number in range(tasks)]


def training_shards(layout: Layout, pool: Pool, split: str, tasks: Sequence[str]) -> list[Shard]:
    """Everything that a training on a split reads, and with how many samples.

    Args:
        layout: the run's.
        pool: the pool, which may have moved.
        split: the split's name.
        tasks: the tasks of the stage `subset` that have it.

    Raises:
        ValueError: the tasks' samples do not add up to what the mask keeps, or to the reference.
        OutputError: what a task made is missing or damaged.
    """
    shards, records = [], {}
    for name in tasks:
        folder = layout.subset_task(*_parsed(name))
        records[name] = record = read_record(folder)
        shards += [Shard(folder / tar, samples) for tar, samples in record.tars.items()]
        shards += _live(folder / SPANS, record, pool)
    _check_sums(layout, split, records)
    return shards


def _parsed(task: str) -> tuple[str, int]:
    split, _, number = task.rpartition("/")
    return split, int(number)


def _live(spans: Path, record: Record, pool: Pool) -> Iterator[Shard]:
    for one in record.shards:
        tar = pool.paths[one["position"]]
        url = live_url(spans, one["number"], tar)
        yield Shard(url, one["samples"], one["bytes"], tar, tuple(one["identity"]))


def live_url(spans: Path, number: int, tar: Path) -> str:
    """A `pipe:` URL of the kept samples of one of the pool's tars.

    `sh` is replaced by the stream, so that the reader sees its status, and what stops the reader
    stops the stream.
    """
    words = [sys.executable, "-I", "-S", stream.__file__, str(spans), str(number), str(tar)]
    return f"pipe:exec {shlex.join(words)}"


def _check_sums(layout: Layout, split: str, records: dict[str, Record]) -> None:
    """Every kept sample of the pool once, and every image of the reference once."""
    mask = artifacts.read(layout.mask(split), artifacts.MASK)
    own = [record.samples for name, record in records.items() if _parsed(name)[0] == split]
    kept = mask.attributes["kept"]
    if sum(own) != kept:
        raise ValueError(
            f"{split}: the mask keeps {count(kept, 'sample')}, but the {len(own)} tasks of its "
            f"subset have {sum(own):,}"
        )
    wanted = max((record.reference_total for record in records.values()), default=0)
    found = sum(record.reference for record in records.values())
    if found != wanted:
        raise ValueError(
            f"{split}: the reference has {count(wanted, 'image')}, but the tasks of the subset "
            f"have {found:,}"
        )


def refuse_changed(shards: Sequence[Shard]) -> None:
    """Before a training that reads the pool: are its tars those that were embedded?

    Raises:
        ValueError: one has changed.
        FileNotFoundError: one is missing.
    """
    for shard in shards:
        if shard.source is not None:
            refuse_other(shard.source, shard.identity)


def refuse_other(tar: Path, identity: Sequence[Any]) -> None:
    """Make sure that a tar of the pool is the one that was embedded.

    Raises:
        ValueError: it is not.
        FileNotFoundError: it is missing.
    """
    if file_identity(tar) != list(identity):
        raise ValueError(f"{tar} has changed since it was embedded; submit again")


def bandwidth_lost(shards: Sequence[Shard]) -> float:
    """Which share of the bytes that lie in a live training's tars is of no use to it."""
    total = sum(shard.of for shard in shards)
    return 1 - sum(shard.bytes for shard in shards) / total if total else 0.0


def bandwidth_in_words(shards: Sequence[Shard]) -> str:
    """How much of the read bandwidth a live training throws away, and what to do about it."""
    used, total = sum(shard.bytes for shard in shards), sum(shard.of for shard in shards)
    lost = bandwidth_lost(shards)
    words = (
        f"live: an epoch uses {in_bytes(used)} of {in_bytes(total)} in "
        f"{count(sum(1 for shard in shards if shard.of), 'tar')} of the pool; {lost:.0%} of the "
        "read bandwidth is thrown away"
    )
    if lost > ADVISE_REWRITING:
        words += "; more than half: rewriting the split (training.data: tars) will be faster"
    return words
