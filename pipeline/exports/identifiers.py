"""What identifies a row elsewhere: DataComp's 128-bit uid, or img2dataset's key as a number."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.artifacts import encode_text
from pipeline.data.tars import index_shard, read_span
from pipeline.exports.selected import Part, Selected

Array = np.ndarray[Any, np.dtype[Any]]

HEX_DIGITS = 32
_SAFE_DIGITS = 18
"""Decimal digits that fit into 64 bits, whichever they are."""
_NIBBLES = np.full(256, 255, dtype=np.uint8)
_NIBBLES[np.frombuffer(b"0123456789", np.uint8)] = np.arange(10)
_NIBBLES[np.frombuffer(b"abcdef", np.uint8)] = np.arange(10, 16)
_NIBBLES[np.frombuffer(b"ABCDEF", np.uint8)] = np.arange(10, 16)


@dataclass(frozen=True)
class Identifiers:
    """Of the rows of one embeddings file, as two halves."""

    high: Array
    """(n,) uint64."""
    low: Array
    """(n,) uint64."""
    valid: Array
    """(n,) bool: whether a row has one."""


def hexadecimal(values: Array) -> Identifiers:
    """Read 128-bit numbers.

    Args:
        values: (n,) fixed-length bytes, 32 hexadecimal digits each.
    """
    width = values.dtype.itemsize
    padded = values.astype(f"S{HEX_DIGITS}") if width < HEX_DIGITS else values
    text = _letters(padded)
    digits = _NIBBLES[text[:, :HEX_DIGITS]]
    valid = (digits < 16).all(axis=1) & (text[:, HEX_DIGITS:] == 0).all(axis=1)
    halves = []
    for columns in (digits[:, :16], digits[:, 16:]):
        half = np.zeros(len(values), dtype=np.uint64)
        for column in range(16):
            half = (half << np.uint64(4)) | (columns[:, column] & 15).astype(np.uint64)
        halves.append(half)
    return Identifiers(halves[0], halves[1], valid)


def decimal(values: Array) -> Identifiers:
    """Read numbers below 2^63; `high` is zero.

    Args:
        values: (n,) fixed-length bytes, decimal digits each.
    """
    text = _letters(values)
    used = text > 0
    digit = (text >= ord("0")) & (text <= ord("9"))
    valid: Array = used[:, 0] & (digit | ~used).all(axis=1)
    low = np.zeros(len(values), dtype=np.uint64)
    for column in range(min(text.shape[1], _SAFE_DIGITS)):
        value = low * np.uint64(10) + (text[:, column] & 15)
        low = np.where(used[:, column], value, low)
    for row in np.flatnonzero(valid & (used.sum(axis=1) > _SAFE_DIGITS)).tolist():
        number = int(values[row])
        valid[row] = number < 2**63
        low[row] = number % 2**63
    return Identifiers(np.zeros_like(low), low, valid)


def _letters(values: Array) -> Array:
    """(n, width) uint8 of (n,) fixed-length bytes."""
    flat = np.ascontiguousarray(values).view(np.uint8)
    return flat.reshape(len(values), values.dtype.itemsize)


# where uids are


@dataclass(frozen=True)
class UidJob:
    """Finding the uids of one embeddings file, in a process of its own."""

    selected: Selected
    index: int
    tars: Sequence[Path]
    """All that its rows may be in."""
    declared: Path | None
    """A Parquet file, or a folder with one for each tar, with columns `key` and `uid`."""

    def run(self) -> Identifiers:
        """Find them.

        Raises:
            ValueError: a kept row has none, or one that is no 128-bit number; the message names
                the first.
        """
        part = self.selected.part(self.index)
        values = self._values(part)
        found = hexadecimal(encode_text(["" if value is None else value for value in values]))
        wrong = np.flatnonzero(part.keep & ~found.valid)
        if len(wrong):
            row = int(wrong[0])
            raise ValueError(f"{part.name(row)} {self._complaint(values[row])}")
        return found

    def _complaint(self, value: str | None) -> str:
        if value:
            return f"has the uid {value!r}, expected 128 bits as {HEX_DIGITS} hexadecimal digits"
        if self.declared is not None:
            return f"has no uid in {self.declared}"
        return (
            "has no uid: neither its embeddings file nor the JSON in its tar has one; give a "
            "mapping (--uids)"
        )

    def _values(self, part: Part) -> Sequence[str | None]:
        if self.declared is not None:
            return _declared_uids(part, self.declared)
        if "uid" in part.embeddings.arrays:
            return part.embeddings.text("uid")
        return _uids_in_tars(part, self.tars)


def _of_each_tar(part: Part) -> Iterator[tuple[int, Array]]:
    """Yield each tar of an embeddings file with its rows."""
    shard = np.asarray(part.embeddings["shard"])
    order = np.argsort(shard, kind="stable")
    starts = np.flatnonzero(np.diff(shard[order], prepend=-1))
    for start, rows in zip(starts, np.split(order, starts[1:]), strict=True):
        yield int(shard[order[start]]), rows


def _uids_in_tars(part: Part, tars: Sequence[Path]) -> list[str | None]:
    """The `uid` in each sample's JSON."""
    sources = part.embeddings.attributes["sources"]
    uids: list[str | None] = [None] * len(part.keep)
    for number, rows in _of_each_tar(part) if tars else ():
        tar = tars[sources[number].get("position", number)]
        samples = {sample.key: sample for sample in index_shard(tar).samples}
        file = os.open(tar, os.O_RDONLY)
        try:
            for row, key in zip(rows.tolist(), part.embeddings.text("key", rows), strict=True):
                if key not in samples:
                    raise ValueError(f"{tar} has no sample {key!r} any more")
                if (span := samples[key].json) is not None:
                    uids[row] = _uid_in(read_span(file, span))
        finally:
            os.close(file)
    return uids


