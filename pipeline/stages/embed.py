"""Images -> unit float16 embeddings: the pool's shards, the reference and the test sets.

Embeddings of the pool that were made elsewhere are checked and brought into the same form.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hpc.stage import Context, Recipe, Task
from pipeline import artifacts
from pipeline.experiment.sections import Embedder, ImageSet, Pool, ReferenceSet, TestSet
from pipeline.experiment.sources import (
    classes_in,
    file_identity,
    folder_identity,
    ignored_folders,
    label_ranges,
    model_identity,
    pool_groups,
    precomputed_identity,
    shard_identity,
    weights_identity,
)
from pipeline.layout import POOL, REFERENCE, Layout

if TYPE_CHECKING:
    from pipeline.data.loader import Source
    from pipeline.data.matching import Match
    from pipeline.data.precomputed import RowNames


@dataclass
class _Images:
    """The images of one embeddings file, in order, and what can't be used of them."""

    keys: list[str] = field(default_factory=list)
    """As they are stored."""
    sources: list[Source] = field(default_factory=list)
    shards: list[int] = field(default_factory=list)
    labels: list[int] | None = None
    uids: list[str] | None = None
    spans: list[tuple[int, int]] | None = None
    """Offset and size of each sample in its tar; the size is 0 if its blocks lie apart."""
    origins: list[dict[str, Any]] = field(default_factory=list)
    """The tars, or the folder, that they come from."""
    classes: dict[str, list[str]] | None = None
    ignored_folders: int = 0
    """Sub-folders of an image set that its class list does not have."""
    skipped: list[tuple[str, str]] = field(default_factory=list)
    """Key and reason."""
    faults: list[str] = field(default_factory=list)
    read: int = 0


