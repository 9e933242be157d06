"""Zero-shot classification: each trained model on each test set, with that set's class list."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc.stage import Context, Recipe, Task, reference
from pipeline import artifacts
from pipeline.evaluation.zero_shot import (
    Evaluated,
    benchmark_path,
    check_results,
    classify,
    write_results,
)
from pipeline.experiment.sections import Evaluation, TestSet, Training
from pipeline.experiment.sources import classes_in, folder_identity
from pipeline.layout import Layout


@dataclass(frozen=True)
class Evaluate:
    """Stage 8: one task for each split, seed and test set."""

    run_layout: Layout
    tests: Mapping[str, TestSet]
    splits: list[str]
    training: Training
    evaluation: Evaluation
    name: str = "evaluate"
    version: int = 2

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
        path = self.run_layout.evaluation(split, seed, test)
        return Task(
            name=f"{split}/seed-{seed}/{test}",
            recipe=Recipe(
                settings={**options, **identity},
                inputs=(reference("train", f"{split}/seed-{seed}"),),
            ),
            outputs=(path, benchmark_path(path)),
        )

    def check(self, task: Task, digest: str) -> dict[str, str]:
        """Verify the file's hashes, and CLIP_benchmark's JSON."""
        hashes = check_results(task.outputs[0], digest)
        return {"": artifacts.fingerprint(hashes)}

    def run(self, task: Task, context: Context) -> dict[str, Any]:
        """Classify a test set's images.

        Raises:
            ValueError: more than `max_bad_fraction` of the images can't be used.
        """
        from pipeline.models import job_device, load_embedder

        split, seed, test = _parts(task.name)
        model = load_embedder(
            self.training.model,
            str(self.run_layout.checkpoint(split, seed)),
            precision=self.evaluation.precision,
            device=job_device(self.evaluation.device, context.resources.gpus),
            options=self.training.options,
        )
        found = classify(
            model,
            self.tests[test],
            self.evaluation,
            lambda done, total: context.progress(done, total, "images"),
        )
        name, pretrained = Path(self.training.model).stem, f"{split}/seed-{seed}"
        what = Evaluated(test, name, pretrained, split, seed, self.evaluation.templates)
        write_results(task.outputs[0], context.digest, what, found)
        ignored = {"ignored_folders": found.ignored_folders} if found.ignored_folders else {}
        return {
            "read": found.read,
            "used": len(found.keys),
            "skipped": dict(Counter(reason for _, reason in found.skipped)),
            **ignored,
            "top1": round(100 * found.top(1), 2),
            "top5": round(100 * found.top(5), 2),
            "mean_per_class": round(100 * found.mean_per_class, 2),
        }


def _parts(name: str) -> tuple[str, int, str]:
    split, seed, test = name.rsplit("/", 2)
    return split, int(seed.removeprefix("seed-")), test