def _uid_in(data: bytes) -> str | None:
    try:
        value = json.loads(data)
    except ValueError:  # bytes that are not UTF-8 are one, too
        return None
    uid = value.get("uid") if isinstance(value, dict) else None
    return None if uid is None else str(uid)


def _declared_uids(part: Part, declared: Path) -> list[str | None]:
    """What a mapping says."""
    uids: list[str | None] = [None] * len(part.keep)
    for number, rows in _of_each_tar(part):
        source = part.sources[number]
        path = declared
        if declared.is_dir():
            path = declared / f"{source.partition('.')[0]}.parquet"
        known = _mapping(path, _version(path))
        for row, key in zip(rows.tolist(), part.embeddings.text("key", rows), strict=True):
            uids[row] = known.get((source, key), known.get(("", key)))
    return uids


def _version(path: Path) -> tuple[int, int]:
    """Size and modification time: a file that is written anew is read anew."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


@lru_cache(maxsize=1)
def _mapping(path: Path, version: tuple[int, int]) -> dict[tuple[str, str], str]:
    """(tar's file name, or "" if there is no column `shard`; key) -> uid.

    Raises:
        ValueError: the file can't be read, lacks a column, or gives a key two uids.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path}: can't be read as Parquet: {error}") from error
    for name in ("key", "uid"):
        if name not in table.column_names:
            found = ", ".join(table.column_names)
            raise ValueError(f"{path}: no column {name!r}; found {found}")
    has_shard = "shard" in table.column_names
    shards = table["shard"].to_pylist() if has_shard else [""] * len(table)
    known: dict[tuple[str, str], str] = {}
    columns = zip(shards, table["key"].to_pylist(), table["uid"].to_pylist(), strict=True)
    for row, (shard, key, uid) in enumerate(columns):
        if uid is not None and known.setdefault((str(shard), str(key)), str(uid)) != str(uid):
            more = "" if has_shard else "; a column `shard` would tell tars apart"
            raise ValueError(f"{path}: row {row}: another uid for the key {key!r}{more}")
    return known
