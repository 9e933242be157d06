"""Embeddings that were made elsewhere: which files there are, and what they hold.

Three forms: a folder of clip-retrieval (`img_emb/img_emb_{i}.npy` with
`metadata/metadata_{i}.parquet`), .npy files with or without Parquet files, and HDF5 files.

Letters in shapes: n rows of a file, d dimensions, b rows of a block.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpc.stage import Progress
from hpc.words import count, nearest
from pipeline.data.patterns import expand_files

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]

HDF5_SUFFIXES = (".h5", ".hdf5")
LENGTH_TOLERANCE = 2.0**-9
"""How far a row's length may be from 1. A length, a quotient and a stored value in float16 are each
off by at most 2^-11."""
_BLOCK_ROWS = 1 << 14
_FLOATS = ("float16", "float32", "float64")
_EMBEDDING = "embedding"


@dataclass(frozen=True)
class PrecomputedFile:
    """A file of embeddings; its partner holds the keys."""

    path: Path
    """.npy or HDF5."""
    metadata: Path | None
    """Parquet; None for HDF5, and for .npy files whose rows have no names."""

    @property
    def is_hdf5(self) -> bool:
        """Whether keys are in the file itself."""
        return self.path.suffix in HDF5_SUFFIXES


@dataclass(frozen=True)
class Columns:
    """Names of what goes with each row; None where the usual name will do."""

    key: str | None
    uid: str | None
    shard: str | None


@dataclass(frozen=True)
class RowNames:
    """What is known of each row of a file besides its embedding."""

    keys: list[str]
    uids: list[str] | None
    shards: list[Any] | None
    """Name or number of each row's tar."""


# which files there are


def find_files(files: str | list[str], metadata: str | list[str] | None) -> list[PrecomputedFile]:
    """Find embeddings, each with its partner, in natural order.

    Args:
        files: folders of clip-retrieval, or paths, globs and ranges of .npy and HDF5 files.
        metadata: Parquet files that go with .npy files, one for each.

    Raises:
        FileNotFoundError: a pattern matches nothing, or a file has no partner.
        ValueError: numbers have a gap or appear twice, or a file is of another kind.
    """
    found: list[PrecomputedFile] = []
    partners = [] if metadata is None else expand_files(metadata, "file")
    for path in expand_files(files, "file"):
        found += _in_folder(path) if path.is_dir() else [PrecomputedFile(path, None)]
    for file in found:
        if file.path.suffix != ".npy" and not file.is_hdf5:
            raise ValueError(f"{file.path}: expected a folder of clip-retrieval, .npy or .h5")
    return _with_partners(found, partners) if metadata is not None else found


def _with_partners(
    found: Sequence[PrecomputedFile], partners: Sequence[Path]
) -> list[PrecomputedFile]:
    wrong = next((file for file in found if file.metadata or file.is_hdf5), None)
    if wrong is not None:
        raise ValueError(f"{wrong.path} brings its own metadata: give metadata for .npy files only")
    if len(found) != len(partners):
        raise ValueError(
            f"{count(len(found), 'file')} of embeddings, but {len(partners)} of metadata; the "
            f"first are {found[0].path} and {partners[0]}"
        )
    return [PrecomputedFile(a.path, b) for a, b in zip(found, partners, strict=True)]


def _in_folder(folder: Path) -> list[PrecomputedFile]:
    """The files of a folder that clip-retrieval wrote.

    The padding of its numbers depends on how many partitions there were, and so does not count.
    """
    rows = _numbered(folder / "img_emb", "img_emb_", ".npy")
    names = _numbered(folder / "metadata", "metadata_", ".parquet")
    for number, path in names.items():
        if number not in rows:
            raise FileNotFoundError(f"{path} has no partner: {folder}/img_emb/img_emb_{number}.npy")
    for number, path in rows.items():
        if number not in names:
            expected = f"{folder}/metadata/metadata_{number}.parquet"
            raise FileNotFoundError(f"{path} has no partner: {expected}")
    gap = next((number for number in range(len(rows)) if number not in rows), None)
    if gap is not None:
        raise ValueError(
            f"{folder}/img_emb: {count(len(rows), 'file')} numbered up to {max(rows)}, but no "
            f"img_emb_{gap}.npy; if it was never written, list the others as files and metadata"
        )
    return [PrecomputedFile(rows[number], names[number]) for number in sorted(rows)]


