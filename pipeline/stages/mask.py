"""Which pool rows each split keeps: one packed keep mask a split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpc.stage import Context, Recipe, Task, reference
from pipeline import artifacts, selection
from pipeline.layout import POOL, Layout
from pipeline.sections import Pool, Split
from pipeline.sources import pool_groups


@dataclass(frozen=True)
class Mask:
    """Stage 5: one task for each split."""

    run_layout: Layout
    pool: Pool
    splits: Mapping[str, Split]
    name: str = "mask"
    version: int = 1

    def tasks(self) -> list[Task]:
        """One for each split; it depends only on the test sets that its definition names."""
        return [self._task(name) for name in self.splits]

    def _task(self, split: str) -> Task:
        tests = selection.tests_of(self.splits, split)
        files = [f"{index:05d}" for index in range(len(pool_groups(self.pool)))]
        uses = [f"{reference('scan', file)}#{test}" for file in files for test in tests]
        return Task(
            name=split,
            recipe=Recipe(
                settings=selection.definition(self.splits, split),
                inputs=tuple(uses or [reference("embed", f"{POOL}/{file}") for file in files]),
            ),
            outputs=(self.run_layout.mask(split),),
        )

    def check(self, task: Task, digest: str) -> dict[str, str]:
        """Verify the file's hashes."""
        hashes = artifacts.verify(task.outputs[0], artifacts.MASK, digest)
        return {"": artifacts.fingerprint(hashes)}

    def run(self, task: Task, context: Context) -> dict[str, Any]:
        """Write a split's keep mask."""
        tests = selection.tests_of(self.splits, task.name)
        files = [self._file(index, tests) for index in range(len(pool_groups(self.pool)))]
        packed, kept = [np.empty(0, dtype=np.uint8)], 0
        for index, rows in enumerate(selection.keep(self.splits, task.name, files)):
            packed.append(np.packbits(rows))
            kept += int(rows.sum())
            context.progress(index + 1, len(files), "files")
        total = sum(file.rows for file in files)
        artifacts.write(
            task.outputs[0],
            artifacts.MASK,
            context.digest,
            {
                "keep": np.concatenate(packed),
                "rows": np.array([file.rows for file in files], dtype=np.int64),
            },
            {
                "split": task.name,
                "definition": selection.in_words(self.splits, task.name),
                "rows_total": total,
                "kept": kept,
            },
        )
        return {"rows": total, "kept": kept}

    def _file(self, index: int, tests: list[str]) -> selection.PoolFile:
        if not tests:
            path = self.run_layout.embeddings(POOL, index)
            embeddings = artifacts.read(path, artifacts.EMBEDDINGS)
            return selection.PoolFile(len(embeddings["key"]), _no_tests)
        scan = artifacts.read(self.run_layout.similarity(index), artifacts.SIMILARITY)
        columns = list(scan.attributes["tests"])

        def near(test: str) -> Any:
            return np.asarray(scan["near"][:, columns.index(test)])

        return selection.PoolFile(len(scan["near"]), near)


def _no_tests(test: str) -> Any:
    raise LookupError(f"this selection does not depend on test sets, asked for {test}")
