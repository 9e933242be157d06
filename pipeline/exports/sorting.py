"""Sorting identifiers of hundreds of millions of rows in bounded memory; duplicates are refused.

Sorted runs go to files that have no name, so that nothing stays behind whatever ends the process.
They are merged range by range: the bounds of ranges are taken from samples of every run, so that a
range fits into memory whatever the identifiers look like.

A row that has its identifier together with another row can't be selected by it: that is an error if
either of them is kept, for whoever reads the export would take both.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

_RECORD = np.dtype([("high", "<u8"), ("low", "<u8"), ("row", "<u8"), ("keep", "?")])
RUN_ROWS = 1 << 22
"""Rows of a run, and nearly of a range: 100 MB, and about three times as much to sort them."""
_SAMPLES = 256
"""Of each run, evenly spaced."""


class DuplicateError(ValueError):
    """Two rows have one identifier, and at least one of them is kept."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"rows {first} and {second} have the same identifier")
        self.rows = first, second


@dataclass(frozen=True)
class _Run:
    """Sorted records in a file without a name. Read, not mapped: a map would fill the memory."""

    file: IO[bytes]
    samples: Array
    length: int

    @classmethod
    def write(cls, records: Array, folder: Path) -> _Run:
        file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - lives as long as the run
        file.write(records.view(np.uint8).data)
        file.flush()
        return cls(file, records[:: max(1, len(records) // _SAMPLES)].copy(), len(records))

    def read(self, start: int, stop: int) -> Array:
        self.file.seek(start * _RECORD.itemsize)
        return np.frombuffer(self.file.read((stop - start) * _RECORD.itemsize), dtype=_RECORD)

    def first_not_below(self, bound: tuple[int, int], start: int) -> int:
        """The first record from `start` on that is not below an identifier."""
        low, high = start, self.length
        while low < high:
            middle = (low + high) // 2
            (record,) = self.read(middle, middle + 1)
            if (int(record["high"]), int(record["low"])) < bound:
                low = middle + 1
            else:
                high = middle
        return low


@dataclass
class Sorter:
    """Sorts (high, low) pairs of 64 bits, each of a row that is kept or not."""

    folder: Path
    """Where the runs are written: 25 bytes a row."""
    run_rows: int = RUN_ROWS
    _waiting: list[Array] = field(default_factory=list)
    _runs: list[_Run] = field(default_factory=list)
    _duplicate: tuple[int, int] | None = None

    def add(self, high: Array, low: Array, rows: Array, keep: Array) -> None:
        """Add rows.

        Args:
            high: (n,) uint64.
            low: (n,) uint64.
            rows: (n,) numbers of rows, ascending over all calls.
            keep: (n,) bool.
        """
        records = np.empty(len(rows), dtype=_RECORD)
        for name, values in zip(_RECORD.names or (), (high, low, rows, keep), strict=True):
            records[name] = values
        while len(records):
            room = self.run_rows - sum(map(len, self._waiting))
            self._waiting.append(records[:room])
            records = records[room:]
            if sum(map(len, self._waiting)) == self.run_rows:
                self._write_run()

    def _write_run(self) -> None:
        if not self._waiting:
            return
        run = self._without_duplicates(_sorted(np.concatenate(self._waiting)))
        self._waiting.clear()
        self._runs.append(_Run.write(run, self.folder))

    def _without_duplicates(self, records: Array) -> Array:
        """Note the first duplicate that counts; of those that do not, keep one."""
        again = _like_the_one_before(records)
        if not again.any():
            return records
        group = np.cumsum(~again) - 1
        kept = np.bincount(group, weights=records["keep"]) > 0
        size = np.bincount(group)
        start = np.flatnonzero(~again)[(size > 1) & kept]
        if len(start):
            first = start[np.argmin(records["row"][start])]
            pair = int(records["row"][first]), int(records["row"][first + 1])
            self._duplicate = min(self._duplicate or pair, pair)
        return records[~again]

    def sorted_kept(self) -> Iterator[tuple[Array, Array]]:
        """Yield the pairs of kept rows, in order; to be called once, at the end.

        Raises:
            DuplicateError: after the last pair, so that the first duplicate of all is named.
        """
        self._write_run()
        at = [0] * len(self._runs)
        for bound in [*self._bounds(), None]:
            ends = [
                run.length if bound is None else run.first_not_below(bound, start)
                for run, start in zip(self._runs, at, strict=True)
            ]
            parts = [run.read(a, b) for run, a, b in zip(self._runs, at, ends, strict=True)]
            at = ends
            if parts:
                records = self._without_duplicates(_sorted(np.concatenate(parts)))
                kept = records[records["keep"]]
                yield kept["high"], kept["low"]
        if self._duplicate:
            raise DuplicateError(*self._duplicate)

    def _bounds(self) -> list[tuple[int, int]]:
        """Identifiers between which there are about `run_rows` rows."""
        if len(self._runs) < 2:
            return []
        samples = _sorted(np.concatenate([run.samples for run in self._runs]))
        samples = samples[_SAMPLES::_SAMPLES]
        pairs = zip(samples["high"].tolist(), samples["low"].tolist(), strict=True)
        return list(dict.fromkeys(pairs))


def _sorted(records: Array) -> Array:
    """By identifier; those with the same one stay as they are, which is by row."""
    high = np.ascontiguousarray(records["high"])
    if (high == high[:1]).all():  # numbers of 64 bits
        return records[np.argsort(records["low"], kind="stable")]
    order = np.argsort(high, kind="stable")
    if (np.diff(high[order]) == 0).any():
        order = np.lexsort((records["low"], high))
    return records[order]


def _like_the_one_before(records: Array) -> Array:
    again = np.zeros(len(records), dtype=bool)
    same = records["high"][1:] == records["high"][:-1]
    again[1:] = same & (records["low"][1:] == records["low"][:-1])
    return again