def _numbered(folder: Path, prefix: str, suffix: str) -> dict[int, Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"no such folder: {folder}; expected a folder of clip-retrieval")
    pattern = re.compile(re.escape(prefix) + r"([0-9]+)" + re.escape(suffix))
    found: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        if match := pattern.fullmatch(path.name):
            number = int(match[1])
            if number in found:
                raise ValueError(f"{path} and {found[number].name} have the same number")
            found[number] = path
    if not found:
        raise FileNotFoundError(f"{folder}: no {prefix}0{suffix} or the like")
    return found


# what they hold


@contextmanager
def open_rows(file: PrecomputedFile, dimensions: int) -> Iterator[Any]:
    """Open a file's embeddings, without reading them.

    Args:
        file: the file.
        dimensions: d of the model that is said to have made them.

    Yields:
        (n, d) floats that can be sliced by rows.

    Raises:
        ValueError: it can't be read, is no matrix of floats, or has other dimensions.
    """
    import h5py
    import numpy as np

    if not file.is_hdf5:
        try:
            rows: Any = np.load(file.path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise ValueError(f"{file.path}: can't be read as .npy: {error}") from error
        _check_rows(file.path, rows, dimensions)
        yield rows
        return
    with _hdf5(file.path) as opened:
        if not isinstance(opened.get(_EMBEDDING), h5py.Dataset):
            raise ValueError(f"{file.path}: no dataset {_EMBEDDING!r}; found {', '.join(opened)}")
        _check_rows(file.path, opened[_EMBEDDING], dimensions)
        yield opened[_EMBEDDING]


@contextmanager
def _hdf5(path: Path) -> Iterator[Any]:
    import h5py

    try:
        opened = h5py.File(path, "r")
    except OSError as error:
        raise ValueError(f"{path}: can't be read as HDF5: {error}") from error
    with opened:
        yield opened


def _check_rows(path: Path, rows: Any, dimensions: int) -> None:
    if len(rows.shape) != 2 or rows.dtype.name not in _FLOATS:
        raise ValueError(
            f"{path}: expected rows of {dimensions} floats, found {rows.dtype} {rows.shape}"
        )
    if rows.shape[1] != dimensions:
        raise ValueError(
            f"{path}: rows of {rows.shape[1]} dimensions, but the embedder's have {dimensions}"
        )


def unit_blocks(
    file: PrecomputedFile, rows: Any, used: Sequence[int], progress: Progress
) -> Iterator[Array]:
    """Read rows block by block, and normalise and round them as if they were embedded here.

    Args:
        file: where they are from.
        rows: as `open_rows` gives them.
        used: the rows that are wanted, ascending; all are checked.
        progress: told how many are read.

    Yields:
        (b, d) float16.

    Raises:
        ValueError: a row is not finite, zero, or not of length one; the message names it.
    """
    import numpy as np
    import torch

    from pipeline.models import stored_rows, unit_rows

    chosen = np.asarray(used, dtype=np.int64)
    for start in range(0, len(rows), _BLOCK_ROWS):
        block = np.ascontiguousarray(rows[start : start + _BLOCK_ROWS], dtype=np.float64)
        unit, lengths = unit_rows(torch.from_numpy(block))
        _check_lengths(file.path, start, lengths.numpy())
        low, high = np.searchsorted(chosen, [start, start + len(block)])
        yield stored_rows(unit)[chosen[low:high] - start]
        progress(start + len(block), len(rows), "images")


def _check_lengths(path: Path, start: int, lengths: Array) -> None:
    import numpy as np

    bad = np.flatnonzero(~(np.abs(lengths - 1) <= LENGTH_TOLERANCE))
    if len(bad):
        length = float(lengths[bad[0]])
        found = f"length {length:.6g}" if np.isfinite(length) else "values that are not finite"
        raise ValueError(
            f"{path}: row {start + int(bad[0])}: expected length 1 within {LENGTH_TOLERANCE:.4f}, "
            f"found {'only zeros' if length == 0 else found}"
        )


def read_names(file: PrecomputedFile, columns: Columns, rows: int) -> RowNames:
    """Read what goes with each row; rows without names are called `<file>:<row>`.

    Args:
        file: the file.
        columns: the names of its columns.
        rows: how many embeddings it has.

    Raises:
        ValueError: it can't be read, a column is missing or has empty values, or there are not as
            many rows as embeddings.
    """
    if file.is_hdf5:
        with _hdf5(file.path) as opened:
            return _names(file, file.path, _Hdf5Table(opened), columns, rows)
    if file.metadata is not None:
        return _names(file, file.metadata, _parquet(file.metadata), columns, rows)
    asked = next((name for name in (columns.key, columns.uid, columns.shard) if name), None)
    if asked is not None:
        raise ValueError(f"{file.path}: no column {asked!r}: give its Parquet files as metadata")
    return RowNames(_numbered_keys(file.path, rows), None, None)


def _names(file: PrecomputedFile, path: Path, table: Any, columns: Columns, rows: int) -> RowNames:
    usual = "key" if file.is_hdf5 else "image_path"
    if columns.key is None and file.is_hdf5 and usual not in table.names:
        keys = _numbered_keys(path, rows)
    else:
        keys = list(map(str, _column(file, path, table, columns.key or usual, rows)))
    wants_uid = columns.uid is not None or "uid" in table.names
    uids = _column(file, path, table, columns.uid or "uid", rows, "") if wants_uid else None
    shards = columns.shard and _column(file, path, table, columns.shard, rows)
    return RowNames(keys, None if uids is None else list(map(str, uids)), shards or None)


def _numbered_keys(path: Path, rows: int) -> list[str]:
    return [f"{path.stem}:{row}" for row in range(rows)]


def _column(
    file: PrecomputedFile, path: Path, table: Any, name: str, rows: int, empty: Any = None
) -> list[Any]:
    """Read a column whole; `empty` stands for no value, or else there has to be one."""
    if name not in table.names:
        raise ValueError(f"{path}: no column {name!r}; {nearest(name, table.names)}")
    values: list[Any] = table.read(name)
    if len(values) != rows:
        raise ValueError(
            f"{path} has {count(len(values), 'row')}, but {file.path} has "
            f"{count(rows, 'embedding')}"
        )
    values = [empty if value is None else value for value in values]
    if None in values:
        raise ValueError(f"{path}: row {values.index(None)}: no {name}")
    return values


@dataclass(frozen=True)
class _Hdf5Table:
    file: Any

    @property
    def names(self) -> list[str]:
        return list(self.file)

    def read(self, name: str) -> list[Any]:
        values = self.file[name][()].tolist()
        return [
            value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value
            for value in values
        ]


@dataclass(frozen=True)
class _ParquetTable:
    path: Path
    names: list[str]

    def read(self, name: str) -> list[Any]:
        import pyarrow
        import pyarrow.parquet

        try:
            column = pyarrow.parquet.read_table(self.path, columns=[name]).column(0)
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"{self.path}: can't be read as Parquet: {error}") from error
        values: list[Any] = column.to_pylist()
        return values


def _parquet(path: Path) -> _ParquetTable:
    import pyarrow
    import pyarrow.parquet

    try:
        return _ParquetTable(path, pyarrow.parquet.read_schema(path).names)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path}: can't be read as Parquet: {error}") from error
