"""Each test image against the reference: its threshold tau and its nearest reference images.

tau_j is the similarity of test image j to its nearest neighbour in the reference, s_j(reference)
(Mayilvahanan et al., ICLR 2024), or one number for a whole test set.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

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
        import numpy as np

        from kernels import merge_neighbours

        queries = _embeddings(self.run_layout, task.name, 0)["embedding"]
        files: list[dict[str, Any]] = []
        used: dict[str, Any] = {}
        similarity, row = merge_neighbours(self._parts(queries, files, used, context))
        threshold = self.tests[task.name].threshold
        tau = (
            np.asarray(similarity[:, 0], dtype=np.float64)
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
                "backend": used["backend"],
                "rechecked": used["rechecked"],
                "reference_files": files,
            },
        )
        return {"queries": len(tau), "mean_threshold": round(float(tau.mean()), 4), **used}
