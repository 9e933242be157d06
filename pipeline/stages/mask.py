"""Which pool rows each split keeps: one packed keep mask a split, and what it keeps in numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpc.files import write_json
from hpc.stage import Context, Recipe, Task, reference
from pipeline import artifacts
from pipeline.experiment.sections import Pool
from pipeline.experiment.sources import pool_groups
from pipeline.experiment.splits import Split
from pipeline.layout import POOL, Layout
from pipeline.selection import definitions
from pipeline.selection.pool_files import PoolFiles, in_threads
from pipeline.selection.rows import Selection
from pipeline.selection.statistics import per_query, split_statistics

_STATISTICS = "statistics/"


@dataclass(frozen=True)
class Mask:
    """Stage 5: two tasks for each split, its mask and its statistics.

    A mask depends on the test sets that its split names and on nothing else. Statistics are about
    all test sets; as a task of their own they may become stale while the mask stays.
    """

    run_layout: Layout
    pool: Pool
    splits: Mapping[str, Split]
    tests: list[str]
    duplicates: int
    """Files of duplicates; 0 without deduplication."""
    name: str = "mask"
    version: int = 2

    def tasks(self) -> list[Task]:
        """Masks first, so that they are not kept waiting."""
        masks = [self._mask(split) for split in self.splits]
        return masks + [self._statistics(split) for split in self.splits]

    def _mask(self, split: str) -> Task:
        return Task(
            name=split,
            recipe=Recipe(
                settings=definitions.definition(self.splits, split),
                inputs=self._inputs(split, definitions.tests_of(self.splits, split)),
            ),
            outputs=(self.run_layout.mask(split),),
        )

    def _statistics(self, split: str) -> Task:
        what = definitions.pool_images(self.splits, split)
        return Task(
            name=_STATISTICS + split,
            recipe=Recipe(
                settings={"statistics": what, "tests": self.tests},
                inputs=self._inputs(split, self.tests),
            ),
            outputs=(self.run_layout.statistics(split),),
        )

    def _inputs(self, split: str, tests: list[str]) -> tuple[str, ...]:
        files = [f"{index:05d}" for index in range(len(pool_groups(self.pool)))]
        uses = [f"{reference('scan', file)}#{test}" for file in files for test in tests]
        uses = uses or [reference("embed", f"{POOL}/{file}") for file in files]
        if definitions.needs_duplicates(self.splits, split):
            uses += [reference("dedup", f"{index:05d}") for index in range(self.duplicates)]
        return tuple(uses)

    def check(self, task: Task, digest: str) -> dict[str, str]:
        """Verify a mask's hashes, or that statistics are whole."""
        path = task.outputs[0]
        if not task.name.startswith(_STATISTICS):
            hashes = artifacts.verify(path, artifacts.MASK, digest)
            return {"": artifacts.fingerprint(hashes)}
        return artifacts.check_record(path, digest)

    def run(self, task: Task, context: Context) -> dict[str, Any]:
        """Write a split's keep mask, or its statistics.

        Raises:
            ValueError: the split is to keep more rows than there are.
        """
        split = task.name.removeprefix(_STATISTICS)
        is_mask = split == task.name
        tests = definitions.tests_of(self.splits, split) if is_mask else self.tests
        needs_duplicates = definitions.needs_duplicates(self.splits, split)
        files = PoolFiles(
            self.run_layout,
            len(pool_groups(self.pool)),
            tests,
            self.duplicates if needs_duplicates else None,
        )
        with in_threads(context.resources.cpus) as run:
            selection = Selection(self.splits, files.open(), run)
            if is_mask:
                return self._write_mask(task, context, selection)
            found = split_statistics(selection, split, tests)
        per_image = per_query(files.near_pool_images())
        write_json(task.outputs[0], {"digest": context.digest, **found, "per_query": per_image})
        return found

    def _write_mask(self, task: Task, context: Context, selection: Selection) -> dict[str, Any]:
        rows, packed, kept = selection.rows(task.name), [np.empty(0, dtype=np.uint8)], 0

        def of_file(file: int) -> tuple[Any, int]:
            keep = rows(file)
            return np.packbits(keep), int(np.count_nonzero(keep))

        for bits, count in selection.run(of_file, range(len(selection.files))):
            packed.append(bits)
            kept += count
            context.progress(len(packed) - 1, len(selection.files), "files")
        sizes = np.array([file.rows for file in selection.files], dtype=np.int64)
        facts = {"rows_total": int(sizes.sum()), "kept": kept}
        artifacts.write(
            task.outputs[0],
            artifacts.MASK,
            context.digest,
            {"keep": np.concatenate(packed), "rows": sizes},
            {
                "split": task.name,
                "definition": definitions.in_words(self.splits, task.name),
                "plus_reference": self.splits[task.name].caption,
                **facts,
            },
        )
        return {"rows": facts["rows_total"], "kept": kept}
