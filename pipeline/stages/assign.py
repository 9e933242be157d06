"""The cluster of each pool row: that of its nearest centre."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpc.stage import Context, Recipe, Task, reference
from pipeline import artifacts
from pipeline.experiment.sections import Dedup, Pool, Similarity
from pipeline.experiment.sources import pool_groups
from pipeline.layout import POOL, Layout
from pipeline.selection.deduplication import on_gpu, rows_of


@dataclass(frozen=True)
class Assign:
    """Stage 2, second step: one task for each embeddings file of the pool."""

    run_layout: Layout
    pool: Pool
    dedup: Dedup | None
    similarity: Similarity
    name: str = "assign"
    version: int = 1

    def tasks(self) -> list[Task]:
        """One for each embeddings file, if the pool is deduplicated."""
        if self.dedup is None:
            return []
        centroids = reference("cluster", "centroids")
        return [
            Task(
                name=f"{index:05d}",
                recipe=Recipe(inputs=(reference("embed", f"{POOL}/{index:05d}"), centroids)),
                outputs=(self.run_layout.assignment(index),),
            )
            for index in range(len(pool_groups(self.pool)))
        ]

    def check(self, task: Task, digest: str) -> dict[str, str]:
        """Verify the file's hashes."""
        hashes = artifacts.verify(task.outputs[0], artifacts.ASSIGNMENT, digest)
        return {"": artifacts.fingerprint(hashes)}

    def run(self, task: Task, context: Context) -> dict[str, Any]:
        """Find the nearest centre of each row of a file.

        Raises:
            ValueError: rows are not finite or not of length one, or dimensions differ; the
                message names the file and the row.
            RuntimeError: FAISS is not installed, or has no GPU where the job was given one.
        """
        from kernels.faiss_backend import assign_clusters

        path = self.run_layout.embeddings(POOL, int(task.name))
        rows = rows_of(path)
        artifacts.prefetch(path)
        centroids = artifacts.read(self.run_layout.centroids, artifacts.CENTROIDS)["centroid"]
        gpu = on_gpu(self.similarity.device, context.resources.gpus)
        cluster, started = np.empty(0, dtype=np.int32), time.time()
        try:
            if len(rows):
                found = assign_clusters(
                    rows,
                    centroids,
                    gpu=gpu,
                    progress=lambda done, count: context.progress(done, count, "rows"),
                )
                cluster = found.astype(np.int32)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        device = "gpu" if gpu else "cpu"
        artifacts.write(
            task.outputs[0],
            artifacts.ASSIGNMENT,
            context.digest,
            {"cluster": cluster},
            {"clusters": len(centroids), "device": device},
        )
        rate = round(len(rows) / max(time.time() - started, 1e-9), 1)
        return {"rows": len(rows), "device": device, "rows_per_second": rate}
