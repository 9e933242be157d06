"""The HDF5 files of a run: schemas, written and read here only, checked both ways.

A file holds contiguous, uncompressed, aligned datasets, each with the xxh3 of its bytes, and says
for which digest it was made. Arrays are read through a memory map.

Letters in shapes: n rows of a file, d dimensions, m queries (test images) of one test set, M of all
test sets, S test sets, k neighbours, c classes or clusters, f embeddings files.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from hpc.files import atomic_path, read_json
from hpc.stage import OutputError

# Locks hang on network file systems; files appear by rename and are never changed.
os.environ["HDF5_USE_FILE_LOCKING"] = "FALSE"

if TYPE_CHECKING:
    import h5py

Array = np.ndarray[Any, np.dtype[Any]]

_ALIGNMENT = {"alignment_threshold": 65536, "alignment_interval": 4096}
_HASH = "xxh3"
_ESCAPE = "surrogateescape"  # a tar's names need not be UTF-8
_BLOCK_BYTES = 1 << 26


@dataclass(frozen=True)
class Schema:
    """What a kind of file holds."""

    kind: str
    datasets: Mapping[str, tuple[str, tuple[str, ...]]]
    """Name -> (type, shape as letters). Type `str` is fixed-length UTF-8."""
    attributes: tuple[str, ...]
    optional: tuple[str, ...] = ()
    """Datasets that need not be there."""


EMBEDDINGS = Schema(
    "embeddings",
    {
        "embedding": ("float16", ("n", "d")),  # unit rows
        "key": ("str", ("n",)),
        "shard": ("int32", ("n",)),  # index into the attribute `sources`
        "label": ("int32", ("n",)),  # index into the attribute `classes`
        "uid": ("str", ("n",)),  # of precomputed embeddings whose metadata have one
        "span_offset": ("int64", ("n",)),  # the sample's blocks in its tar, the pool's only
        "span_size": ("int64", ("n",)),  # in bytes; 0 if they do not lie side by side
        "skipped_key": ("str", ("s",)),
        "skipped_reason": ("str", ("s",)),
    },
    ("model", "pretrained", "precision", "preprocessing", "sources", "classes", "read", "faults"),
    optional=("label", "uid", "span_offset", "span_size"),
)
CENTROIDS = Schema(
    "centroids",
    {"centroid": ("float32", ("c", "d"))},
    ("seed", "iterations", "rows", "trained_on", "device"),
)
ASSIGNMENT = Schema(
    "assignment",
    {"cluster": ("int32", ("n",))},  # of each row of the embeddings file
    ("clusters", "device"),
)
DUPLICATES = Schema(
    "duplicates",
    {
        # A row that is dropped, by rising identity, and the lowest row that it duplicates.
        "file": ("int32", ("n",)),
        "row": ("int64", ("n",)),
        "kept_file": ("int32", ("n",)),  # it may itself be dropped
        "kept_row": ("int64", ("n",)),
        "similarity": ("float64", ("n",)),
    },
    # `rows`: pool rows in clusters first_cluster:last_cluster; over all files, all of the pool.
    ("threshold", "clusters", "first_cluster", "last_cluster", "rows", "backend"),
)
REFERENCE = Schema(
    "reference",
    {
        "threshold": ("float64", ("m",)),  # tau
        "neighbour_similarity": ("float64", ("m", "k")),  # best first; -inf where there is none
        "neighbour_row": ("int64", ("m", "k")),  # row of the reference; -1 where there is none
    },
    ("test", "threshold_from", "backend", "reference_files"),
)
SIMILARITY = Schema(
    "similarity",
    {
        "near": ("bool", ("n", "S")),
        "best_similarity": ("float32", ("n", "S")),
        "best_query": ("int32", ("n", "S")),  # counted within the test set
        "above_threshold": ("int64", ("M",)),
        "neighbour_similarity": ("float64", ("M", "k")),
        "neighbour_row": ("int64", ("M", "k")),  # row of this embeddings file
    },
    ("tests", "offsets", "backend", "rechecked", "epsilon"),
)
MASK = Schema(
    "mask",
    {"keep": ("uint8", ("b",)), "rows": ("int64", ("f",))},  # packed bits, file after file
    # `plus_reference`: caption template of the reference's images, null if they stay out.
    ("split", "definition", "rows_total", "kept", "plus_reference"),
)
EVALUATION = Schema(
    "evaluation",
    {
        "key": ("str", ("m",)),
        "label": ("int32", ("m",)),
        "logits": ("float32", ("m", "c")),
        "class_accuracy": ("float64", ("c",)),  # nan for a class without images
        "skipped_key": ("str", ("s",)),
        "skipped_reason": ("str", ("s",)),
    },
    (
        *("split", "seed", "test", "model", "pretrained", "classes", "templates", "read"),
        *("ignored_folders", "accuracy", "top5", "mean_per_class"),  # accuracy is top-1's
    ),
)
FEATURES = Schema(
    "features",
    {
        "feature": ("float32", ("n", "d")),  # unit rows
        "label": ("int32", ("n",)),  # index into the attribute `classes`
        "key": ("str", ("n",)),
        "skipped_key": ("str", ("s",)),
        "skipped_reason": ("str", ("s",)),
    },
    ("split", "seed", "classes", "read"),
)


@dataclass(frozen=True)
class Artifact:
    """An open artefact: arrays by name, attributes, and where it lies."""

    path: Path
    digest: str
    arrays: Mapping[str, Array]
    attributes: Mapping[str, Any]

    def __getitem__(self, name: str) -> Array:
        return self.arrays[name]

    def text(self, name: str, rows: Array | slice = slice(None)) -> list[str]:
        """Rows of a `str` dataset as Python strings."""
        return [value.decode("utf-8", _ESCAPE) for value in self.arrays[name][rows].tolist()]


@dataclass(frozen=True)
class Blocks:
    """An array that is not in memory: its rows come in blocks, once, in order."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    blocks: Iterator[Array]

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)


