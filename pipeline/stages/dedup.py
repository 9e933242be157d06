"""Which pool rows repeat an earlier row of their cluster.

A row is a duplicate if a row of lower identity (embeddings file, row) in its cluster has similarity
to it strictly above the threshold, whether or not that row is itself a duplicate.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpc.stage import Context, Recipe, Task, reference
from pipeline import artifacts
from pipeline.experiment.sections import Dedup as Section
from pipeline.experiment.sections import Pool, Similarity
from pipeline.experiment.sources import pool_groups
from pipeline.layout import POOL, Layout
from pipeline.selection.deduplication import Members, gathered, members_of, rows_of

_SHARE_OF_MEMORY = 0.25
"""Of the job's, for embeddings that are compared; a larger cluster is read from a scratch file."""


@dataclass(frozen=True)
class Dedup:
    """Stage 2, third step: one task for each range of clusters."""

    run_layout: Layout
    pool: Pool
    dedup: Section | None
    similarity: Similarity
    name: str = "dedup"
    version: int = 1

    def tasks(self) -> list[Task]:
        """One for each range of clusters, if the pool is deduplicated."""
        if self.dedup is None:
            return []
        files = [f"{index:05d}" for index in range(len(pool_groups(self.pool)))]
        inputs = (
            *(reference("embed", f"{POOL}/{file}") for file in files),
            *(reference("assign", file) for file in files),
        )
        return [
            Task(
                name=f"{index:05d}",
                recipe=Recipe(
                    settings={
                        "threshold": self.dedup.threshold,
                        "clusters": [clusters.start, clusters.stop],
                    },
                    inputs=inputs,
                ),
                outputs=(self.run_layout.duplicates(index),),
            )
            for index, clusters in enumerate(cluster_ranges(self.dedup))
        ]

    def check(self, task: Task, digest: str) -> dict[str, str]:
        """Verify the file's hashes."""
        hashes = artifacts.verify(task.outputs[0], artifacts.DUPLICATES, digest)
        return {"": artifacts.fingerprint(hashes)}

    def run(self, task: Task, context: Context) -> dict[str, Any]:
        """Compare the rows of each cluster of a range.

        Raises:
            ValueError: a row has no cluster, files have other dimensions than the first, or rows
                are not finite or not of length one.
        """
        import kernels
        from pipeline.models import job_device

        assert self.dedup is not None
        clusters = cluster_ranges(self.dedup)[int(task.name)]
        chosen = kernels.resolve_backend(
            self.similarity.backend, job_device(self.similarity.device, context.resources.gpus)
        )
        print(f"backend {chosen.backend} on {chosen.device} ({chosen.why})", flush=True)
        started = time.time()
        members = self._members(clusters)
        sizes = np.bincount(members.cluster - clusters.start, minlength=len(clusters))
        memory = _SHARE_OF_MEMORY * 1e9 * context.resources.memory_gb
        found, done = [_duplicates(members[:0], np.empty(0, dtype=np.int64), np.empty(0))], 0
        for cluster, rows in self._clusters(members, memory):
            pairs = kernels.duplicates(
                rows, threshold=self.dedup.threshold, backend=chosen.backend, device=chosen.device
            )
            found.append(_duplicates(cluster, pairs.earlier_N, pairs.similarity_N))
            done += len(rows)
            context.progress(done, len(members), "rows")
        if done != len(members):
            raise ValueError(f"{task.name}: {len(members)} rows in {clusters}, {done} compared")
        arrays = {name: np.concatenate([part[name] for part in found]) for name in found[0]}
        order = np.lexsort((arrays["row"], arrays["file"]))
        artifacts.write(
            task.outputs[0],
            artifacts.DUPLICATES,
            context.digest,
            {name: array[order] for name, array in arrays.items()},
            {
                "threshold": self.dedup.threshold,
                "clusters": self.dedup.clusters,
                "first_cluster": clusters.start,
                "last_cluster": clusters.stop,
                "rows": len(members),
                "backend": chosen.backend,
            },
        )
        return {
            "rows": len(members),
            "duplicates": len(order),
            "clusters": len(clusters),
            "empty_clusters": int((sizes == 0).sum()),
            "largest_cluster": int(sizes.max()),
            "backend": chosen.backend,
            "rows_per_second": round(len(members) / max(time.time() - started, 1e-9), 1),
        }

    def _members(self, clusters: range) -> Members:
        files = range(len(pool_groups(self.pool)))
        paths = [self.run_layout.assignment(index) for index in files]
        return members_of(paths, clusters.start, clusters.stop)

    def _clusters(self, members: Members, memory: float) -> Iterator[tuple[Members, Any]]:
        """Yield each cluster that has rows, with their embeddings (N, D) float16."""
        files = [
            self.run_layout.embeddings(POOL, index) for index in range(len(pool_groups(self.pool)))
        ]
        if not len(members):
            return
        width = rows_of(files[0]).shape[1]
        scratch = self.run_layout.duplicates(0).parent
        for batch in members.batches(int(memory // (2 * width))):
            with gathered(batch, files, memory, scratch) as rows:
                for span in batch.spans():
                    yield batch[span], rows[span]


def cluster_ranges(dedup: Section) -> list[range]:
    """The clusters of each file of duplicates: all of them, in order, as equally as can be."""
    files = dedup.files
    bounds = [dedup.clusters * index // files for index in range(files + 1)]
    return [range(bounds[index], bounds[index + 1]) for index in range(files)]


def _duplicates(cluster: Members, earlier: Any, similarity: Any) -> dict[str, Any]:
    """The datasets of the rows of a cluster that have an earlier one; -1 says they have none."""
    row = np.flatnonzero(earlier >= 0)
    kept = earlier[row]
    return {
        "file": cluster.file[row],
        "row": cluster.row[row].astype(np.int64),
        "kept_file": cluster.file[kept],
        "kept_row": cluster.row[kept].astype(np.int64),
        "similarity": similarity[row],
    }
