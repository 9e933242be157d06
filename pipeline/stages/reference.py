"""Each test image against the reference: its threshold tau and its nearest reference images.

tau_j is the similarity of test image j to its nearest neighbour in the reference, s_j(reference)
(Mayilvahanan et al., ICLR 2024), or one number for a whole test set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hpc.stage import Context, Recipe, Task, reference
from pipeline import artifacts
from pipeline.experiment.sections import ReferenceSet, Similarity, TestSet
from pipeline.experiment.sources import classes_in, label_ranges
from pipeline.layout import REFERENCE, Layout

if TYPE_CHECKING:
    import kernels


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

        queries = self._embeddings(task.name, 0)
        scanner = kernels.Scanner(
            queries,
            k=self.similarity.neighbours,
            backend=self.similarity.backend,
            device=job_device(self.similarity.device, context.resources.gpus),
        )
        chosen = scanner.choice
        print(f"backend {chosen.backend} on {chosen.device} ({chosen.why})", flush=True)
        files = self._add_files(scanner, context)
        found, effort = scanner.finish()
        print(f"{task.name}: {effort}", flush=True)
        similarity, row = found.neighbour_similarity_MK, found.neighbour_row_MK
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
                "backend": chosen.backend,
                "reference_files": files,
            },
        )
        mean = round(float(tau.mean()), 4) if len(tau) else None
        return {"queries": len(tau), "mean_threshold": mean, "backend": chosen.backend}

    def _add_files(self, scanner: kernels.Scanner, context: Context) -> list[dict[str, Any]]:
        """Compare with the reference, file by file; returns its files and their rows."""
        files: list[dict[str, Any]] = []
        paths = [self.run_layout.embeddings(REFERENCE, index) for index in self._files()]
        artifacts.prefetch(*paths)
        for path in paths:
            rows = artifacts.read(path, artifacts.EMBEDDINGS)["embedding"]
            try:
                scanner.add(rows)
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from error
            name = str(path.relative_to(self.run_layout.run))
            files.append({"file": name, "rows": len(rows)})
            context.progress(len(files), len(paths), "files")
        return files

    def _embeddings(self, image_set: str, index: int) -> Any:
        path = self.run_layout.embeddings(image_set, index)
        return artifacts.read(path, artifacts.EMBEDDINGS)["embedding"]
