"""The tasks of a run that nobody will finish: dead ones, and those that their job never came to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpc import causes
from hpc.ledger import Ledger
from hpc.plan import DONE, Assessment, Plan, load_plan, plan_path
from hpc.queued import RunQueue, recorded_jobs
from hpc.stage import Resources


@dataclass
class Undone:
    """The tasks that are not done."""

    dead: list[Dead] = field(default_factory=list)
    idle: list[Assessment] = field(default_factory=list)
    """Nobody has begun them, and they are not in the queue."""
    active: set[str] = field(default_factory=set)
    """Every `stage/task` that a process works on, or that is in the queue."""
    running: set[str] = field(default_factory=set)
    """Those of them that a process works on."""


@dataclass(frozen=True)
class Dead:
    """A task whose latest attempt failed, or ended without a word."""

    item: Assessment
    attempt: Mapping[str, Any]

    @property
    def job(self) -> str:
        """Slurm's id of its job; empty if it was no Slurm job."""
        return str(self.attempt["job"]) if self.attempt.get("cluster") == "slurm" else ""

    @property
    def needs_slurm(self) -> bool:
        """Whether the record alone does not tell what happened."""
        error = str(self.attempt.get("error", ""))
        told = self.attempt.get("traceback") and not causes.says_child_was_killed(error)
        return bool(self.job) and not told


def sort_undone(
    assessed: Mapping[str, Assessment], ledger: Ledger, queue: RunQueue | None
) -> Undone:
    """Tell the tasks that failed or died from those that go on, and those that nobody has begun.

    Args:
        assessed: what `hpc.plan.assess` found.
        ledger: the run's attempts.
        queue: the run's jobs in the queue; None if Slurm can't be asked: what was at work still is.
    """
    found = Undone()
    for name, item in assessed.items():
        if item.state == DONE:
            continue
        attempt = ledger.attempt(item.stage, item.task.name) or {}
        if attempt.get("digest") != item.digest:
            attempt = {}
        if _is_active(name, item, attempt, ledger, queue):
            found.active.add(name)
            waits = queue.tasks.get(name) if queue else None
            if attempt.get("state") == "running" and not (waits and waits.job.is_pending):
                found.running.add(name)
        elif attempt:
            found.dead.append(Dead(item, attempt))
        elif ledger.marker(item.stage, item.task.name, item.digest) is None or item.marker:
            found.idle.append(item)  # else it has been done since it was assessed
    return found


def _is_active(
    name: str,
    item: Assessment,
    attempt: Mapping[str, Any],
    ledger: Ledger,
    queue: RunQueue | None,
) -> bool:
    failed = attempt.get("state") == "failed"
    waits = queue.tasks.get(name) if queue else None
    if waits and waits.digest == item.digest:
        # Its own job may have other tasks to do; another job will try it again.
        return not (failed and waits.job.id == attempt.get("job"))
    if failed:
        return False
    if queue is None and attempt.get("cluster") == "slurm":
        return True
    return ledger.is_locked(item.stage, item.task.name)


# what never began


@dataclass(frozen=True)
class Unbegun:
    """A task whose job left the queue before it came to the task."""

    item: Assessment
    job: str
    log: Path
    neighbours: Sequence[str]
    """The `stage/task`s that shared its job."""
    asked: Resources

    @property
    def has_log(self) -> bool:
        """Whether its job started."""
        return self.log.is_file() and self.log.stat().st_size > 0


class Plans:
    """The submissions of a run, each read once."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self._known: dict[str, Plan | None] = {}

    def get(self, submission: str) -> Plan | None:
        """The plan of a submission, if it is there."""
        if submission not in self._known:
            path = plan_path(self.run, submission)
            self._known[submission] = load_plan(path) if path.is_file() else None
        return self._known[submission]

    def asked(self, stage: str, log: Path | None) -> Resources | None:
        """What the job with this log asked for: Slurm's logs lie in a folder of the submission."""
        plan = self.get(log.parent.name) if log else None
        stages = plan.stages if plan else ()
        return next((one.resources for one in stages if one.stage == stage), None)


def find_unbegun(plans: Plans, idle: Sequence[Assessment]) -> list[Unbegun]:
    """Those of the tasks that nobody has begun that were submitted to Slurm, with their jobs."""
    wanted = {item.reference: item for item in idle}
    found: dict[str, Unbegun] = {}
    submissions = recorded_jobs(plans.run)
    for submission in sorted(submissions, reverse=True):  # names begin with the time
        if len(found) == len(wanted) or (plan := plans.get(submission)) is None:
            continue
        for name, lost in _of_submission(plan, submissions[submission], wanted):
            found.setdefault(name, lost)
    return list(found.values())


def _of_submission(
    plan: Plan, jobs: Mapping[str, str], wanted: Mapping[str, Assessment]
) -> Iterable[tuple[str, Unbegun]]:
    for stage in plan.stages:
        if stage.stage not in jobs:
            continue
        folder = plan_path(plan.run, plan.submission).parents[1] / "logs" / stage.stage
        for index, element in enumerate(stage.elements):
            names = [f"{stage.stage}/{task}" for task in element]
            # A single job is no array.
            job = jobs[stage.stage] + (f"_{index}" if len(stage.elements) > 1 else "")
            log = folder / plan.submission / f"{job}_0_log.out"
            for name in names:
                if name in wanted and plan.tasks[name]["digest"] == wanted[name].digest:
                    yield name, Unbegun(wanted[name], job, log, names, stage.resources)
