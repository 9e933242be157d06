"""The page that a study ends in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hpc.stage import Context, OutputError, Recipe, Task, reference
from hpc.words import count
from pipeline import artifacts
from pipeline.experiment.sections import Experiment
from pipeline.experiment.sources import file_identity, pool_groups
from pipeline.layout import POOL, Layout


@dataclass(frozen=True)
class Report:
    """Stage 9: one task."""

    run_layout: Layout
    experiment: Experiment
    name: str = "report"
    version: int = 2

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
        inputs += [
            reference(stage, f"{split}/seed-{seed}/{name}")
            for stage, names in (("probe", study.probed_tests), ("retrieve", study.retrieval_sets))
            for split in study.trained_splits
            for seed in study.seeds
            for name in names
        ]
        settings = {
            **study.report.model_dump(exclude={"baselines"}, exclude_none=True),
            "name": study.name,
        }
        if study.report.baselines:
            settings["baselines"] = file_identity(study.report.baselines)
        return [
            Task(
                name="index",
                recipe=Recipe(settings=settings, inputs=tuple(inputs)),
                outputs=(self.run_layout.report, self.run_layout.figures),
            )
        ]

    def check(self, task: Task, digest: str) -> dict[str, str]:
        """See that the page is whole, was made for the digest, and has its figures beside it."""
        from pipeline.report import files_named

        page, figures = task.outputs
        try:
            text = page.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise OutputError(f"{page}: can't be read: {error}") from error
        if not text.endswith(_ending(digest)):
            raise OutputError(f"{page}: not the whole page of digest {digest}")
        files = [page, *sorted(figures.iterdir() if figures.is_dir() else ())]
        if not all((figures / name).is_file() for name in files_named(text)):
            raise OutputError(f"{figures}: not all the figures that {page.name} names")
        return {"": artifacts.fingerprint({one.name: artifacts.hash_file(one) for one in files})}

    def run(self, task: Task, context: Context) -> dict[str, Any]:
        """Write the page and its figures.

        Raises:
            OutputError: a part of the study is missing, or can't be read.
        """
        from pipeline.report import build_report, program_facts, write_report

        run = self.run_layout
        page = build_report(self.experiment, run, program_facts(run))
        if page.missing:
            more = f" and {count(len(page.missing) - 1, 'other part')}" if page.missing[1:] else ""
            raise OutputError(f"missing: {page.missing[0]}{more}")
        write_report(page, task.outputs[0], _ending(context.digest))
        return {"bytes": len(page.text), "files": len(page.files)}


def _ending(digest: str) -> str:
    return f"\n<!-- simgap digest {digest} -->\n"
