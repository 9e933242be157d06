"""Each pool image against all test images, in one pass over an embeddings file."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from hpc.stage import Context, Counts, Recipe, Rest, Task, reference
from pipeline import artifacts
from pipeline.experiment.sections import Pool, Similarity
from pipeline.experiment.sources import pool_groups
from pipeline.layout import POOL, Layout


@dataclass(frozen=True)
class Scan:
    """Stage 4: one task for each embeddings file of the pool."""

    run_layout: Layout
    pool: Pool
    tests: list[str]
    similarity: Similarity
    name: str = "scan"
    version: int = 2

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

    def run(self, task: Task, context: Context) -> Rest:
        """Compare one embeddings file with all test sets; its results are written in the rest.

        Raises:
            ValueError: rows are not finite or not of length one, or dimensions differ; the
                message names the file and the row.
        """
        from pipeline.models import job_device

        path = self._pool_file(task)
        artifacts.prefetch(path, *([self._pool_file(context.upcoming)] if context.upcoming else []))
        pool = artifacts.read(path, artifacts.EMBEDDINGS)["embedding"]
        scanner, offsets = _scanner(
            tuple(self.run_layout.embeddings(test, 0) for test in self.tests),
            tuple(self.run_layout.reference(test) for test in self.tests),
            tuple(context.inputs[name] for name in task.recipe.inputs[1:]),
            self.similarity.neighbours,
            self.similarity.backend,
            job_device(self.similarity.device, context.resources.gpus),
        )
        near, best_similarity, best_query = self._of_no_rows()
        try:
            if len(pool):
                found = scanner.add(
                    pool, progress=lambda done, rows: context.progress(done, rows, "rows")
                )
                near, best_similarity = found.near_NS, found.best_similarity_NS
                best_query = found.best_query_NS
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        finally:
            queries, effort = scanner.finish()
        if len(pool):
            print(f"{task.name}: {effort}", flush=True)
        arrays = {
            "near": near,
            "best_similarity": best_similarity.astype(np.float32),
            "best_query": (best_query - offsets[:-1]).astype(np.int32),
            "above_threshold": queries.above_threshold_M,
            "neighbour_similarity": queries.neighbour_similarity_MK,
            "neighbour_row": queries.neighbour_row_MK,
        }
        used = {
            "backend": scanner.choice.backend,
            "rechecked": effort.rechecked,
            "epsilon": effort.epsilon,
        }
        attributes = {"tests": self.tests, "offsets": offsets.tolist(), **used}

        def write() -> Counts:
            output = task.outputs[0]
            artifacts.write(output, artifacts.SIMILARITY, context.digest, arrays, attributes)
            return {
                "rows": len(pool),
                "near": dict(zip(self.tests, near.sum(axis=0).tolist(), strict=True)),
                "rows_per_second": round(effort.rows_per_second, 1),
                "tflops": round(effort.tflops, 4),
                "bound_by": effort.bound_by,
                "why_backend": scanner.choice.why,
                **used,
            }

        return write

    def _pool_file(self, task: Task) -> Path:
        return self.run_layout.embeddings(POOL, int(task.name))

    def _of_no_rows(self) -> tuple[Any, Any, Any]:
        shape = (0, len(self.tests))
        return np.zeros(shape, dtype=bool), np.zeros(shape), np.zeros(shape, dtype=np.int64)


@lru_cache(maxsize=1)
def _scanner(
    images: tuple[Path, ...],
    thresholds: tuple[Path, ...],
    contents: tuple[str, ...],
    neighbours: int,
    backend: str,
    device: str,
) -> tuple[Any, Any]:
    """Test images on the device, kept for all tasks of a job; and their offsets (S + 1,).

    Args:
        images: embeddings of each test set.
        thresholds: what the reference stage says of each.
        contents: fingerprints of `thresholds`: what changed is read again.
        neighbours: K.
        backend: a name or "auto".
        device: a name or "auto".
    """
    import kernels

    rows = [artifacts.read(path, artifacts.EMBEDDINGS)["embedding"] for path in images]
    taus = [artifacts.read(path, artifacts.REFERENCE)["threshold"] for path in thresholds]
    offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
    scanner = kernels.Scanner(
        np.concatenate(rows),
        np.concatenate(taus),
        offsets,
        k=neighbours,
        backend=backend,
        device=device,
    )
    chosen = scanner.choice
    print(f"backend {chosen.backend} on {chosen.device} ({chosen.why})", flush=True)
    return scanner, offsets
