"""What a split is trained on: the samples that it keeps, byte for byte, or where they lie."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc.files import atomic_folder, write_json
from hpc.stage import Context, OutputError, Recipe, Task, reference
from pipeline import artifacts
from pipeline.data.rewriting import joined
from pipeline.experiment.sections import Pool, ReferenceSet, Training
from pipeline.experiment.sources import classes_in, label_ranges, pool_groups
from pipeline.layout import POOL, REFERENCE, SIZES, Layout
from pipeline.subsets import shards, stream
from pipeline.subsets.kept import KeptSamples
from pipeline.subsets.plus_reference import ReferenceSamples, name_of
from pipeline.subsets.rewrite import TarFolder, share

_Made = tuple[shards.Record, int]
"""What a task made, and how many bytes it wrote."""


@dataclass(frozen=True)
class Subset:
    """Stage 6: one task for each range of the pool's embeddings files, for each trained split."""

    run_layout: Layout
    pool: Pool
    reference: ReferenceSet
    splits: Mapping[str, str | None]
    """The splits that are trained on; a caption template for those that add the reference."""
    training: Training
    name: str = "subset"
    version: int = 3

    def tasks(self) -> list[Task]:
        """For each split its ranges; live, for each caption template the reference's files."""
        tasks = [
            self._task(split, number, files)
            for split in self.splits
            for number, files in enumerate(self._ranges)
        ]
        if self.training.data == "live":
            templates = dict.fromkeys(filter(None, self.splits.values()))
            tasks += [
                self._reference_task(template, file)
                for template in templates
                for file in range(self._reference_files)
            ]
        return tasks

    @property
    def _ranges(self) -> list[range]:
        return shards.file_ranges(len(pool_groups(self.pool)), self.training)

    @property
    def _reference_files(self) -> int:
        return len(label_ranges(classes_in(self.reference), self.reference.files))

    def _reference_inputs(self) -> list[str]:
        files = range(self._reference_files)
        return [reference("embed", f"{REFERENCE}/{index:05d}") for index in files]

    def _task(self, split: str, number: int, files: range) -> Task:
        settings: dict[str, Any] = {"data": self.training.data, "files": [files.start, files.stop]}
        inputs = [reference("mask", split)]
        inputs += [reference("embed", f"{POOL}/{index:05d}") for index in files]
        if self.training.data == "tars":
            settings["samples_per_shard"] = self.training.samples_per_shard
            if (template := self.splits[split]) is not None:
                settings["plus_reference"] = template
                inputs += self._reference_inputs()
        return Task(
            name=f"{split}/{number:05d}",
            recipe=Recipe(settings=settings, inputs=tuple(inputs)),
            outputs=(self.run_layout.subset_task(split, number),),
        )

    def _reference_task(self, template: str, number: int) -> Task:
        settings = {
            "plus_reference": template,
            "samples_per_shard": self.training.samples_per_shard,
        }
        return Task(
            name=f"{name_of(template)}/{number:05d}",
            recipe=Recipe(settings=settings, inputs=tuple(self._reference_inputs())),
            outputs=(self.run_layout.subset_task(name_of(template), number),),
        )

    def check(self, task: Task, digest: str) -> dict[str, str]:
        """Compare every file with the hash taken when it was written."""
        folder = task.outputs[0]
        record = shards.read_record(folder)
        if record.digest != digest:
            raise OutputError(f"{folder}: made for digest {record.digest}, expected {digest}")
        hashes = {name: str(one["xxh3"]) for name, one in record.files.items()}
        for name, expected in hashes.items():
            if artifacts.hash_file(folder / name) != expected:
                raise OutputError(f"{folder / name} is missing or damaged")
        made = {"samples": record.samples, "reference": record.reference, "shards": record.shards}
        return {"": artifacts.fingerprint({**hashes, "": str(made)})}

    def run(self, task: Task, context: Context) -> dict[str, Any]:
        """Write what a training reads of one range.

        Raises:
            ValueError: the split has no sample at all, a tar has changed since it was embedded,
                or counts don't add up.
        """
        split, _, number = task.name.rpartition("/")
        make = self._maker(split, int(number))
        with atomic_folder(task.outputs[0]) as folder:
            record, written = make(folder, context)
            write_json(folder / shards.RECORD, record.values())
        if split in self.splits:
            self._tidy(split)
        counts = {"samples": record.samples, "reference": record.reference, "bytes": written}
        if shards.SPANS in record.files:
            kept = sum(one["bytes"] for one in record.shards)
            return {**counts, "live_tars": len(record.shards), "live_bytes": kept}
        return {**counts, "tars": len(record.tars)}

    def _maker(self, split: str, number: int) -> Callable[[Path, Context], _Made]:
        """What a task does, given the folder to fill."""
        if split not in self.splits:
            template = next(one for one in self.splits.values() if one and name_of(one) == split)
            return lambda folder, context: self._write_reference(folder, context, template, number)
        if self.training.data == "live":
            return lambda folder, context: self._write_spans(folder, context, split, number)
        return lambda folder, context: self._write_tars(folder, context, split, number)

    def _kept(self, split: str, number: int) -> KeptSamples:
        mask = artifacts.read(self.run_layout.mask(split), artifacts.MASK)
        if not mask.attributes["kept"] and self.splits[split] is None:
            words = mask.attributes["definition"]
            raise ValueError(f"the split {split} keeps no image ({words}): nothing to train on")
        return KeptSamples(self.run_layout, self.pool, mask, self._ranges[number])

    def _reference(self, template: str) -> ReferenceSamples:
        return ReferenceSamples(self.run_layout, self.reference, self._reference_files, template)

    def _write_tars(self, folder: Path, context: Context, split: str, number: int) -> _Made:
        kept, template = self._kept(split, number), self.splits[split]
        added, total = range(0), 0
        writer = TarFolder(folder, self.training.samples_per_shard, context.progress)
        if template is not None:
            samples = self._reference(template)
            total = len(samples)
            added = share(total, kept.before, len(kept), kept.total, number, len(self._ranges))
            kept.refuse_reference_keys()
            writer.write(kept, [(samples, position) for position in added])
        else:
            writer.write(kept)
        record = shards.Record(
            digest=context.digest,
            samples=len(kept),
            reference=len(added),
            reference_total=total,
            files=writer.files,
        )
        return _reconciled(record), writer.size

    def _write_reference(self, folder: Path, context: Context, template: str, number: int) -> _Made:
        samples, tasks = self._reference(template), self._reference_files
        total = len(samples)
        added = range(total * number // tasks, total * (number + 1) // tasks)
        writer = TarFolder(folder, self.training.samples_per_shard, context.progress)
        writer.write(None, [(samples, position) for position in added])
        record = shards.Record(
            digest=context.digest,
            samples=0,
            reference=len(added),
            reference_total=total,
            files=writer.files,
        )
        return _reconciled(record), writer.size

    def _write_spans(self, folder: Path, context: Context, split: str, number: int) -> _Made:
        kept = self._kept(split, number)
        if self.splits[split] is not None:
            kept.refuse_reference_keys()
        runs: list[tuple[list[Any], list[tuple[int, int]]]] = []
        told: list[dict[str, Any]] = []
        for at, tar in enumerate(kept.tars):
            blocks = tar.blocks() if tar.samples else []
            kept_runs = [(run.offset, run.size) for run in joined(blocks)]
            runs.append((tar.identity, kept_runs))
            if blocks:
                used = {"samples": len(blocks), "bytes": sum(size for _, size in kept_runs)}
                of = {"number": at, "position": tar.position, "identity": tar.identity}
                told.append({**of, **used})
            context.progress(at + 1, len(kept.tars), "tars")
        path = folder / shards.SPANS
        stream.write_spans(str(path), runs)
        files = {shards.SPANS: {"xxh3": artifacts.hash_file(path)}}
        record = shards.Record(digest=context.digest, samples=len(kept), files=files, shards=told)
        return _reconciled(record), path.stat().st_size

    def _tidy(self, split: str) -> None:
        """Write the sizes of all tars of the split, once every task has made its own.

        The last task to end sees them all, and so the file is right when all tasks are done.
        Folders of tasks that there are no more are removed: who lists the tars finds those of the
        split and no others.
        """
        folder, tasks = self.run_layout.subset(split), len(self._ranges)
        (folder / SIZES).unlink(missing_ok=True)
        for other in folder.iterdir():
            if other.is_dir() and other.name.isdigit() and int(other.name) >= tasks:
                shutil.rmtree(other, ignore_errors=True)
        sizes: dict[str, int] = {}
        with suppress(OutputError):
            for number in range(tasks):
                part = self.run_layout.subset_task(split, number)
                tars = shards.read_record(part).tars
                sizes |= {f"{part.name}/{tar}": samples for tar, samples in tars.items()}
            if sizes:
                write_json(folder / SIZES, sizes)


def _reconciled(record: shards.Record) -> shards.Record:
    """Raise unless the tars hold as many samples as were to be written, or are to be streamed."""
    written = sum(record.tars.values()) + sum(one["samples"] for one in record.shards)
    wanted = record.samples + record.reference
    if written != wanted:
        raise ValueError(f"{wanted} samples are kept, {written} were written")
    return record
