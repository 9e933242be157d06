"""What a study is made from, and how to tell that it has changed: cheap, no data read.

Identities go into digests. They hold names, sizes and times, never folders: data may move.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hpc.words import count
from pipeline.data.classes import ClassList, built_in, classes_of, read_class_list
from pipeline.data.folders import identity, other_folders
from pipeline.experiment import planned
from pipeline.experiment.fields import looks_like_file
from pipeline.experiment.sections import ImageSet, Pool


def file_identity(path: Path) -> list[Any]:
    """Name, size in bytes and modification time in nanoseconds."""
    status = path.stat()
    return [path.name, status.st_size, status.st_mtime_ns]


def model_identity(model: str) -> Any:
    """An open_clip name, or the content of a model config."""
    return json.loads(Path(model).read_text(encoding="utf-8")) if looks_like_file(model) else model


def weights_identity(pretrained: str) -> Any:
    """A pretrained tag, or the identity of a checkpoint."""
    return file_identity(Path(pretrained)) if looks_like_file(pretrained) else pretrained


def shard_identity(pool: Pool, path: Path) -> list[Any]:
    """The identity of a tar of the pool."""
    return planned.identity(path.name) if pool.planned else file_identity(path)


def pool_groups(pool: Pool) -> list[list[Path]]:
    """What each embeddings file of the pool is made from: shards, or a precomputed file."""
    if pool.embeddings is not None:
        return [[file.path] for file in pool.embeddings.sources]
    shards, step = pool.paths, pool.shards_per_file
    return [shards[start : start + step] for start in range(0, len(shards), step)]


def tars_of(pool: Pool, index: int, sources: Sequence[Mapping[str, Any]]) -> list[Path]:
    """The tars that the rows of embeddings file `index` are in, wherever they are today.

    Args:
        pool: with shards.
        index: of the embeddings file.
        sources: its attribute of that name; its dataset `shard` counts in it, and in the result.

    Raises:
        IndexError: the pool has fewer tars by now.
    """
    if pool.embeddings is None:
        return pool_groups(pool)[index]
    return [pool.paths[source["position"]] for source in sources]


def precomputed_identity(pool: Pool, index: int) -> dict[str, Any]:
    """The identity of a precomputed file, and of the tars that its rows may be in."""
    assert pool.embeddings is not None
    file = pool.embeddings.sources[index]
    return {
        "precomputed": [file_identity(path) for path in (file.path, file.metadata) if path],
        **pool.embeddings.model_dump(include={"key", "uid", "shard"}, exclude_none=True),
        **({} if pool.shards is None else {"tars": _tars_identity(pool)}),
    }


def _tars_identity(pool: Pool) -> str:
    """One hash for all tars: there may be tens of thousands."""
    known = pool.identities
    if str(pool.shards) not in known:
        listed = json.dumps([file_identity(path) for path in pool.paths])
        known[str(pool.shards)] = hashlib.sha256(listed.encode()).hexdigest()[:16]
    return known[str(pool.shards)]


def classes_in(images: ImageSet) -> ClassList:
    """The class list of an image set."""
    if isinstance(images.classes, str):
        return built_in(images.classes)
    if images.planned and images.size and (images.classes is None or not images.classes.exists()):
        return planned.classes(images.size)
    return classes_of(images.images) if images.classes is None else read_class_list(images.classes)


def ignored_folders(images: ImageSet) -> list[str]:
    """The sub-folders of an image set that its class list does not have; a line says so."""
    others = other_folders(images.images, classes_in(images))
    if others:
        shown = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
        folders = count(len(others), "folder")
        print(f"{images.images}: {folders} not in the class list ignored: {shown}", flush=True)
    return others


def label_ranges(classes: ClassList, files: int) -> list[range]:
    """Spread the labels of a set over at most `files` embeddings files."""
    files = min(files, len(classes))
    bounds = [len(classes) * index // files for index in range(files + 1)]
    return [range(bounds[index], bounds[index + 1]) for index in range(files)]


def folder_identity(images: ImageSet, labels: range) -> dict[str, Any]:
    """The identity of some classes of an image set: folder names and times, class names, border."""
    classes = classes_in(images)
    chosen = ClassList(
        tuple(classes.ids[label] for label in labels),
        tuple(classes.names[label] for label in labels),
    )
    folders = (
        map(planned.identity, chosen.ids) if images.planned else identity(images.images, chosen)
    )
    return {
        "classes": [list(chosen.ids), list(chosen.names)],
        "first_label": labels.start,
        "folders": [list(item) for item in folders],
        **({"border": images.border} if images.border else {}),
    }
