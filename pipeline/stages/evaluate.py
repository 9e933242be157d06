"""Zero-shot classification: each trained model on each test set, with that set's class list."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpc.stage import Context, Recipe, Task, reference
from pipeline import artifacts
from pipeline.layout import Layout
from pipeline.sections import Evaluation, TestSet, Training
from pipeline.sources import classes_in, folder_identity

_LOGIT_SCALE = 100.0  # open_clip_train's zero-shot evaluation; ranks don't depend on it


@dataclass(frozen=True)
class Evaluate:
    """Stage 8: one task for each split, seed and test set."""

    run_layout: Layout
    tests: Mapping[str, TestSet]
    splits: list[str]
    training: Training
    evaluation: Evaluation
    name: str = "evaluate"
    version: int = 1

    def tasks(self) -> list[Task]:
        """One for each split, seed and test set; those of one model are neighbours."""
        sets = {
            name: folder_identity(test, range(len(classes_in(test))))
            for name, test in self.tests.items()
        }
        return [
            self._task(split, seed, test, identity)
            for split in self.splits
            for seed in self.training.seeds
            for test, identity in sets.items()
        ]

    def _task(self, split: str, seed: int, test: str, identity: Mapping[str, Any]) -> Task:
        options = self.evaluation.model_dump(include={"templates", "precision", "batch_size"})
        return Task(
            name=f"{split}/seed-{seed}/{test}",
            recipe=Recipe(
                settings={**options, **identity},
                inputs=(reference("train", f"{split}/seed-{seed}"),),
            ),
            outputs=(self.run_layout.evaluation(split, seed, test),),
        )

    def check(self, task: Task, digest: str) -> dict[str, str]:
        """Verify the file's hashes."""
        hashes = artifacts.verify(task.outputs[0], artifacts.EVALUATION, digest)
        return {"": artifacts.fingerprint(hashes)}

    def run(self, task: Task, context: Context) -> dict[str, Any]:
        """Classify a test set's images.

        Raises:
            ValueError: more than `max_bad_fraction` of the images can't be used.
        """
        split, seed, test = _parts(task.name)
        keys, labels, logits, skipped = self._logits(split, seed, test, context)
        bad, limit = len(skipped), self.tests[test].max_bad_fraction
        read = len(keys) + bad
        if bad > limit * read:
            raise ValueError(
                f"{task.name}: {bad} of {read} images can't be used (the first is "
                f"{skipped[0][0]}: {skipped[0][1]}), more than max_bad_fraction = {limit} allows"
            )
        correct = logits.argmax(axis=1) == labels
        classes = classes_in(self.tests[test])
        accuracy = float(correct.mean())
        per_class = class_accuracy(correct, labels, len(classes))
        artifacts.write(
            task.outputs[0],
            artifacts.EVALUATION,
            context.digest,
            {
                "key": artifacts.encode_text(keys),
                "label": labels,
                "logits": logits,
                "class_accuracy": per_class,
                "skipped_key": artifacts.encode_text([key for key, _ in skipped]),
                "skipped_reason": artifacts.encode_text([reason for _, reason in skipped]),
            },
            {
                "split": split,
                "seed": seed,
                "test": test,
                "classes": {"ids": list(classes.ids), "names": list(classes.names)},
                "templates": self.evaluation.templates,
                "accuracy": accuracy,
                "read": read,
            },
        )
        return {
            "read": read,
            "used": len(keys),
            "skipped": dict(Counter(reason for _, reason in skipped)),
            "top1": round(100 * accuracy, 2),
            "mean_per_class": round(100 * float(np.nanmean(per_class)), 2),
        }

    def _logits(
        self, split: str, seed: int, test: str, context: Context
    ) -> tuple[list[str], Any, Any, list[tuple[str, str]]]:
        """Keys, labels (m,) int32 and logits (m, c) float32 of the usable images; and the rest."""
        from pipeline.data.folders import list_images
        from pipeline.data.loader import Source, load_images
        from pipeline.models import (
            image_features,
            job_device,
            load_embedder,
            zero_shot_classifier,
        )

        model = load_embedder(
            self.training.model,
            str(self.run_layout.checkpoint(split, seed)),
            precision=self.evaluation.precision,
            device=job_device(self.evaluation.device, context.resources.gpus),
        )
        classes = classes_in(self.tests[test])
        classifier = zero_shot_classifier(model, classes.names, self._templates())
        images = list_images(self.tests[test].images, classes)
        used: list[int] = []
        skipped: list[tuple[str, str]] = []
        logits = [np.empty((0, len(classes)), dtype=np.float32)]
        for batch in load_images(
            [Source(image.path, None) for image in images],
            model.preprocess,
            batch_size=self.evaluation.batch_size,
            workers=self.evaluation.workers,
            pin_memory=model.device != "cpu",
        ):
            scores = _LOGIT_SCALE * image_features(model, batch.images).float() @ classifier
            logits.append(scores.cpu().numpy())
            used += batch.positions
            skipped += [(images[position].key, reason) for position, reason in batch.failed]
            context.progress(len(used), len(images), "images")
        labels = np.array([images[position].label for position in used], dtype=np.int32)
        return [images[position].key for position in used], labels, np.concatenate(logits), skipped

    def _templates(self) -> Sequence[str] | Sequence[Callable[[str], str]]:
        import open_clip

        templates = self.evaluation.templates
        if templates == "openai":
            return list(open_clip.OPENAI_IMAGENET_TEMPLATES)
        if templates == "simple":
            return list(open_clip.SIMPLE_IMAGENET_TEMPLATES)
        return list(templates)


def class_accuracy(correct: Any, labels: Any, classes: int) -> Any:
    """Top-1 accuracy of each class.

    Args:
        correct: (m,) bool.
        labels: (m,) int32.
        classes: c, their number.

    Returns:
        (c,) float64; nan for a class without images.
    """
    images = np.bincount(labels, minlength=classes)
    hits = np.bincount(labels, weights=correct, minlength=classes)
    return np.where(images, hits / np.maximum(images, 1), np.nan)


def _parts(name: str) -> tuple[str, int, str]:
    split, seed, test = name.rsplit("/", 2)
    return split, int(seed.removeprefix("seed-")), test
