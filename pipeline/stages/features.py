"""Frozen image features of each trained model: of the test sets, and of images to train probes on.

Further questions about them need no GPU.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpc.stage import Context, Recipe, Task, reference
from pipeline import artifacts
from pipeline.data.folders import Image, list_images
from pipeline.experiment.probes import FewShot
from pipeline.experiment.sections import Evaluation, ImageSet, ReferenceSet, TestSet, Training
from pipeline.experiment.sources import classes_in, folder_identity
from pipeline.layout import PROBE_TRAINING, Layout


@dataclass(frozen=True)
class Features:
    """Stage 8, second step: one task for each split, seed and image set."""

    run_layout: Layout
    reference: ReferenceSet
    tests: Mapping[str, TestSet]
    splits: list[str]
    training: Training
    evaluation: Evaluation
    name: str = "features"
    version: int = 1

    def tasks(self) -> list[Task]:
        """The reference and the test sets that few-shot learning asks for, of each model."""
        options = self.evaluation.model_dump(include={"precision", "batch_size"})
        settings = {name: {**options, **self._identity(name)} for name in self._sets()}
        return [
            Task(
                name=f"{split}/seed-{seed}/{name}",
                recipe=Recipe(
                    settings=settings[name], inputs=(reference("train", f"{split}/seed-{seed}"),)
                ),
                outputs=(self.run_layout.features(split, seed, name),),
            )
            for split in self.splits
            for seed in self.training.seeds
            for name in settings
        ]

    def _sets(self) -> dict[str, ImageSet]:
        section = self.evaluation.few_shot
        if section is None:
            return {}
        names = list(self.tests) if section.tests is None else section.tests
        train = section.train or self.reference
        return {PROBE_TRAINING: train, **{name: self.tests[name] for name in names}}

    def _identity(self, name: str) -> dict[str, Any]:
        images = self._sets()[name]
        identity = folder_identity(images, range(len(classes_in(images))))
        section = self._section
        if name == PROBE_TRAINING and section.images_per_class is not None:
            identity |= {"images_per_class": section.images_per_class, "seed": section.seed}
        return identity

    @property
    def _section(self) -> FewShot:
        assert self.evaluation.few_shot is not None
        return self.evaluation.few_shot

    def check(self, task: Task, digest: str) -> dict[str, str]:
        """Verify the file's hashes."""
        hashes = artifacts.verify(task.outputs[0], artifacts.FEATURES, digest)
        return {"": artifacts.fingerprint(hashes)}

    def run(self, task: Task, context: Context) -> dict[str, Any]:
        """Compute the features of an image set.

        Raises:
            FileNotFoundError: a class has no folder.
            ValueError: more than `max_bad_fraction` of the images can't be used, or all.
        """
        from pipeline.data.loader import Source, load_images
        from pipeline.evaluation.zero_shot import check_usable
        from pipeline.models import image_features, job_device, load_embedder

        split, seed, name = _parts(task.name)
        images = self._sets()[name]
        model = load_embedder(
            self.training.model,
            str(self.run_layout.checkpoint(split, seed)),
            precision=self.evaluation.precision,
            device=job_device(self.evaluation.device, context.resources.gpus),
            options=self.training.options,
        )
        listed = self._listed(name, images)
        used: list[int] = []
        skipped: list[tuple[str, str]] = []
        rows = [np.empty((0, model.dimensions), dtype=np.float32)]
        for batch in load_images(
            [Source(image.path, None, images.border) for image in listed],
            model.preprocess,
            batch_size=self.evaluation.batch_size,
            workers=self.evaluation.workers,
            pin_memory=model.device != "cpu",
        ):
            rows.append(image_features(model, batch.images).float().cpu().numpy())
            used += batch.positions
            skipped += [(listed[position].key, reason) for position, reason in batch.failed]
            context.progress(len(used) + len(skipped), len(listed), "images")
        check_usable(images, len(used), skipped)
        classes = classes_in(images)
        artifacts.write(
            task.outputs[0],
            artifacts.FEATURES,
            context.digest,
            {
                "feature": np.concatenate(rows),
                "label": np.array([listed[position].label for position in used], dtype=np.int32),
                "key": artifacts.encode_text([listed[position].key for position in used]),
                "skipped_key": artifacts.encode_text([key for key, _ in skipped]),
                "skipped_reason": artifacts.encode_text([reason for _, reason in skipped]),
            },
            {
                "split": split,
                "seed": seed,
                "classes": {"ids": list(classes.ids), "names": list(classes.names)},
                "read": len(listed),
            },
        )
        reasons = dict(Counter(reason for _, reason in skipped))
        return {"read": len(listed), "used": len(used), "skipped": reasons}

    def _listed(self, name: str, images: ImageSet) -> list[Image]:
        """The images of a set; of those to train on, at most as many of each class as asked."""
        listed = list_images(images.images, classes_in(images))
        most = self._section.images_per_class
        if name != PROBE_TRAINING or most is None:
            return listed
        kept: list[Image] = []
        for label in sorted({image.label for image in listed}):
            of_class = [image for image in listed if image.label == label]
            generator = np.random.default_rng([self._section.seed, label])
            chosen = generator.permutation(len(of_class))[:most]
            kept += [of_class[index] for index in sorted(chosen.tolist())]
        return kept


def _parts(name: str) -> tuple[str, int, str]:
    split, seed, image_set = name.rsplit("/", 2)
    return split, int(seed.removeprefix("seed-")), image_set
