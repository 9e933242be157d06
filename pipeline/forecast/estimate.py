"""What each task of a study has to do: images, operations, bytes; from sizes, not from speeds.

Letters: N rows of the pool, n of one file, D dimensions, M test images, S test sets, K neighbours,
R images of the reference, C clusters. An operation is one multiplication or one addition, so that
comparing n rows with M images takes 2 n M D.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.experiment.sections import Training
from pipeline.forecast.amounts import NOTHING, Amount, known, total, unknown
from pipeline.forecast.sizes import Sizes
from pipeline.layout import POOL, PROBE_TRAINING, REFERENCE

_ROW_NAME = 24
"""Bytes of a row beside its embedding: key, shard and label."""
_PASSES = 3
"""Of forward and backward together: the backward pass takes twice the forward pass."""
_OPENAI_TEMPLATES = 80
_SIMPLE_TEMPLATES = 1


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a task has to do. Nothing of a kind that it does not do."""

    units: Amount
    """Of which a finished task shows the speed."""
    unit: str
    speed: str = ""
    """The section of a profile's speeds that says how fast it computes."""
    flops: Amount = NOTHING
    images: Amount = NOTHING
    """That are decoded."""
    decoders: int = 1
    """Processes that decode, for each process of the job."""
    read: Amount = NOTHING
    """Bytes."""
    written: Amount = NOTHING
    stored: Amount | None = None
    """Of what is written, what stays; all of it if not given."""
    told_by: str = ""
    """What would tell how long it computes, where neither operations nor images do."""


def work_of(stage: str, task: str, sizes: Sizes) -> Work | None:
    """The work of a task; None for a stage of which nothing is known.

    Args:
        stage: its stage.
        task: its name there.
        sizes: of the study.
    """
    estimate = _ESTIMATES.get(stage)
    return estimate(task, sizes) if estimate else None


def _embed(task: str, sizes: Sizes) -> Work:
    name, _, number = task.partition("/")
    row = 2 * sizes.embedder.dimensions + _ROW_NAME
    if name == POOL and (found := sizes.precomputed_bytes(int(number))) is not None:
        images = sizes.rows * sizes.share(int(number))
        return Work(units=images, unit="images", read=found, written=images * row)
    if name == POOL:
        part = sizes.share(int(number))
        images, size = sizes.rows * part, sizes.tar_bytes * part
    else:
        part = 1 / sizes.tasks_beside("embed", task)
        images, size = sizes.images(name) * part, sizes.set_bytes(name) * part
    each = known(sizes.embedder.image_flops, "speeds.embed.images_per_second")
    return Work(
        units=images,
        unit="images",
        speed="embed",
        flops=images * each,
        images=images,
        decoders=sizes.study.embedder.workers,
        read=size,
        written=images * row,
    )


def _row_bytes(sizes: Sizes) -> int:
    return 2 * sizes.embedder.dimensions


def _compared(rows: Amount, queries: Amount, sizes: Sizes) -> Amount:
    return rows * queries * (2 * sizes.embedder.dimensions)


def _cluster(task: str, sizes: Sizes) -> Work:
    section = sizes.study.dedup
    assert section is not None
    wanted = section.clusters * section.rows_per_cluster
    rows = Amount(min(sizes.rows.value, wanted), sizes.rows.missing)
    flops = _compared(rows, Amount(section.clusters), sizes) * section.iterations
    return Work(
        units=flops,
        unit="operations",
        speed="cluster",
        flops=flops,
        read=rows * _row_bytes(sizes),
        written=Amount(4 * section.clusters * sizes.embedder.dimensions),
    )


def _assign(task: str, sizes: Sizes) -> Work:
    section = sizes.study.dedup
    assert section is not None
    rows = sizes.rows * sizes.share(int(task))
    return Work(
        units=rows,
        unit="rows",
        speed="cluster",
        flops=_compared(rows, Amount(section.clusters), sizes),
        read=rows * _row_bytes(sizes),
        written=rows * 4,
    )


