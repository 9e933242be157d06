"""CLIP from scratch on each split, by open_clip_train."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc.files import atomic_path, read_json, write_json
from hpc.stage import Context, OutputError, Recipe, Task, reference
from pipeline import artifacts
from pipeline.experiment import Training
from pipeline.layout import Layout
from pipeline.sources import model_identity
from pipeline.training import train

RECORD = "training.json"
SIZES = "sizes.json"


@dataclass(frozen=True)
class Train:
    """Stage 7: one task for each split and seed."""

    run_layout: Layout
    splits: list[str]
    training: Training
    name: str = "train"
    version: int = 1

    def tasks(self) -> list[Task]:
        """One for each split and seed."""
        settings = {
            "model": model_identity(self.training.model),
            **self.training.model_dump(
                include={"epochs", "samples_per_epoch", "batch_size", "workers", "options"}
            ),
        }
        return [
            Task(
                name=f"{split}/seed-{seed}",
                recipe=Recipe(
                    settings={**settings, "seed": seed}, inputs=(reference("subset", split),)
                ),
                outputs=(self.run_layout.checkpoint(split, seed),),
            )
            for seed in self.training.seeds
            for split in self.splits
        ]

    def check(self, task: Task, digest: str) -> dict[str, str]:
        """Compare the checkpoint with the hash taken when it was written."""
        checkpoint = task.outputs[0]
        try:
            record = read_json(checkpoint.with_name(RECORD))
        except (OSError, ValueError) as error:
            raise OutputError(f"{checkpoint.parent}: no readable {RECORD}: {error}") from error
        if record["digest"] != digest:
            raise OutputError(f"{checkpoint}: made for {record['digest']}, expected {digest}")
        found = artifacts.hash_file(checkpoint)
        if found != record["xxh3"]:
            raise OutputError(f"{checkpoint} is missing or damaged")
        return {"": found}

    def run(self, task: Task, context: Context) -> dict[str, Any]:
        """Train one model; a training that was cut off goes on from its last whole epoch.

        The working folder carries the digest, so a training with other settings never resumes
        from these checkpoints.
        """
        split, _, seed = task.name.rpartition("/seed-")
        folder = self.run_layout.training(split, int(seed))
        work = folder / f"work-{context.digest}"
        if not work.exists() and self._is_published(task, context.digest):
            return dict(read_json(folder / RECORD)["counts"])
        subset = self.run_layout.subset(split)
        sizes = read_json(subset / SIZES)
        started = time.time()
        checkpoint = train(
            model=self.training.model,
            shards=[subset / name for name in sizes],
            folder=work,
            options=self._options(int(seed), sum(sizes.values())),
            threads=context.resources.cpus,
            on_progress=lambda done, total: context.progress(done, total, "samples"),
        )
        counts = {"samples": sum(sizes.values()), "training_seconds": time.time() - started}
        _publish(work, checkpoint, task.outputs[0], context.digest, counts)
        return counts

    def _options(self, seed: int, samples: int) -> dict[str, Any]:
        training = self.training
        return {
            **training.options,
            "epochs": training.epochs,
            "train-num-samples": training.samples_per_epoch or samples,
            "batch-size": training.batch_size,
            "workers": training.workers,
            "seed": seed,
        }

    def _is_published(self, task: Task, digest: str) -> bool:
        try:
            self.check(task, digest)
        except OutputError:
            return False
        return True


def _publish(
    work: Path, checkpoint: Path, final: Path, digest: str, counts: dict[str, Any]
) -> None:
    """Give a finished training's files their final names, then drop its working folder.

    In this order a kill at any instant leaves either the working folder, from which everything is
    published again, or all final files.
    """
    for source, target in ((checkpoint, final), (work / "out.log", final.with_name("out.log"))):
        with atomic_path(target) as temporary:
            _link_or_copy(source, temporary)
    record = {"digest": digest, "xxh3": artifacts.hash_file(final), "counts": counts}
    write_json(final.with_name(RECORD), record)
    for folder in final.parent.glob("work-*"):
        shutil.rmtree(folder)


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)