@dataclass(frozen=True)
class Embed:
    """Stage 1: one task for each embeddings file."""

    run_layout: Layout
    pool: Pool
    reference: ReferenceSet
    tests: Mapping[str, TestSet]
    embedder: Embedder
    name: str = "embed"
    version: int = 2

    def tasks(self) -> list[Task]:
        """The pool's files, then the reference's, then one for each test set."""
        model = {
            "model": model_identity(self.embedder.model),
            "pretrained": weights_identity(self.embedder.pretrained),
            "precision": self.embedder.precision,
            # Batches of another size may round differently in the last bit.
            "batch_size": self.embedder.batch_size,
        }
        tasks = [
            self._task(POOL, index, self._pool_settings(model, index, group))
            for index, group in enumerate(pool_groups(self.pool))
        ]
        for name, images, files in self._image_sets():
            tasks += [
                self._task(name, index, {**model, **folder_identity(images, labels)})
                for index, labels in enumerate(label_ranges(classes_in(images), files))
            ]
        return tasks

    def _pool_settings(
        self, model: Mapping[str, Any], index: int, group: Sequence[Path]
    ) -> dict[str, Any]:
        if self.pool.embeddings is None:
            return {**model, "shards": self._shards(group)}
        made_by = {name: model[name] for name in ("model", "pretrained")}
        return {**made_by, **precomputed_identity(self.pool, index)}

    def _image_sets(self) -> list[tuple[str, ImageSet, int]]:
        tests = [(name, test, 1) for name, test in self.tests.items()]
        return [(REFERENCE, self.reference, self.reference.files), *tests]

    def _shards(self, group: Sequence[Path]) -> list[Any]:
        return [shard_identity(self.pool, path) for path in group]

    def _task(self, image_set: str, index: int, settings: Mapping[str, Any]) -> Task:
        return Task(
            name=f"{image_set}/{index:05d}",
            recipe=Recipe(settings=settings),
            outputs=(self.run_layout.embeddings(image_set, index),),
        )

    def check(self, task: Task, digest: str) -> dict[str, str]:
        """Verify the file's hashes."""
        hashes = artifacts.verify(task.outputs[0], artifacts.EMBEDDINGS, digest)
        return {"": artifacts.fingerprint(hashes)}

    def run(self, task: Task, context: Context) -> dict[str, Any]:
        """Embed the images of one file.

        Raises:
            ValueError: counts don't add up, the source has changed since submission, or more
                than `max_bad_fraction` of the images can't be used.
        """
        from pipeline.models import job_device, load_embedder

        name, _, number = task.name.partition("/")
        if name == POOL and self.pool.embeddings is not None:
            return self._take_over(task, int(number), context)
        embedder = load_embedder(
            self.embedder.model,
            self.embedder.pretrained,
            precision=self.embedder.precision,
            device=job_device(self.embedder.device, context.resources.gpus),
        )
        images, max_bad = self._images(task)
        started = time.time()
        rows, used = self._embed(images, embedder, context)
        skipped = Counter(reason for _, reason in images.skipped)
        _check_counts(task.name, images, len(used), skipped, max_bad)
        artifacts.write(
            task.outputs[0],
            artifacts.EMBEDDINGS,
            context.digest,
            _arrays(images, rows, used),
            self._attributes(images, embedder),
        )
        rate = round(len(used) / max(time.time() - started, 1e-9), 1)
        return {
            "read": images.read,
            "used": len(used),
            "skipped": dict(skipped),
            "faults": images.faults,
            "images_per_second": rate,
            **({"ignored_folders": images.ignored_folders} if images.ignored_folders else {}),
        }

    def _take_over(self, task: Task, index: int, context: Context) -> dict[str, Any]:
        """Bring a file of precomputed embeddings into the form of a run."""
        from pipeline.data.precomputed import Columns, open_rows, read_names, unit_blocks
        from pipeline.models import dimensions_of

        given = self.pool.embeddings
        assert given is not None
        now = precomputed_identity(self.pool, index)
        for what in ("precomputed", "tars"):
            if task.recipe.settings.get(what) != now.get(what):
                raise ValueError(f"{task.name}: {what} changed since submission; submit again")
        file, started = given.sources[index], time.time()
        with open_rows(file, dimensions_of(self.embedder.model)) as rows:
            names = read_names(file, Columns(given.key, given.uid, given.shard), len(rows))
            images, used, matched_by = _precomputed_images(self.pool, index, names)
            skipped = Counter(reason for _, reason in images.skipped)
            _check_counts(task.name, images, len(used), skipped, self.pool.max_bad_fraction)
            blocks = artifacts.Blocks(
                (len(used), rows.shape[1]),
                np.dtype(np.float16),
                unit_blocks(file, rows, used, context.progress),
            )
            artifacts.write(
                task.outputs[0],
                artifacts.EMBEDDINGS,
                context.digest,
                _arrays(images, blocks, used),
                {
                    "model": Path(self.embedder.model).stem,
                    "pretrained": self.embedder.pretrained,
                    "precision": f"precomputed, {rows.dtype} in {file.path}",
                    "preprocessing": "precomputed: not known",
                    "sources": images.origins,
                    "classes": None,
                    "read": images.read,
                    "faults": [],
                },
            )
        rate = round(len(used) / max(time.time() - started, 1e-9), 1)
        return {
            "read": images.read,
            "used": len(used),
            "skipped": dict(skipped),
            "faults": [],
            "matched_by": matched_by,
            "rows_per_second": rate,
        }

    def _attributes(self, images: _Images, embedder: Any) -> dict[str, Any]:
        return {
            "model": Path(self.embedder.model).stem,
            "pretrained": self.embedder.pretrained,
            "precision": f"{embedder.precision} on {embedder.device}",
            "preprocessing": embedder.preprocessing,
            "sources": images.origins,
            "classes": images.classes,
            "read": images.read,
            "faults": images.faults,
        }

    def _embed(self, images: _Images, embedder: Any, context: Context) -> tuple[Any, list[int]]:
        """Embed what decodes; returns (n, d) float16 and the positions of the rows."""
        from pipeline.data.loader import load_images
        from pipeline.models import encode_images

        rows, used = [np.empty((0, embedder.dimensions), dtype=np.float16)], []
        batches = load_images(
            images.sources,
            embedder.preprocess,
            batch_size=self.embedder.batch_size,
            workers=self.embedder.workers,
            pin_memory=embedder.device != "cpu",
        )
        for batch in batches:
            rows.append(encode_images(embedder, batch.images))
            used += batch.positions
            images.skipped += [(self._where(images, at), why) for at, why in batch.failed]
            context.progress(len(used), len(images.sources), "images")
        return np.concatenate(rows), used

    def _where(self, images: _Images, position: int) -> str:
        key = images.keys[position]
        if images.labels is not None:
            return key
        return f"{Path(images.origins[images.shards[position]]['path']).name}:{key}"

    def _images(self, task: Task) -> tuple[_Images, float]:
        """The images of a task's file, and the share of them that may be unusable."""
        name, _, number = task.name.partition("/")
        if name == POOL:
            group = pool_groups(self.pool)[int(number)]
            self._same(task, "shards", self._shards(group))
            return _pool_images(group), self.pool.max_bad_fraction
        images, files = next((one, count) for key, one, count in self._image_sets() if key == name)
        labels = label_ranges(classes_in(images), files)[int(number)]
        self._same(task, "folders", folder_identity(images, labels)["folders"])
        return _set_images(images, labels), images.max_bad_fraction

    @staticmethod
    def _same(task: Task, what: str, now: Sequence[Any]) -> None:
        then = task.recipe.settings[what]
        if list(then) != list(now):
            raise ValueError(f"{task.name}: {what} have changed since submission; submit again")


