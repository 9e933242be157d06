"""What little training on frozen features makes of each trained model: k-shot, linear, k-NN."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpc.files import write_json
from hpc.stage import Context, Recipe, Task, reference
from pipeline import artifacts
from pipeline.data.classes import ClassList, matching_labels
from pipeline.evaluation import probing
from pipeline.experiment.sections import Evaluation, TestSet, Training
from pipeline.layout import PROBE_TRAINING, Layout


@dataclass(frozen=True)
class Probe:
    """Stage 8, third step: one task for each split, seed and test set."""

    run_layout: Layout
    tests: Mapping[str, TestSet]
    splits: list[str]
    training: Training
    evaluation: Evaluation
    name: str = "probe"
    version: int = 1

    def tasks(self) -> list[Task]:
        """One for each split, seed and test set, if there is few-shot learning."""
        section = self.evaluation.few_shot
        if section is None:
            return []
        settings = section.model_dump(exclude={"tests", "train", "images_per_class"})
        return [
            Task(
                name=f"{split}/seed-{seed}/{test}",
                recipe=Recipe(
                    settings=settings,
                    inputs=tuple(
                        reference("features", f"{split}/seed-{seed}/{name}")
                        for name in (PROBE_TRAINING, test)
                    ),
                ),
                outputs=(self.run_layout.probe(split, seed, test),),
            )
            for split in self.splits
            for seed in self.training.seeds
            for test in (self.tests if section.tests is None else section.tests)
        ]

    def check(self, task: Task, digest: str) -> dict[str, str]:
        """See that the file is whole and was made for the digest."""
        return artifacts.check_record(task.outputs[0], digest)

    def run(self, task: Task, context: Context) -> dict[str, Any]:
        """Train classifiers on features, and ask them for the classes of a test set.

        Raises:
            ValueError: a class has too few training images.
        """
        section = self.evaluation.few_shot
        assert section is not None
        split, seed, test = task.name.rsplit("/", 2)
        features = self._features(split, int(seed.removeprefix("seed-")), test)
        steps = len(section.shots) + section.linear_probe + (section.knn is not None)
        record: dict[str, Any] = {"digest": context.digest, "test": test, "few_shot": {}}
        for done, shots in enumerate(section.shots):
            context.progress(done, steps, "classifiers")
            record["few_shot"][str(shots)] = probing.few_shot(features, section, shots)
        if section.linear_probe:
            record["linear_probe"] = probing.linear_probe(features, section)
        if section.knn is not None:
            top1 = probing.neighbours(features, section.knn)
            record["knn"] = {"top1": top1, "k": section.knn}
        context.progress(steps, steps, "classifiers")
        record |= {"train_images": len(features.train), "test_images": len(features.test)}
        write_json(task.outputs[0], record)
        return {key: value for key, value in record.items() if key != "digest"}

    def _features(self, split: str, seed: int, test: str) -> probing.Features:
        """The test set's classes alone, counted as it counts them."""
        train, asked = (
            artifacts.read(self.run_layout.features(split, seed, name), artifacts.FEATURES)
            for name in (PROBE_TRAINING, test)
        )
        classes, trained = _classes(asked), _classes(train)
        label = np.full(len(trained), -1)
        label[matching_labels(trained, classes)] = np.arange(len(classes))
        train_label = label[train["label"]]
        rows = np.flatnonzero(train_label >= 0)
        return probing.Features(
            np.asarray(train["feature"][rows]),
            train_label[rows],
            np.asarray(asked["feature"]),
            np.asarray(asked["label"]),
            classes,
        )


def _classes(features: artifacts.Artifact) -> ClassList:
    stored = features.attributes["classes"]
    return ClassList(tuple(stored["ids"]), tuple(stored["names"]))
