"""Zero-shot retrieval: each trained model on each image-caption set."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hpc.files import write_json
from hpc.stage import Context, Recipe, Task, reference
from pipeline import artifacts
from pipeline.data.tars import Sample, index_shard, read_caption
from pipeline.evaluation import retrieval
from pipeline.experiment.probes import Retrieval
from pipeline.experiment.sections import Evaluation, Training
from pipeline.experiment.sources import file_identity
from pipeline.layout import Layout

if TYPE_CHECKING:
    from pipeline.models import Embedder


@dataclass
class _Pairs:
    """Images with captions, in the order of the tars."""

    samples: list[tuple[Path, Sample]] = field(default_factory=list)
    captions: list[list[str]] = field(default_factory=list)
    """Of each sample."""
    skipped: list[tuple[str, str]] = field(default_factory=list)
    """Key and reason."""


@dataclass(frozen=True)
class Retrieve:
    """Stage 8, last step: one task for each split, seed and image-caption set."""

    run_layout: Layout
    splits: list[str]
    training: Training
    evaluation: Evaluation
    name: str = "retrieve"
    version: int = 1

    def tasks(self) -> list[Task]:
        """One for each split, seed and image-caption set."""
        options = self.evaluation.model_dump(include={"precision", "batch_size"})
        sets = {
            name: [file_identity(path) for path in section.paths]
            for name, section in self.evaluation.retrieval.items()
        }
        return [
            Task(
                name=f"{split}/seed-{seed}/{name}",
                recipe=Recipe(
                    settings={**options, "shards": shards},
                    inputs=(reference("train", f"{split}/seed-{seed}"),),
                ),
                outputs=(self.run_layout.retrieval(split, seed, name),),
            )
            for split in self.splits
            for seed in self.training.seeds
            for name, shards in sets.items()
        ]

    def check(self, task: Task, digest: str) -> dict[str, str]:
        """See that the file is whole and was made for the digest."""
        return artifacts.check_record(task.outputs[0], digest)

    def run(self, task: Task, context: Context) -> dict[str, Any]:
        """Look for the captions of all images, and for the images of all captions.

        Raises:
            ValueError: a tar is torn, or more than `max_bad_fraction` of the samples can't be
                used, or all.
        """
        from pipeline.models import job_device, load_embedder

        split, seed, name = task.name.rsplit("/", 2)
        section = self.evaluation.retrieval[name]
        model = load_embedder(
            self.training.model,
            str(self.run_layout.checkpoint(split, int(seed.removeprefix("seed-")))),
            precision=self.evaluation.precision,
            device=job_device(self.evaluation.device, context.resources.gpus),
            options=self.training.options,
        )
        pairs = _read(section)
        images, used = self._image_features(model, pairs, context)
        _check_usable(task.name, section, len(used), pairs.skipped)
        captions = [caption for position in used for caption in pairs.captions[position]]
        counts = [len(pairs.captions[position]) for position in used]
        texts, which = retrieval.distinct(captions)
        image_of = np.repeat(np.arange(len(used)), counts)
        found = retrieval.recalls(images, self._text_features(model, texts), which, image_of)
        record = {
            "name": name,
            "images": len(used),
            "captions": len(captions),
            **found,
            "read": len(used) + len(pairs.skipped),
            "skipped": dict(Counter(reason for _, reason in pairs.skipped)),
        }
        write_json(task.outputs[0], {"digest": context.digest, **record})
        return record

    def _image_features(
        self, model: Embedder, pairs: _Pairs, context: Context
    ) -> tuple[Any, list[int]]:
        """(I, D) float32 of the images that decode, and their positions."""
        from pipeline.data.loader import Source, load_images
        from pipeline.models import image_features

        rows, used = [np.empty((0, model.dimensions), dtype=np.float32)], []
        for batch in load_images(
            [Source(path, sample.image) for path, sample in pairs.samples],
            model.preprocess,
            batch_size=self.evaluation.batch_size,
            workers=self.evaluation.workers,
            pin_memory=model.device != "cpu",
        ):
            rows.append(image_features(model, batch.images).float().cpu().numpy())
            used += batch.positions
            pairs.skipped += [
                (pairs.samples[position][1].key, reason) for position, reason in batch.failed
            ]
            context.progress(len(used), len(pairs.samples), "images")
        return np.concatenate(rows), used

    def _text_features(self, model: Embedder, texts: list[str]) -> Any:
        """(U, D) float32."""
        from pipeline.models import text_features

        size = self.evaluation.batch_size
        rows = [np.empty((0, model.dimensions), dtype=np.float32)]
        for start in range(0, len(texts), size):
            found = text_features(model, texts[start : start + size])
            rows.append(found.float().cpu().numpy())
        return np.concatenate(rows)


def _read(section: Retrieval) -> _Pairs:
    """The samples of all tars that have an image and a caption.

    Raises:
        ValueError: a tar is torn.
    """
    pairs = _Pairs()
    for path in section.paths:
        index = index_shard(path)
        if index.faults:
            raise ValueError(f"{path}: {index.faults[0]}; a part of a benchmark is another one")
        pairs.skipped += [(one.key, one.reason) for one in index.skipped]
        for sample in index.samples:
            captions = retrieval.captions_in(read_caption(path, sample))
            if captions:
                pairs.samples.append((path, sample))
                pairs.captions.append(captions)
            else:
                pairs.skipped.append((sample.key, "empty caption"))
    return pairs


def _check_usable(name: str, section: Retrieval, used: int, skipped: list[tuple[str, str]]) -> None:
    bad, read, limit = len(skipped), used + len(skipped), section.max_bad_fraction
    if bad > limit * read or not used:
        first = f" (the first is {skipped[0][0]}: {skipped[0][1]})" if skipped else ""
        raise ValueError(
            f"{name}: {bad} of {read} samples can't be used{first}, more than max_bad_fraction = "
            f"{limit} allows"
        )
