"""The forms that a split is written in; each refuses what it can't represent.

datacomp  the 128-bit uids of the kept rows, sorted: numpy `u8,u8`, .npy. DataComp's resharder looks
          each sample of the pool up by binary search (`resharder.py`: copy_worker).
clip-ood  the keys of the kept rows as numbers, sorted: int64, .npy. The paper's project takes
          `image_path` of clip-retrieval's metadata as int64, selects among those numbers, and
          keeps a sample of a tar if `int(name)` is one (`src/sampling/subsample_dataset.py`).
          For LAION-400M they are img2dataset's 9-digit keys: shard, then number within it.
parquet   columns `shard` (the tar's file name), `key`, and `uid` where it is known.
list      a folder with a text file for each tar: the keys that are kept, one a line.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np

from hpc.files import atomic_folder, atomic_path
from hpc.stage import Progress
from pipeline.exports.identifiers import Identifiers, UidJob, decimal
from pipeline.exports.selected import Part, Selected
from pipeline.exports.sorting import DuplicateError, Sorter
from pipeline.ordered import ordered

Array = np.ndarray[Any, np.dtype[Any]]
T = TypeVar("T")
U = TypeVar("U")

SUFFIXES = {
    "datacomp": ".datacomp.npy",
    "clip-ood": ".clip-ood.npy",
    "parquet": ".parquet",
    "list": ".list",
}
"""Of a file or folder that the user has not named."""
_UID = np.dtype("u8,u8")


@dataclass(frozen=True)
class Export:
    """A split on its way into a file, or a folder."""

    selected: Selected
    out: Path
    progress: Progress
    """Told how many rows of the pool are read."""
    tars: Callable[[int], Sequence[Path]]
    """All that the rows of an embeddings file may be in; none if the pool has no tars."""
    declared_uids: Path | None = None
    workers: int = 1
    """Processes that look for uids."""

    def write(self, form: str) -> None:
        """Write it; it appears whole or not at all.

        Raises:
            ValueError: a row can't be represented; the message names the first.
        """
        {
            "datacomp": self._datacomp,
            "clip-ood": self._clip_ood,
            "parquet": self._parquet,
            "list": self._list,
        }[form]()

    def _read(self, part: Part) -> None:
        self.progress(part.first + len(part.keep), self.selected.starts[-1], "rows")

    # numbers

    def _datacomp(self) -> None:
        jobs = [
            UidJob(self.selected, index, self.tars(index), self.declared_uids)
            for index in range(self.selected.files)
        ]

        def fill(sorter: Sorter) -> None:
            found = _side_by_side(UidJob.run, jobs, self.workers)
            for part, identifiers in zip(self.selected.parts(), found, strict=True):
                _add(sorter, part, identifiers)
                self._read(part)

        self._sorted_numbers("uid", _UID, fill)

    def _clip_ood(self) -> None:
        def fill(sorter: Sorter) -> None:
            for part in self.selected.parts():
                identifiers = decimal(part.keys)
                _refuse_no_number(part, identifiers)
                _refuse_twins(part)
                _add(sorter, part, identifiers)
                self._read(part)

        self._sorted_numbers("key", np.dtype("i8"), fill)

    def _sorted_numbers(
        self, noun: str, dtype: np.dtype[Any], fill: Callable[[Sorter], None]
    ) -> None:
        """Write the identifiers of kept rows as a sorted .npy file."""
        with atomic_path(self.out) as temporary:
            sorter = Sorter(self.out.parent)
            fill(sorter)
            written = np.lib.format.open_memmap(
                temporary, mode="w+", dtype=dtype, shape=(self.selected.kept,)
            )
            done = 0
            try:
                for high, low in sorter.sorted_kept():
                    block = written[done : done + len(low)]
                    if dtype == _UID:
                        block["f0"], block["f1"] = high, low
                    else:
                        block[:] = low
                    done += len(low)
            except DuplicateError as error:
                first, second = map(self.selected.name, error.rows)
                raise ValueError(
                    f"{first} and {second} have the same {noun}, and at least one of them is kept: "
                    f"by its {noun} nobody could tell which"
                ) from error
            if done != self.selected.kept:
                raise ValueError(f"{self.selected.kept} rows are kept, but {done} were written")
            written.flush()

    # names

    def _parquet(self) -> None:
        import pyarrow
        import pyarrow.parquet

        has_uid = "uid" in self.selected.part(0).embeddings.arrays
        names = ["shard", "key", *(["uid"] if has_uid else [])]
        schema = pyarrow.schema([(name, pyarrow.string()) for name in names])
        with (
            atomic_path(self.out) as temporary,
            pyarrow.parquet.ParquetWriter(temporary, schema) as writer,
        ):
            for part in self.selected.parts():
                rows = np.flatnonzero(part.keep)
                shards = [part.sources[number] for number in part.embeddings["shard"][rows]]
                columns = [shards, *(part.embeddings.text(name, rows) for name in names[1:])]
                for column in columns:
                    _refuse(part, rows, column, _is_no_text, "Parquet's texts are UTF-8")
                writer.write_table(pyarrow.table(dict(zip(names, columns, strict=True)), schema))
                self._read(part)

    def _list(self) -> None:
        with atomic_folder(self.out) as folder:
            names: dict[str, str] = {}
            for part in self.selected.parts():
                self._append_lists(folder, part, names)
                self._read(part)

    def _append_lists(self, folder: Path, part: Part, names: dict[str, str]) -> None:
        """Append an embeddings file's keys to the lists of its tars; there is one for each tar."""
        for source in part.sources:
            stem = source.partition(".")[0]
            if names.setdefault(stem, source) != source:
                raise ValueError(f"{names[stem]} and {source} would share the list {stem}.txt")
            (folder / f"{stem}.txt").touch()
        rows = np.flatnonzero(part.keep)
        keys = part.embeddings.text("key", rows)
        _refuse(part, rows, keys, _is_no_line, "a line is a key")
        shards = np.asarray(part.embeddings["shard"])[rows].tolist()
        with ExitStack() as stack:
            opened: tuple[int, BinaryIO] | None = None
            for shard, key in sorted(zip(shards, keys, strict=True), key=lambda pair: pair[0]):
                if opened is None or opened[0] != shard:
                    stack.close()
                    path = folder / f"{part.sources[shard].partition('.')[0]}.txt"
                    opened = shard, stack.enter_context(path.open("ab"))
                opened[1].write(os.fsencode(key) + b"\n")


