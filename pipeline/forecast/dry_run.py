"""What a submission would run, why, and what it would take; nothing is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hpc.plan import DONE, Assessment, StagePlan
from hpc.profile import Profile
from hpc.words import count
from pipeline.experiment.sections import Experiment
from pipeline.forecast.hours import disk_needed, forecast
from pipeline.forecast.sizes import Sizes
from pipeline.forecast.speeds import Speeds
from pipeline.forecast.view import ForecastView

_REASONS_SHOWN = 10
Planner = Callable[[Mapping[str, Assessment], Profile], Sequence[StagePlan]]
"""Deals tasks to jobs."""


@dataclass(frozen=True)
class DryRun:
    """What is known of a submission before it is made."""

    study: Experiment
    assessed: Mapping[str, Assessment]
    profile: Profile
    planner: Planner

    @property
    def todo(self) -> dict[str, Assessment]:
        """The tasks that would run."""
        return {name: item for name, item in self.assessed.items() if item.state != DONE}

    def forecast(self) -> ForecastView:
        """What they would take.

        Raises:
            ValueError: such jobs can't run here; the message says why.
        """
        speeds, run = Speeds(self.profile.speeds), self.study.run
        plans = self.planner(self.todo, self.profile)
        found = forecast(self.assessed, plans, Sizes(self.study, self.assessed), speeds)
        disk = disk_needed(found, self.assessed, run)
        return ForecastView(found, disk, run, self.profile.name, speeds)

    def show(self, queued: int) -> None:
        """Print what would run, stage by stage, with reasons; and what it would take.

        Args:
            queued: how many tasks are in Slurm's queue.
        """
        explain(self.assessed, queued, self.study.run)
        if not self.todo:
            return
        try:
            view = self.forecast()
        except ValueError as error:
            print(f"\nNothing can be said of what it would take: {error}")
            return
        told = f"with the profile {self.profile.name} (without start-up and queues)"
        print(f"\nIt would take, {told}:")
        view.show()


def explain(assessed: Mapping[str, Assessment], queued: int, run: Path) -> None:
    """Print what would run, stage by stage, with reasons."""
    todo = sum(item.state != DONE for item in assessed.values())
    print(f"{run}: {count(todo, 'task')} would run, {len(assessed) - todo:,} up to date")
    if queued:
        print(f"{queued} of them are in Slurm's queue already and would not be submitted again")
    for stage in dict.fromkeys(item.stage for item in assessed.values()):
        _explain_stage(stage, [item for item in assessed.values() if item.stage == stage])


def _explain_stage(stage: str, items: Sequence[Assessment]) -> None:
    reasons = Counter((item.state, item.reason) for item in items if item.state != DONE)
    done = len(items) - reasons.total()
    print(f"{stage:<10} {reasons.total():>6} to run {done:>6} up to date")
    for (state, reason), number in reasons.most_common(_REASONS_SHOWN):
        example = next(i.task.name for i in items if (i.state, i.reason) == (state, reason))
        others = f" and {number - 1} more" if number > 1 else ""
        print(f"    {state}: {example}{others}: {reason}")
    if len(reasons) > _REASONS_SHOWN:
        print(f"    and {len(reasons) - _REASONS_SHOWN} other reasons")