def _pool_images(group: Sequence[Path]) -> _Images:
    from pipeline.data.loader import Source
    from pipeline.data.tars import index_shard

    images = _Images(spans=[])
    assert images.spans is not None
    for shard, path in enumerate(group):
        index = index_shard(path)
        images.origins.append({"path": str(path), "identity": file_identity(path)})
        images.faults += [f"{path.name}: {fault}" for fault in index.faults]
        images.skipped += [(f"{path.name}:{item.key}", item.reason) for item in index.skipped]
        images.read += index.read
        images.keys += [sample.key for sample in index.samples]
        images.sources += [Source(path, sample.image) for sample in index.samples]
        images.shards += [shard] * len(index.samples)
        images.spans += [sample.span for sample in index.samples]
    return images


def _precomputed_images(
    pool: Pool, index: int, names: RowNames
) -> tuple[_Images, list[int], str | None]:
    """The rows of a precomputed file, those that are used, and how they were matched to tars."""
    images = _Images(keys=names.keys, uids=names.uids, read=len(names.keys))
    path = pool_groups(pool)[index][0]
    if pool.shards is None:
        images.origins = [{"path": str(path), "identity": file_identity(path)}]
        images.shards = [0] * images.read
        return images, list(range(images.read)), None
    match = _match(pool, index, path, names)
    tars = sorted(set(match.tars))
    images.origins = [
        {"path": str(tar), "identity": file_identity(tar), "position": place}
        for place in tars
        for tar in [pool.paths[place]]
    ]
    place_of = {place: number for number, place in enumerate(tars)}
    images.shards = [place_of[place] for place in match.tars]
    # As in a tar, the first sample with a key counts.
    first: dict[tuple[int, str], int] = {}
    for row, place in enumerate(zip(images.shards, names.keys, strict=True)):
        if first.setdefault(place, row) != row:
            tar = pool.paths[tars[place[0]]]
            images.skipped.append((f"{tar.name}:{place[1]}", "duplicate key"))
    return images, list(first.values()), match.by


def _match(pool: Pool, index: int, path: Path, names: RowNames) -> Match:
    from pipeline.data.matching import NoMatchError, match_rows

    files = len(pool_groups(pool))
    witnesses = range(index, len(pool.paths), files)  # each tar is one of some file
    try:
        return match_rows(names.keys, names.shards, pool.paths, witnesses)
    except NoMatchError as error:
        raise ValueError(f"{path}: {error}") from error


def _set_images(images: ImageSet, labels: range) -> _Images:
    from pipeline.data.folders import list_images
    from pipeline.data.loader import Source

    classes = classes_in(images)
    found = list_images(images.images, classes, labels)
    return _Images(
        keys=[image.key for image in found],
        sources=[Source(image.path, None, images.border) for image in found],
        shards=[0] * len(found),
        labels=[image.label for image in found],
        origins=[{"path": str(images.images)}],
        classes={"ids": list(classes.ids), "names": list(classes.names)},
        ignored_folders=len(ignored_folders(images)) if labels.start == 0 else 0,
        read=len(found),
    )


def _arrays(images: _Images, rows: Any, used: Sequence[int]) -> dict[str, Any]:
    """The datasets of an embeddings file, from its images and the positions of the used ones."""
    arrays = {
        "embedding": rows,
        "key": artifacts.encode_text([images.keys[position] for position in used]),
        "shard": np.array([images.shards[position] for position in used], dtype=np.int32),
        "skipped_key": artifacts.encode_text([key for key, _ in images.skipped]),
        "skipped_reason": artifacts.encode_text([reason for _, reason in images.skipped]),
    }
    if images.uids is not None:
        arrays["uid"] = artifacts.encode_text([images.uids[position] for position in used])
    if images.labels is not None:
        labels = [images.labels[position] for position in used]
        arrays["label"] = np.array(labels, dtype=np.int32)
    if images.spans is not None:
        spans = np.array([images.spans[position] for position in used], dtype=np.int64)
        arrays["span_offset"], arrays["span_size"] = spans.reshape(-1, 2).T
    return arrays


def _check_counts(
    name: str, images: _Images, used: int, skipped: Counter[str], max_bad_fraction: float
) -> None:
    bad = sum(skipped.values())
    if images.read != used + bad:
        raise ValueError(f"{name}: read {images.read}, but {used} used and {bad} skipped")
    if bad > max_bad_fraction * images.read:
        reasons = ", ".join(f"{count} {reason}" for reason, count in skipped.most_common())
        raise ValueError(
            f"{name}: {bad} of {images.read} images can't be used ({reasons}; the first is "
            f"{images.skipped[0][0]}), more than max_bad_fraction = {max_bad_fraction} allows"
        )
