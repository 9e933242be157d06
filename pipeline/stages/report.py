"""The page that a study ends in."""

from __future__ import annotations

import platform
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from hpc.files import write_text
from hpc.stage import Context, OutputError, Recipe, Task, reference
from hpc.worker import code_version
from pipeline import artifacts
from pipeline.layout import POOL, Layout
from pipeline.sections import Experiment
from pipeline.sources import pool_groups

_PACKAGES = ("simgap", "torch", "open_clip_torch", "numpy", "submitit")


@dataclass(frozen=True)
class Report:
    """Stage 9: one task."""

    run_layout: Layout
    experiment: Experiment
    name: str = "report"
    version: int = 1

    def tasks(self) -> list[Task]:
        """One page from everything before it."""
        study = self.experiment
        files = range(len(pool_groups(study.pool)))
        inputs = [reference("embed", f"{POOL}/{index:05d}") for index in files]
        inputs += [reference("embed", f"{test}/00000") for test in study.tests]
        inputs += [reference("reference", test) for test in study.tests]
        inputs += [reference("scan", f"{index:05d}") for index in files]
        inputs += [reference("mask", split) for split in study.splits]
        inputs += [reference("mask", f"statistics/{split}") for split in study.splits]
        inputs += [
            reference("evaluate", f"{split}/seed-{seed}/{test}")
            for split in study.trained_splits
            for seed in study.seeds
            for test in study.tests
        ]
        settings = {**study.report.model_dump(), "name": study.name}
        return [
            Task(
                name="index",
                recipe=Recipe(settings=settings, inputs=tuple(inputs)),
                outputs=(self.run_layout.report,),
            )
        ]

    def check(self, task: Task, digest: str) -> dict[str, str]:
        """See that the page is whole and was made for the digest."""
        page = task.outputs[0]
        try:
            text = page.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise OutputError(f"{page}: can't be read: {error}") from error
        if not text.endswith(_ending(digest)):
            raise OutputError(f"{page}: not the whole page of digest {digest}")
        return {"": artifacts.hash_file(page)}

    def run(self, task: Task, context: Context) -> dict[str, Any]:
        """Write the page."""
        from pipeline.report import build_report

        page = build_report(self.experiment, self.run_layout, self._provenance())
        write_text(task.outputs[0], page + _ending(context.digest))
        return {"bytes": len(page)}

    def _provenance(self) -> dict[str, Any]:
        return {
            "Experiment": str(self.run_layout.experiment),
            "Made": time.strftime("%Y-%m-%d %H:%M"),
            "Machine": platform.node(),
            "Code": code_version() or "not under version control",
            "Versions": [f"{name} {_version(name)}" for name in _PACKAGES]
            + [f"Python {platform.python_version()}"],
        }


def _ending(digest: str) -> str:
    return f"\n<!-- simgap digest {digest} -->\n"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
