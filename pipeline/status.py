"""How far a study is.

python -m pipeline.status experiments/mini.yaml
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.stages import NAMES

_EPILOG = """\
examples:
  simgap status experiments/mini.yaml
  simgap status runs/mini

A task is done when its marker is there for today's settings and its outputs are as they were
written; running while a process holds it; failed if its latest attempt failed; stale if it ran with
other settings or inputs; missing otherwise.
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="simgap status",
        description="Show a study stage by stage: done, running, failed, missing; rate and time "
        "left; what failed and where to read on.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("study", help="experiment YAML, name of a shipped one, or a run's folder")
    made.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="as given to submit"
    )
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    arguments = parser().parse_args(argv)
    from pipeline.experiment import ExperimentError, load_experiment
    from pipeline.layout import Layout, find

    try:
        folder = Path(arguments.study)
        path = (
            Layout(folder).experiment if folder.is_dir() else find("experiments", arguments.study)
        )
        if not path.is_file():
            raise FileNotFoundError(f"{folder} is no run: it has no {path.name}")
        experiment = load_experiment(path, arguments.overrides)
        if folder.is_dir():  # wherever it has been moved to
            place = {"runs": folder.resolve().parent, "name": folder.resolve().name}
            experiment = experiment.model_copy(update=place)
        _show(experiment)
    except (ExperimentError, OSError) as error:
        print(f"simgap status: {error}", file=sys.stderr)
        return 2
    return 0


def _show(experiment: Any) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from hpc.ledger import Ledger
    from hpc.plan import assess
    from hpc.status import clock, survey
    from pipeline.layout import Layout
    from pipeline.stages import stages_of

    layout = Layout(experiment.run)
    ledger = Ledger(layout.run)
    statuses = survey(assess(stages_of(experiment), ledger), ledger, NAMES)
    table = Table(box=box.SIMPLE_HEAD, title=str(layout.run), title_justify="left")
    table.add_column("stage")
    for heading in ("done", "running", "failed", "stale", "missing", "rate", "left"):
        table.add_column(heading, justify="right")
    now = time.time()
    for status in statuses:
        numbers = (len(status.running), len(status.failed), status.stale, status.missing)
        table.add_row(
            status.stage,
            f"{status.done}/{status.total}",
            *(str(number) if number else "" for number in numbers),
            status.rate(now),
            clock(status.seconds_left(now)) if status.running else "",
        )
    console = Console(highlight=False)
    console.print(table)
    for status in statuses:
        for name, attempt in status.failed.items():
            console.print(f"{status.stage} {name}: {attempt['error']}", style="red", markup=False)
            console.print(f"    log: {attempt['log'] or 'the terminal'}", markup=False)
    if layout.report.exists():
        console.print(f"report: {layout.report}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
