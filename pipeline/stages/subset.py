"""A split as WebDataset tars: the kept samples of the pool, byte for byte."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from hpc.files import atomic_folder, read_json, write_json
from hpc.stage import Context, OutputError, Recipe, Task, reference
from pipeline import artifacts
from pipeline.data.tars import END_OF_ARCHIVE, Sample, copy_samples, index_shard
from pipeline.layout import POOL, SIZES, Layout
from pipeline.sections import Pool
from pipeline.sources import file_identity, pool_groups, tars_of

SUMMARY = "subset.json"


@dataclass(frozen=True)
class Subset:
    """Stage 6: one task for each split that is trained on."""

    run_layout: Layout
    pool: Pool
    splits: list[str]
    samples_per_shard: int
    name: str = "subset"
    version: int = 1

    def tasks(self) -> list[Task]:
        """One for each split."""
        files = range(len(pool_groups(self.pool)))
        rows = [reference("embed", f"{POOL}/{index:05d}") for index in files]
        return [
            Task(
                name=split,
                recipe=Recipe(
                    settings={"samples_per_shard": self.samples_per_shard},
                    inputs=(reference("mask", split), *rows),
                ),
                outputs=(self.run_layout.subset(split),),
            )
            for split in self.splits
        ]

    def check(self, task: Task, digest: str) -> dict[str, str]:
        """Compare every tar with the hash taken when it was written."""
        folder = task.outputs[0]
        try:
            made_for, tars = itemgetter("digest", "tars")(read_json(folder / SUMMARY))
            sizes = read_json(folder / SIZES)
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise OutputError(f"{folder}: no whole {SUMMARY} and {SIZES}: {error!r}") from error
        if made_for != digest:
            raise OutputError(f"{folder}: made for digest {made_for}, expected {digest}")
        if sizes != {name: tar["samples"] for name, tar in tars.items()}:
            raise OutputError(f"{folder / SIZES} is damaged: not the sizes in {SUMMARY}")
        for name, tar in tars.items():
            if artifacts.hash_file(folder / name) != tar["xxh3"]:
                raise OutputError(f"{folder / name} is missing or damaged")
        return {"": artifacts.fingerprint({name: tar["xxh3"] for name, tar in tars.items()})}

    def run(self, task: Task, context: Context) -> dict[str, Any]:
        """Copy the kept samples into new tars.

        Raises:
            ValueError: the mask keeps nothing, a tar has changed since it was embedded, or counts
                don't add up.
        """
        mask = artifacts.read(self.run_layout.mask(task.name), artifacts.MASK)
        kept = mask.attributes["kept"]
        if not kept:
            words = mask.attributes["definition"]
            raise ValueError(f"the split {task.name} keeps no image ({words}): nothing to train on")
        with atomic_folder(task.outputs[0]) as folder:
            writer = _TarWriter(folder, self.samples_per_shard)
            for index in range(len(pool_groups(self.pool))):
                for shard, samples in self._kept_samples(mask, index):
                    writer.add(shard, samples)
                    context.progress(sum(writer.sizes.values()), kept, "samples")
            writer.close()
            written = sum(writer.sizes.values())
            if written != kept:
                raise ValueError(f"{task.name}: the mask keeps {kept} samples, {written} written")
            write_json(folder / SIZES, writer.sizes)
            tars = {
                name: {"samples": count, "xxh3": artifacts.hash_file(folder / name)}
                for name, count in writer.sizes.items()
            }
            write_json(folder / SUMMARY, {"digest": context.digest, "tars": tars})
        return {"samples": written, "tars": len(tars), "bytes": writer.bytes}

    def _kept_samples(
        self, mask: artifacts.Artifact, index: int
    ) -> Iterator[tuple[Path, list[Sample]]]:
        """Yield each shard of an embeddings file with its kept samples."""
        path = self.run_layout.embeddings(POOL, index)
        embeddings = artifacts.read(path, artifacts.EMBEDDINGS)
        keep = artifacts.keep_of(mask, index)
        sources = embeddings.attributes["sources"]
        for number, shard in enumerate(tars_of(self.pool, index, sources)):
            embedded = sources[number]["identity"]
            if file_identity(shard) != embedded:
                raise ValueError(f"{shard} has changed since it was embedded; submit again")
            rows = np.flatnonzero((embeddings["shard"] == number) & keep)
            if len(rows):
                yield shard, _find(shard, embeddings.text("key", rows))


def _find(shard: Path, keys: list[str]) -> list[Sample]:
    samples = {sample.key: sample for sample in index_shard(shard).samples}
    missing = [key for key in keys if key not in samples]
    if missing:
        raise ValueError(
            f"{shard}: {len(missing)} samples that were embedded are not in it; the first is "
            f"{missing[0]}"
        )
    return [samples[key] for key in keys]


@dataclass
class _TarWriter:
    """Writes numbered tars of at most `samples_per_shard` samples."""

    folder: Path
    samples_per_shard: int
    sizes: dict[str, int] = field(default_factory=dict)
    bytes: int = 0
    _file: BinaryIO | None = None
    _name: str = ""

    def add(self, shard: Path, samples: list[Sample]) -> None:
        """Append samples of one source tar."""
        while samples:
            file = self._open()
            room = self.samples_per_shard - self.sizes[self._name]
            self.bytes += copy_samples(shard, samples[:room], file)
            self.sizes[self._name] += len(samples[:room])
            samples = samples[room:]

    def _open(self) -> BinaryIO:
        if self._file and self.sizes[self._name] < self.samples_per_shard:
            return self._file
        self.close()
        self._name = f"{len(self.sizes):05d}.tar"
        self.sizes[self._name] = 0
        self._file = (self.folder / self._name).open("wb")
        return self._file

    def close(self) -> None:
        """End the last tar."""
        if self._file:
            self._file.write(END_OF_ARCHIVE)
            self._file.close()
            self._file = None
