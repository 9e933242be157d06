"""Each pool image against all test images, in one pass over an embeddings file."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpc.stage import Context, Recipe, Task, reference
from pipeline import artifacts
from pipeline.experiment import Pool, Similarity
from pipeline.layout import POOL, Layout
from pipeline.sources import pool_groups


@dataclass(frozen=True)
class Scan:
    """Stage 4: one task for each embeddings file of the pool."""

    run_layout: Layout
    pool: Pool
    tests: list[str]
    similarity: Similarity
    name: str = "scan"
    version: int = 1

    def tasks(self) -> list[Task]:
        """One for each embeddings file; what it says of one test set is a part."""
        return [self._task(index) for index in range(len(pool_groups(self.pool)))]

    def _task(self, index: int) -> Task:
        rows = reference("embed", f"{POOL}/{index:05d}")
        thresholds = {test: f"{reference('reference', test)}#threshold" for test in self.tests}
        return Task(
            name=f"{index:05d}",
            recipe=Recipe(
                settings={"tests": self.tests, "neighbours": self.similarity.neighbours},
                inputs=(rows, *thresholds.values()),
            ),
            outputs=(self.run_layout.similarity(index),),
            parts={test: Recipe(inputs=(rows, name)) for test, name in thresholds.items()},
        )

    def check(self, task: Task, digest: str) -> dict[str, str]:
        """Verify the file's hashes; a test set's part is its column of each pool dataset."""
        hashes = artifacts.verify(task.outputs[0], artifacts.SIMILARITY, digest)
        scan = artifacts.read(task.outputs[0], artifacts.SIMILARITY)
        columns = ("near", "best_similarity", "best_query")
        parts = {
            test: artifacts.fingerprint(
                {name: artifacts.hash_array(scan[name][:, column]) for name in columns}
            )
            for column, test in enumerate(scan.attributes["tests"])
        }
        return {"": artifacts.fingerprint(hashes), **parts}

    def run(self, task: Task, context: Context) -> dict[str, Any]:
        """Compare one embeddings file with all test sets.

        Raises:
            ValueError: rows are not finite or not of length one, or dimensions differ; the
                message names the file and the row.
        """
        import kernels
        from pipeline.models import job_device

        started = time.time()
        path = self.run_layout.embeddings(POOL, int(task.name))
        pool = artifacts.read(path, artifacts.EMBEDDINGS)["embedding"]
        queries, thresholds, offsets = self._queries()
        device = job_device(self.similarity.device, context.resources.gpus)
        backend = kernels.resolve_backend(self.similarity.backend, device)
        if not len(pool):
            arrays, used = self._nothing(len(queries)), {"backend": backend, "rechecked": 0}
        else:
            try:
                scan = kernels.scan(
                    pool,
                    queries,
                    thresholds,
                    offsets,
                    k=self.similarity.neighbours,
                    backend=backend,
                    device=device,
                )
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from error
            arrays = {
                "near": scan.near_NS,
                "best_similarity": scan.best_similarity_NS.astype(np.float32),
                "best_query": (scan.best_query_NS - offsets[:-1]).astype(np.int32),
                "above_threshold": scan.above_threshold_M,
                "neighbour_similarity": scan.neighbour_similarity_MK,
                "neighbour_row": scan.neighbour_row_MK,
            }
            used = {"backend": scan.backend, "rechecked": scan.rechecked}
        attributes = {"tests": self.tests, "offsets": offsets.tolist(), **used}
        artifacts.write(task.outputs[0], artifacts.SIMILARITY, context.digest, arrays, attributes)
        near = dict(zip(self.tests, arrays["near"].sum(axis=0).tolist(), strict=True))
        rate = len(pool) / max(time.time() - started, 1e-9)
        return {"rows": len(pool), "near": near, "rows_per_second": round(rate, 1), **used}

    def _queries(self) -> tuple[Any, Any, Any]:
        """All test images: embeddings (M, D), thresholds (M,), offsets (S + 1,)."""
        paths = [self.run_layout.embeddings(test, 0) for test in self.tests]
        rows = [artifacts.read(path, artifacts.EMBEDDINGS)["embedding"] for path in paths]
        taus = [
            artifacts.read(self.run_layout.reference(test), artifacts.REFERENCE)["threshold"]
            for test in self.tests
        ]
        offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
        return np.concatenate(rows), np.concatenate(taus), offsets

    def _nothing(self, queries: int) -> dict[str, Any]:
        """What an embeddings file without rows gives."""
        sets, k = len(self.tests), self.similarity.neighbours
        return {
            "near": np.zeros((0, sets), dtype=bool),
            "best_similarity": np.zeros((0, sets), dtype=np.float32),
            "best_query": np.zeros((0, sets), dtype=np.int32),
            "above_threshold": np.zeros(queries, dtype=np.int64),
            "neighbour_similarity": np.full((queries, k), -np.inf),
            "neighbour_row": np.full((queries, k), -1, dtype=np.int64),
        }
