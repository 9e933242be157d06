"""Each test image against the reference: its threshold tau and its nearest reference images.

tau_j is the similarity of test image j to its nearest neighbour in the reference, s_j(reference)
(Mayilvahanan et al., ICLR 2024), or one number for a whole test set.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpc.stage import Context, Recipe, Task, reference
from pipeline import artifacts
from pipeline.experiment import ReferenceSet, Similarity, TestSet
from pipeline.layout import REFERENCE, Layout
from pipeline.sources import classes_in, label_ranges


@dataclass(frozen=True)
class Reference:
    """Stage 3: one task for each test set."""

    run_layout: Layout
    reference: ReferenceSet
    tests: Mapping[str, TestSet]
    similarity: Similarity
    name: str = "reference"
    version: int = 1

    def tasks(self) -> list[Task]:
        """One for each test set; its thresholds are a part that does not depend on K."""
        return [self._task(name, test) for name, test in self.tests.items()]

    def _files(self) -> range:
        return range(len(label_ranges(classes_in(self.reference), self.reference.files)))

    def _task(self, name: str, test: TestSet) -> Task:
        queries = reference("embed", f"{name}/00000")
        rows = [reference("embed", f"{REFERENCE}/{index:05d}") for index in self._files()]
        threshold: dict[str, Any] = {"threshold": test.threshold}
        uses = (queries, *rows) if test.threshold == "reference" else (queries,)
        return Task(
            name=name,
            recipe=Recipe(
                settings={**threshold, "neighbours": self.similarity.neighbours},
                inputs=(queries, *rows),
            ),
            outputs=(self.run_layout.reference(name),),
            parts={"threshold": Recipe(settings=threshold, inputs=uses)},
        )

    def check(self, task: Task, digest: str) -> dict[str, str]:
        """Verify the file's hashes."""
        hashes = artifacts.verify(task.outputs[0], artifacts.REFERENCE, digest)
        return {"": artifacts.fingerprint(hashes), "threshold": hashes["threshold"]}

    def run(self, task: Task, context: Context) -> dict[str, Any]:
        """Find the nearest reference images of a test set's images."""
        import kernels
        from pipeline.models import job_device

        device = job_device(self.similarity.device, context.resources.gpus)
        backend = kernels.resolve_backend(self.similarity.backend, device)
        queries = self._embeddings(task.name, 0)
        files: list[dict[str, Any]] = []
        similarity, row = kernels.merge_neighbours(
            self._nearest(queries, backend, device, files, context)
        )
        threshold = self.tests[task.name].threshold
        tau = (
            np.ascontiguousarray(similarity[:, 0])
            if threshold == "reference"
            else np.full(len(queries), threshold, dtype=np.float64)
        )
        artifacts.write(
            task.outputs[0],
            artifacts.REFERENCE,
            context.digest,
            {"threshold": tau, "neighbour_similarity": similarity, "neighbour_row": row},
            {
                "test": task.name,
                "threshold_from": threshold,
                "backend": backend,
                "reference_files": files,
            },
        )
        mean = round(float(tau.mean()), 4) if len(tau) else None
        return {"queries": len(tau), "mean_threshold": mean, "backend": backend}

    def _nearest(
        self,
        queries: Any,
        backend: str,
        device: str,
        files: list[dict[str, Any]],
        context: Context,
    ) -> Iterator[tuple[Any, Any]]:
        """Yield similarity (m, k) and row (m, k) for each reference file; notes it in `files`."""
        import kernels

        start, count = 0, len(self._files())
        for index in self._files():
            path = self.run_layout.embeddings(REFERENCE, index)
            rows = self._embeddings(REFERENCE, index)
            try:
                similarity, row = kernels.nearest(
                    rows,
                    queries,
                    k=self.similarity.neighbours,
                    backend=backend,
                    device=device,
                    row_offset=start,
                )
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from error
            yield similarity, row
            name = str(path.relative_to(self.run_layout.run))
            files.append({"file": name, "rows": len(rows)})
            start += len(rows)
            context.progress(index + 1, count, "files")

    def _embeddings(self, image_set: str, index: int) -> Any:
        path = self.run_layout.embeddings(image_set, index)
        return artifacts.read(path, artifacts.EMBEDDINGS)["embedding"]
