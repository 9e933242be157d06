"""CLIP from scratch on each split, by open_clip_train."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hpc.files import atomic_folder, read_json, write_json
from hpc.stage import Context, OutputError, Recipe, Task, reference
from pipeline import artifacts
from pipeline.experiment.sections import Pool, ReferenceSet, Training
from pipeline.experiment.sources import classes_in, label_ranges, model_identity, pool_groups
from pipeline.layout import Layout
from pipeline.subsets import shards
from pipeline.subsets.plus_reference import name_of
from pipeline.training import curve
from pipeline.training.checkpoints import link_or_copy
from pipeline.training.global_batch import batch_of
from pipeline.training.processes import place
from pipeline.training.schedule import Schedule
from pipeline.training.train import schedule_in, train

RECORD = "training.json"
TRACKED = ("tensorboard", "wandb")
"""Folders of open_clip_train's trackers, published beside the checkpoint."""


@dataclass(frozen=True)
class Train:
    """Stage 7: one task for each split and seed."""

    run_layout: Layout
    pool: Pool
    reference: ReferenceSet
    splits: Mapping[str, str | None]
    """The splits to train on; a caption template for those that add the reference."""
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
        if self.training.global_batch:
            settings["global_batch"] = self.training.global_batch
        inputs = {
            split: tuple(reference("subset", name) for name in self._subset(split))
            for split in self.splits
        }
        return [
            Task(
                name=f"{split}/seed-{seed}",
                recipe=Recipe(settings={**settings, "seed": seed}, inputs=inputs[split]),
                outputs=(self.run_layout.checkpoint(split, seed),),
            )
            for seed in self.training.seeds
            for split in self.splits
        ]

    def _subset(self, split: str) -> list[str]:
        """The tasks of the stage `subset` that make what a split is trained on."""
        names = shards.task_names(
            split, len(shards.file_ranges(len(pool_groups(self.pool)), self.training))
        )
        template = self.splits[split]
        if template is not None and self.training.data == "live":
            files = label_ranges(classes_in(self.reference), self.reference.files)
            names += shards.task_names(name_of(template), len(files))
        return names

    def check(self, task: Task, digest: str) -> dict[str, str]:
        """Compare the checkpoint with the hash taken when it was written."""
        checkpoint = task.outputs[0]
        try:
            record = read_json(checkpoint.with_name(RECORD))
            made_for, recorded = record["digest"], record["xxh3"]
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise OutputError(f"{checkpoint.parent}: no whole {RECORD}: {error!r}") from error
        if made_for != digest:
            raise OutputError(f"{checkpoint}: made for {made_for}, expected {digest}")
        found = artifacts.hash_file(checkpoint)
        if found != recorded:
            raise OutputError(f"{checkpoint} is missing or damaged")
        return {"": found}

    def run(self, task: Task, context: Context) -> dict[str, Any]:
        """Train one model; a training that was cut off goes on from its last whole checkpoint.

        The working folder's name is a hash of the settings and of the subset's content, so a
        training never resumes from the checkpoints of another.
        """
        folder, identity = task.outputs[0].parent, _identity(context)
        if (counts := self._published(task, context.digest, identity)) is not None:
            return counts
        started = time.time()
        checkpoint, samples, schedule = self._train(task, context)
        counts = {
            "samples": samples,
            "training_seconds": time.time() - started,
            "processes": schedule.processes,
            "global_batch": schedule.global_batch,
        }
        _publish(checkpoint, task.outputs[0])
        record = {
            "digest": context.digest,
            "identity": identity,
            "xxh3": artifacts.hash_file(task.outputs[0]),
            "counts": counts,
            "schedule": {**asdict(schedule), "steps": schedule.steps},
        }
        write_json(folder / RECORD, record)  # from here on it is published
        _drop_work(folder)
        return counts

    def follow(self, task: Task, context: Context) -> None:
        """Take part in a training that rank 0 runs and publishes."""
        self._train(task, context)

    def _train(self, task: Task, context: Context) -> tuple[Path, int, Schedule]:
        """Train; returns the checkpoint in the working folder, and the samples of the subset."""
        split, _, seed = task.name.rpartition("/seed-")
        data = shards.training_shards(self.run_layout, self.pool, split, self._subset(split))
        shards.refuse_changed(data)
        samples = sum(shard.samples for shard in data)
        if self.training.data == "live" and place()[0] == 0:
            print(f"{task.name}: {shards.bandwidth_in_words(data)}", flush=True)
        folder = task.outputs[0].parent / f"work-{_identity(context)}"
        options, every = self._options(int(seed), samples), self.training.checkpoint_every
        checkpoint = train(
            model=self.training.model,
            shards=[shard.url for shard in data],
            folder=folder,
            options=options,
            checkpoint_every=every,
            threads=context.resources.cpus,
            on_progress=lambda done, total: context.progress(done, total, "samples"),
            on_start=context.start_followers,
        )
        return checkpoint, samples, schedule_in(folder, options, every)

    def _options(self, seed: int, samples: int) -> dict[str, Any]:
        training = self.training
        return {
            **training.options,
            "epochs": training.epochs,
            "train-num-samples": training.samples_per_epoch or samples,
            "batch-size": batch_of(training, place()[1], f"this job: {place()[1]} processes"),
            "workers": training.workers,
            "seed": seed,
        }

    def _published(self, task: Task, digest: str, identity: str) -> dict[str, Any] | None:
        """The counts of this very training, if a kill came between its end and its marker."""
        try:
            self.check(task, digest)
        except OutputError:
            return None
        folder = task.outputs[0].parent
        record = read_json(folder / RECORD)
        if record.get("identity") != identity:
            return None
        _drop_work(folder)
        return dict(record["counts"])


def _identity(context: Context) -> str:
    return artifacts.fingerprint({"": context.digest, **context.inputs})


def _publish(checkpoint: Path, target: Path) -> None:
    """The checkpoint, the log of each process, the curve, and what trackers wrote."""
    work = checkpoint.parents[1]
    for old in target.parent.glob("out*.log"):  # of more processes than there are now
        old.unlink()
    logs = {log: log.name for log in [*work.glob("out*.log"), work / curve.NAME]}
    for source, name in {checkpoint: target.name, **logs}.items():
        link_or_copy(source, target.with_name(name))
    for tracker in TRACKED:
        shutil.rmtree(target.with_name(tracker), ignore_errors=True)
        if (work / tracker).exists():
            with atomic_folder(target.with_name(tracker)) as folder:
                shutil.copytree(work / tracker, folder, symlinks=True, dirs_exist_ok=True)


def _drop_work(folder: Path) -> None:
    for work in folder.glob("work-*"):
        shutil.rmtree(work)