def encode_text(values: list[str]) -> Array:
    """Strings as a fixed-length UTF-8 array, the form of a `str` dataset."""
    encoded = [value.encode("utf-8", _ESCAPE) for value in values]
    return np.array(encoded, dtype=f"S{max(map(len, encoded), default=0) or 1}")


def write(
    path: Path,
    schema: Schema,
    digest: str,
    arrays: Mapping[str, Array | Blocks],
    attributes: Mapping[str, Any],
) -> None:
    """Write an artefact; it appears whole or not at all.

    Args:
        path: where.
        schema: what it has to hold.
        digest: the digest of the task that makes it.
        arrays: the datasets.
        attributes: JSON values.

    Raises:
        ValueError: arrays or attributes are not those of the schema.
    """
    import h5py

    _check(path, schema, arrays, attributes, ValueError)
    with (
        atomic_path(path) as temporary,
        h5py.File(temporary, "w", libver="latest", **_ALIGNMENT) as file,
    ):
        file.attrs["kind"] = schema.kind
        file.attrs["digest"] = digest
        for name, value in attributes.items():
            file.attrs[name] = json.dumps(value, ensure_ascii=False)
        for name, array in arrays.items():
            dataset = file.create_dataset(name, array.shape, _stored_type(array.dtype))
            if isinstance(array, Blocks):
                dataset.attrs[_HASH] = _write_blocks(dataset, array)
                continue
            array = np.ascontiguousarray(array)
            if array.size:
                dataset.id.write(h5py.h5s.ALL, h5py.h5s.ALL, array, dataset.id.get_type())
            dataset.attrs[_HASH] = _hash(array)


def _write_blocks(dataset: h5py.Dataset, array: Blocks) -> str:
    """Write block after block; returns the hash of the whole."""
    digest, done = xxhash.xxh3_64(), 0
    for block in array.blocks:
        block = np.ascontiguousarray(block, dtype=array.dtype)
        dataset[done : done + len(block)] = block
        digest.update(block.reshape(-1).view(np.uint8).data)
        done += len(block)
    if done != len(dataset):
        raise ValueError(f"{dataset.name}: expected {len(dataset)} rows, the blocks have {done}")
    return digest.hexdigest()


def read(path: Path, schema: Schema) -> Artifact:
    """Open an artefact; arrays are memory maps, nothing is read yet.

    Raises:
        OutputError: the file is missing, can't be opened, or is not of this schema.
    """
    import h5py

    try:
        with h5py.File(path, "r") as file:
            kind = file.attrs.get("kind")
            if kind != schema.kind:
                raise OutputError(f"{path}: expected a file of {schema.kind}, found {kind!r}")
            arrays = {name: _map(path, dataset) for name, dataset in file.items()}
            attributes = {name: json.loads(file.attrs[name]) for name in schema.attributes}
            digest = str(file.attrs["digest"])
    except FileNotFoundError:
        raise OutputError(f"{path} is missing") from None
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        raise OutputError(f"{path}: can't be read: {error}") from error
    _check(path, schema, arrays, attributes, OutputError)
    return Artifact(path, digest, arrays, attributes)


def prefetch(*paths: Path) -> None:
    """Read files in a thread, one after the other, so that a memory map finds them in memory.

    A missing file is left to whoever reads it. The thread ends with the process.
    """

    def read_all() -> None:
        buffer = bytearray(_BLOCK_BYTES >> 2)
        for path in paths:
            with suppress(OSError), path.open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass

    threading.Thread(target=read_all, daemon=True, name="prefetch").start()