def _dedup(task: str, sizes: Sizes) -> Work:
    """Each row with the earlier ones of its cluster, if all clusters are of one size."""
    section = sizes.study.dedup
    assert section is not None
    rows = sizes.rows / sizes.tasks_beside("dedup", task)
    return Work(
        units=rows,
        unit="rows",
        speed="scan",
        flops=_compared(rows, sizes.rows / (2 * section.clusters), sizes),
        read=sizes.rows * 4 + rows * _row_bytes(sizes),
        written=rows * (_DUPLICATE * _DUPLICATE_SHARE),
    )


_DUPLICATE, _DUPLICATE_SHARE = 32, 0.5
"""Bytes of a dropped row; and how many are dropped: half of LAION-400M."""


def _reference(task: str, sizes: Sizes) -> Work:
    rows, queries = sizes.images(REFERENCE), sizes.images(task)
    return Work(
        units=rows * queries,
        unit="pairs",
        speed="scan",
        flops=_compared(rows, queries, sizes),
        read=(rows + queries) * _row_bytes(sizes),
        written=queries * (8 + 16 * sizes.study.similarity.neighbours),
    )


def _scan(task: str, sizes: Sizes) -> Work:
    rows, sets = sizes.rows * sizes.share(int(task)), len(sizes.study.tests)
    each_query = 8 + 16 * sizes.study.similarity.neighbours
    return Work(
        units=rows,
        unit="rows",
        speed="scan",
        flops=_compared(rows, sizes.queries, sizes),
        read=(rows + sizes.queries) * _row_bytes(sizes),
        written=rows * (9 * sets) + sizes.queries * each_query,
    )


def _mask(task: str, sizes: Sizes) -> Work:
    """At most one pass over what the scans say of each row; and of each query, for statistics."""
    sets = len(sizes.study.tests)
    queries = sizes.queries * (8 * len(sizes.shards)) if "/" in task else NOTHING
    return Work(
        units=sizes.rows,
        unit="rows",
        speed="mask",
        read=sizes.rows * (5 * sets) + queries,
        written=sizes.rows / 8 if "/" not in task else NOTHING,
    )


def _subset(task: str, sizes: Sizes) -> Work:
    split = task.rpartition("/")[0] or task
    if split not in sizes.study.splits:
        return _reference_tars(task, sizes)
    parts = sizes.tasks_beside("subset", task) if "/" in task else 1
    kept, size = sizes.trained_on(split) / parts, sizes.split_bytes(split) / parts
    copied = NOTHING if _is_live(sizes) else size
    return Work(units=kept, unit="samples", read=copied, written=copied)


def _reference_tars(task: str, sizes: Sizes) -> Work:
    """The reference's images as tars of their own."""
    parts = sizes.tasks_beside("subset", task)
    images, size = sizes.images(REFERENCE) / parts, sizes.set_bytes(REFERENCE) / parts
    return Work(units=images, unit="samples", read=size, written=size)


def _is_live(sizes: Sizes) -> bool:
    training = sizes.study.training
    return training is not None and training.data == "live"


def _train(task: str, sizes: Sizes) -> Work:
    training = sizes.study.training
    assert training is not None
    split, each = task.partition("/")[0], sizes.trained_on(task.partition("/")[0])
    if training.samples_per_epoch:
        each = Amount(training.samples_per_epoch)
    seen = each * training.epochs
    costs = sizes.trained
    flops = (
        None
        if costs.image_flops is None or costs.text_flops is None
        else _passes(training.options) * (costs.image_flops + costs.text_flops)
    )
    where = "speeds.train.samples_per_second"
    return Work(
        units=seen,
        unit="samples",
        speed="train",
        flops=seen * known(flops, where),
        images=seen,
        decoders=training.workers,
        read=_read_in_training(seen, split, sizes),
        written=sizes.checkpoint * _checkpoints(training, each.value),
        stored=sizes.checkpoint,
    )


def _checkpoints(training: Training, samples: float) -> int:
    """How many a training writes: one after each part of an epoch of so many samples."""
    parts = math.ceil(samples / training.checkpoint_every) if training.checkpoint_every else 1
    return training.epochs * max(1, parts)