def _add(sorter: Sorter, part: Part, found: Identifiers) -> None:
    rows = np.arange(part.first, part.first + len(part.keep), dtype=np.uint64)
    valid = found.valid  # of the others none is kept
    sorter.add(found.high[valid], found.low[valid], rows[valid], part.keep[valid])


def _refuse_no_number(part: Part, found: Identifiers) -> None:
    wrong = np.flatnonzero(part.keep & ~found.valid)
    if len(wrong):
        raise ValueError(
            f"{part.name(int(wrong[0]))}: the key is no number below 2^63 in decimal digits, which "
            "clip-ood takes samples by"
        )


def _refuse_twins(part: Part) -> None:
    """A sample that was skipped because another of its tar has its key: the key means both."""
    skipped = [part.embeddings.text(name) for name in ("skipped_key", "skipped_reason")]
    for name, reason in zip(*skipped, strict=True):
        source, _, key = name.partition(":")
        if reason != "duplicate key":
            continue
        same = part.keep & (part.keys == key.encode("utf-8", "surrogateescape"))
        twins = [part.name(int(row)) for row in np.flatnonzero(same)]
        if f"{source}: {key}" in twins:
            raise ValueError(
                f"{source}: {key}: two samples of the tar have this key, and only the first of "
                "them is a row: clip-ood would take both"
            )


def _refuse(
    part: Part, rows: Array, values: Sequence[str], is_wrong: Callable[[str], bool], why: str
) -> None:
    for row, value in zip(rows.tolist(), values, strict=True):
        if is_wrong(value):
            raise ValueError(f"{part.name(row)!r}: {value!r} can't be written, {why}")


def _is_no_text(value: str) -> bool:
    return not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value)


def _is_no_line(value: str) -> bool:
    return "\n" in value or "\r" in value


def _side_by_side(work: Callable[[T], U], jobs: Sequence[T], workers: int) -> Iterator[U]:
    """Do jobs in several processes; results come in order, and few are held at a time."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    if min(workers, len(jobs)) < 2:
        yield from map(work, jobs)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from ordered(pool, work, jobs, workers)
