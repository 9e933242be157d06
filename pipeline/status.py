"""How far a study is.

python -m pipeline.status experiments/mini.yaml --watch
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

from pipeline.command_line import study_parser
from pipeline.stages import NAMES

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from hpc.status import StageStatus

_FAILURES_SHOWN = 5
_EPILOG = """\
examples:
  simgap status experiments/mini.yaml
  simgap status runs/mini --watch
  simgap status runs/mini --json | jq '.stages[] | select(.failed > 0)'

A task is done when its marker is there for today's settings and its outputs are as they were
written; running while a job works on it; queued while it is in a job that waits, or that has not
come to it; failed if its latest attempt failed or its job is gone; stale if it ran with other
settings or inputs; missing otherwise. `simgap logs` tells why tasks failed.
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = study_parser(
        "status",
        "Show a study stage by stage: done, running, queued, failed, stale, missing; rate, time "
        "left, GPU-hours; why jobs wait.",
        _EPILOG,
    )
    made.add_argument("--watch", action="store_true", help="show it again and again until the end")
    made.add_argument("--json", action="store_true", help="for programs")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    arguments = parser().parse_intermixed_args(argv)
    from pipeline.experiment.load import ExperimentError
    from pipeline.study import load_study

    try:
        experiment = load_study(arguments.study, arguments.overrides)
        if arguments.watch:
            _watch(experiment)
        elif arguments.json:
            print(json.dumps(_as_values(View(experiment)), indent=1, ensure_ascii=False))
        else:
            _console().print(View(experiment).shown())
    except (ExperimentError, OSError) as error:
        print(f"simgap status: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _console() -> Any:
    from rich.console import Console

    # As wide as it needs to be where nobody has said how wide a line may be.
    return Console(highlight=False, width=None if sys.stdout.isatty() else 160)


class View:
    """What is known of a study at one moment."""

    def __init__(self, experiment: Any) -> None:
        from hpc import slurm
        from hpc.ledger import Ledger
        from hpc.plan import DONE, assess
        from hpc.queued import queued, recorded_jobs
        from hpc.status import survey
        from pipeline.layout import Layout
        from pipeline.stages import stages_of

        self.now = time.time()
        self.layout = Layout(experiment.run)
        ledger = Ledger(self.layout.run)
        self.trouble = ""
        stages = stages_of(experiment)
        assessed = assess(stages, ledger)
        queue: Any = {}
        if recorded_jobs(self.layout.run) and any(one.state != DONE for one in assessed.values()):
            try:
                queue = queued(self.layout.run)
            except slurm.SlurmError as error:
                told = str(error).splitlines()[-1]
                self.trouble = f"Slurm can't be asked, so nothing is shown as queued: {told}"
                queue = None
            assessed = assess(stages, ledger)  # what ended meanwhile is in no queue
        self.stages: list[StageStatus] = survey(assessed, ledger, NAMES, queue, self.now)

    @property
    def is_active(self) -> bool:
        """Whether anything runs or is queued."""
        return any(stage.running or stage.queued for stage in self.stages)

    @property
    def kind(self) -> str:
        """The hours that count: those of GPUs, or of cores where no job has a GPU."""
        return "gpus" if any(stage.each["gpus"] for stage in self.stages) else "cpus"

    def shown(self) -> RenderableType:
        """For people."""
        from rich.console import Group
        from rich.text import Text

        from hpc.words import count

        lines = [Text(f"{stage}: {words}") for stage, words in self._waits()]
        failures = [
            f"{stage.stage} {task}: {attempt.get('error', 'its job ended without a word')}"
            for stage in self.stages
            for task, attempt in stage.failed.items()
        ]
        lines += [Text(line.partition("\n")[0], style="red") for line in failures[:_FAILURES_SHOWN]]
        if failures:
            told = f"{count(len(failures), 'task')} failed; to see why, and how to run just those:"
            lines.append(Text(f"{told} simgap logs {shlex.quote(str(self.layout.run))}"))
        if self.trouble:
            lines.append(Text(self.trouble, style="yellow"))
        if self.layout.report.exists():
            lines.append(_line(f"report: {self.layout.report}"))
        return Group(_line(str(self.layout.run)), self._table(), *lines)

    def _table(self) -> RenderableType:
        from rich import box
        from rich.table import Table

        hours = "GPU-hours" if self.kind == "gpus" else "core-hours"
        headings = (
            "done",
            "running",
            "queued",
            "failed",
            "stale",
            "missing",
            "rate",
            "left",
            hours,
        )
        stages = [one for one in self.stages if one.total]  # of others the study asks nothing
        rows = [self._row(one) for one in stages]
        shown = [at for at in range(len(headings)) if any(row[at] for row in rows)]
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        table.add_column("stage", no_wrap=True)
        for at in shown:
            table.add_column(headings[at], justify="right", overflow="fold")
        for one, row in zip(stages, rows, strict=True):
            table.add_row(one.stage, *(row[at] for at in shown))
        return table

    def _row(self, one: StageStatus) -> list[str]:
        from hpc.words import clock

        numbers = (len(one.running), one.queued, len(one.failed), one.stale, one.missing)
        return [
            f"{one.done}/{one.total}",
            *(str(number) if number else "" for number in numbers),
            one.rate(self.now),
            clock(one.seconds_left(self.now)) if one.running else "",
            self._hours(one),
        ]

    def _hours(self, stage: StageStatus) -> str:
        """Used, and expected in all where that is more."""
        used, expected = stage.hours(self.kind, self.now)
        if not used and not expected:
            return ""
        told = f"{used:.2f}" if used < 10 else f"{used:,.0f}"
        if expected is None or expected - used < 0.005:
            return told
        return f"{told} of {expected:.2f}" if expected < 10 else f"{told} of {expected:,.0f}"

    def _waits(self) -> list[tuple[str, str]]:
        from hpc.words import count

        return [
            (stage.stage, f"{count(jobs, 'job')} ({array}): {words}")
            for stage in self.stages
            for (array, words), jobs in stage.waits.items()
        ]


def _line(text: str) -> Text:
    """A path, say, that is never broken."""
    from rich.text import Text

    return Text(text, no_wrap=True, overflow="ignore")


def _as_values(view: View) -> dict[str, Any]:
    """For programs."""
    stages = []
    for one in view.stages:
        used, expected = one.hours("gpus", view.now)
        stages.append(
            {
                "stage": one.stage,
                "total": one.total,
                "done": one.done,
                "running": len(one.running),
                "queued": one.queued,
                "failed": len(one.failed),
                "stale": one.stale,
                "missing": one.missing,
                "fraction": round(one.fraction, 4),
                "rate": one.rate(view.now),
                "seconds_left": one.seconds_left(view.now) if one.running else None,
                "gpu_hours": {"used": used, "expected": expected},
                "core_hours": dict(
                    zip(("used", "expected"), one.hours("cpus", view.now), strict=True)
                ),
                "waits": [
                    {"array": array, "jobs": jobs, "reason": words}
                    for (array, words), jobs in one.waits.items()
                ],
                "failures": {task: attempt.get("error") for task, attempt in one.failed.items()},
            }
        )
    return {
        "run": str(view.layout.run),
        "time": view.now,
        "trouble": view.trouble,
        "stages": stages,
        "report": str(view.layout.report) if view.layout.report.exists() else None,
    }


def _watch(experiment: Any) -> None:
    """Show the study until nothing runs or is queued: in place on a terminal, else one by one."""
    from rich.live import Live

    console = _console()
    live = Live(console=console, auto_refresh=False)
    show: Callable[..., None] = (
        partial(live.update, refresh=True) if console.is_terminal else console.print
    )
    pause = 2 if console.is_terminal else 30
    with live if console.is_terminal else nullcontext():
        while True:
            view = View(experiment)
            show(view.shown())
            if not view.is_active:
                return
            # Looking must not be most of the work: at a large study it takes seconds.
            time.sleep(max(pause, 5 * (time.time() - view.now)))


if __name__ == "__main__":
    sys.exit(main())