def _passes(options: Mapping[str, Any]) -> int:
    """As many forward passes as a training step takes.

    Checkpointing of activations, and open_clip's accumulation, run the forward pass once more.
    """
    given = {str(key).replace("_", "-"): value for key, value in options.items()}
    return _PASSES + bool(given.get("grad-checkpointing")) + (int(given.get("accum-freq", 1)) > 1)


def _read_in_training(seen: Amount, split: str, sizes: Sizes) -> Amount:
    """The kept samples of each epoch; live, all of the pool with them."""
    samples, size = sizes.trained_on(split), sizes.split_bytes(split, whole=_is_live(sizes))
    return seen * (size / samples.value) if samples.value else size


def _evaluate(task: str, sizes: Sizes) -> Work:
    test = task.rpartition("/")[2]
    images, classes, costs = sizes.images(test), sizes.classes(test), sizes.trained
    evaluation = sizes.study.evaluation
    where = "speeds.evaluate.images_per_second"
    captions = Amount(classes * _templates(evaluation.templates))
    flops = images * known(costs.image_flops, where) + captions * known(costs.text_flops, where)
    return Work(
        units=images,
        unit="images",
        speed="evaluate",
        flops=flops,
        images=images,
        decoders=evaluation.workers,
        read=sizes.set_bytes(test) + sizes.checkpoint,
        written=images * (4 * classes + _ROW_NAME),
    )


def _features(task: str, sizes: Sizes) -> Work:
    """A forward pass for each image of a test set, or of those that probes are trained on."""
    images, size = _asked_for_features(task.rpartition("/")[2], sizes)
    costs = sizes.trained
    return Work(
        units=images,
        unit="images",
        speed="evaluate",
        flops=images * known(costs.image_flops, "speeds.evaluate.images_per_second"),
        images=images,
        decoders=sizes.study.evaluation.workers,
        read=size + sizes.checkpoint,
        written=images * (4 * costs.dimensions + _ROW_NAME),
    )


def _asked_for_features(name: str, sizes: Sizes) -> tuple[Amount, Amount]:
    """Images of a test set, or of those that probes are trained on; and their bytes."""
    section = sizes.study.evaluation.few_shot
    assert section is not None
    if name != PROBE_TRAINING:
        return sizes.images(name), sizes.set_bytes(name)
    if section.train is None and section.images_per_class is None:
        return sizes.images(REFERENCE), sizes.set_bytes(REFERENCE)
    missing = unknown("a first run: how many images probes are trained on")
    return missing, missing


def _probe(task: str, sizes: Sizes) -> Work:
    """How long a classifier trains depends on the features; a finished task is like the others."""
    names = (PROBE_TRAINING, task.rpartition("/")[2])
    features = total(_asked_for_features(name, sizes)[0] for name in names)
    return Work(
        units=Amount(1),
        unit="tasks",
        read=features * (4 * sizes.trained.dimensions),
        told_by="a first task of the stage probe: how long classifiers train",
    )


def _retrieve(task: str, sizes: Sizes) -> Work:
    """How many images and captions tars hold is not known before they are read."""
    tars = sizes.study.evaluation.retrieval[task.rpartition("/")[2]].paths
    size = Amount(sum(path.stat().st_size for path in tars))
    return Work(
        units=size,
        unit="bytes",
        read=size + sizes.checkpoint,
        told_by="a first task of the stage retrieve: how many images and captions there are",
    )


def _templates(templates: str | list[str]) -> int:
    if isinstance(templates, list):
        return len(templates)
    return _OPENAI_TEMPLATES if templates == "openai" else _SIMPLE_TEMPLATES


def _report(task: str, sizes: Sizes) -> Work:
    """What the scans say of each row, once; the page is small."""
    images = total(sizes.images(test) for test in sizes.study.tests)
    return Work(units=images, unit="images", read=sizes.rows * (9 * len(sizes.study.tests)))


_ESTIMATES: Mapping[str, Callable[[str, Sizes], Work]] = {
    "embed": _embed,
    "cluster": _cluster,
    "assign": _assign,
    "dedup": _dedup,
    "reference": _reference,
    "scan": _scan,
    "mask": _mask,
    "subset": _subset,
    "train": _train,
    "evaluate": _evaluate,
    "features": _features,
    "probe": _probe,
    "retrieve": _retrieve,
    "report": _report,
}
