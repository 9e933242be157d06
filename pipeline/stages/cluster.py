"""Where the pool's embeddings gather: the centres of clusters, by k-means on a sample of rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from hpc.stage import Context, Recipe, Task, reference
from pipeline import artifacts
from pipeline.experiment.sections import Dedup, Pool, Similarity
from pipeline.experiment.sources import pool_groups
from pipeline.layout import POOL, Layout
from pipeline.selection.deduplication import draw, on_gpu, rows_of

TASK = "centroids"


@dataclass(frozen=True)
class Cluster:
    """Stage 2, first step: one task, if the pool is deduplicated."""

    run_layout: Layout
    pool: Pool
    dedup: Dedup | None
    similarity: Similarity
    name: str = "cluster"
    version: int = 1

    def tasks(self) -> list[Task]:
        """One; it depends on all of the pool."""
        if self.dedup is None:
            return []
        include = {"clusters", "seed", "rows_per_cluster", "iterations"}
        files = range(len(pool_groups(self.pool)))
        return [
            Task(
                name=TASK,
                recipe=Recipe(
                    settings=self.dedup.model_dump(include=include),
                    inputs=tuple(reference("embed", f"{POOL}/{index:05d}") for index in files),
                ),
                outputs=(self.run_layout.centroids,),
            )
        ]

    def check(self, task: Task, digest: str) -> dict[str, str]:
        """Verify the file's hashes."""
        hashes = artifacts.verify(task.outputs[0], artifacts.CENTROIDS, digest)
        return {"": artifacts.fingerprint(hashes)}

    def run(self, task: Task, context: Context) -> dict[str, Any]:
        """Train k-means on rows that are drawn from all files.

        Raises:
            ValueError: the pool has fewer different rows than clusters, or rows that are not
                finite or not of length one.
            RuntimeError: FAISS is not installed, or has no GPU where the job was given one.
        """
        from kernels.faiss_backend import train_clusters

        assert self.dedup is not None
        gpu = on_gpu(self.similarity.device, context.resources.gpus)
        rows, total = self._sample(self.dedup)
        words = f"k-means on {len(rows):,} of {total:,} rows, {'GPU' if gpu else 'CPU'}"
        print(words, flush=True)
        try:
            centroids = train_clusters(
                rows,
                self.dedup.clusters,
                iterations=self.dedup.iterations,
                seed=self.dedup.seed,
                gpu=gpu,
                progress=lambda done, count: context.progress(done, count, "iterations"),
            )
        except ValueError as error:
            raise ValueError(f"dedup.clusters, on {len(rows)} rows drawn: {error}") from error
        device = "gpu" if gpu else "cpu"
        artifacts.write(
            task.outputs[0],
            artifacts.CENTROIDS,
            context.digest,
            {"centroid": centroids},
            {
                "seed": self.dedup.seed,
                "iterations": self.dedup.iterations,
                "rows": total,
                "trained_on": len(rows),
                "device": device,
            },
        )
        counts = {"rows": total, "trained_on": len(rows), "clusters": len(centroids)}
        return {**counts, "device": device}

    def _sample(self, dedup: Dedup) -> tuple[Any, int]:
        """Rows to train on (T, D) float16, and how many the pool has; others are not read."""
        paths = [
            self.run_layout.embeddings(POOL, index) for index in range(len(pool_groups(self.pool)))
        ]
        shapes = [rows_of(path).shape for path in paths]
        counts = [shape[0] for shape in shapes]
        wanted = dedup.clusters * dedup.rows_per_cluster
        parts = [np.empty((0, shapes[0][1]), dtype=np.float16)]
        for index, rows in draw(counts, wanted, dedup.seed):
            found = rows_of(paths[index])[rows]
            if found.shape[1] != shapes[0][1]:
                raise ValueError(
                    f"{paths[index]}: expected {shapes[0][1]} dimensions as in {paths[0]}, found "
                    f"{found.shape[1]}"
                )
            parts.append(found)
        return np.concatenate(parts), sum(counts)