def verify(path: Path, schema: Schema, digest: str) -> dict[str, str]:
    """Read an artefact whole and compare every dataset with its hash.

    Returns:
        The hash of each dataset.

    Raises:
        OutputError: it can't be opened, was made for another digest, or a dataset has changed.
    """
    import h5py

    artifact = read(path, schema)
    if artifact.digest != digest:
        raise OutputError(f"{path}: made for digest {artifact.digest}, expected {digest}")
    hashes = {name: _hash(array) for name, array in artifact.arrays.items()}
    with h5py.File(path, "r") as file:
        stored = {name: str(dataset.attrs.get(_HASH)) for name, dataset in file.items()}
    for name, found in hashes.items():
        if found != stored[name]:
            raise OutputError(
                f"{path}: dataset {name} is damaged: hash {found}, not {stored[name]}"
            )
    return hashes


def fingerprint(hashes: Mapping[str, str]) -> str:
    """One hash for several."""
    return xxhash.xxh3_64_hexdigest(json.dumps(dict(hashes), sort_keys=True).encode())


def hash_file(path: Path) -> str:
    """xxh3 of a file's bytes; "missing" if it is not there."""
    digest = xxhash.xxh3_64()
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
    except FileNotFoundError:
        return "missing"
    return digest.hexdigest()


def check_record(path: Path, digest: str) -> dict[str, str]:
    """See that a JSON file is whole and was made for a digest, which it holds.

    Returns:
        Its hash.

    Raises:
        OutputError: it is not.
    """
    try:
        made_for = read_json(path)["digest"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise OutputError(f"{path}: can't be read: {error!r}") from error
    if made_for != digest:
        raise OutputError(f"{path}: made for digest {made_for}, expected {digest}")
    return {"": hash_file(path)}


def keep_of(mask: Artifact, index: int) -> Array:
    """Which rows of embeddings file `index` a mask keeps, (n,) bool."""
    rows = mask["rows"]
    starts = np.concatenate([[0], np.cumsum((rows + 7) // 8)])
    packed = np.asarray(mask["keep"][starts[index] : starts[index + 1]])
    return np.unpackbits(packed, count=int(rows[index])).astype(bool)


def hash_array(array: Array) -> str:
    """xxh3 of an array's bytes, row after row."""
    return _hash(np.ascontiguousarray(array))


def _stored_type(dtype: np.dtype[Any]) -> Any:
    import h5py

    return h5py.string_dtype("utf-8", dtype.itemsize) if dtype.kind == "S" else dtype


def _map(path: Path, dataset: h5py.Dataset) -> Array:
    dtype = np.dtype(f"S{dataset.dtype.itemsize}") if dataset.dtype.kind == "S" else dataset.dtype
    offset = dataset.id.get_offset()
    if dataset.size == 0 or offset is None:
        return np.asarray(dataset[()], dtype=dtype).reshape(dataset.shape)
    if offset + dataset.size * dtype.itemsize > path.stat().st_size:
        raise OutputError(f"{path}: dataset {dataset.name} ends after the file does")
    return np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=dataset.shape)


def _hash(array: Array) -> str:
    digest = xxhash.xxh3_64()
    flat = array.reshape(-1)
    step = max(1, _BLOCK_BYTES // max(1, array.itemsize))
    for start in range(0, len(flat), step):
        digest.update(np.ascontiguousarray(flat[start : start + step]).view(np.uint8).data)
    return digest.hexdigest()


def _check(
    path: Path,
    schema: Schema,
    arrays: Mapping[str, Array | Blocks],
    attributes: Mapping[str, Any],
    error: type[Exception],
) -> None:
    required = [name for name in schema.datasets if name not in schema.optional]
    missing = [name for name in required if name not in arrays]
    missing += [name for name in schema.attributes if name not in attributes]
    unknown = [name for name in arrays if name not in schema.datasets]
    if missing or unknown:
        raise error(f"{path}: {schema.kind} file lacks {missing}, has unknown {unknown}")
    sizes: dict[str, int] = {}
    for name, array in arrays.items():
        kind, letters = schema.datasets[name]
        found = "str" if array.dtype.kind == "S" else array.dtype.name
        shape = tuple(
            sizes.setdefault(letter, size)
            for letter, size in zip(letters, array.shape, strict=False)
        )
        if found != kind or shape != array.shape or len(letters) != array.ndim:
            expected = f"{kind} {letters} = {tuple(sizes.get(letter) for letter in letters)}"
            raise error(f"{path}: {name}: expected {expected}, found {found} {array.shape}")
