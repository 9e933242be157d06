"""Which tasks of a run are in Slurm's queue: each job's comment names its submission and stage."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpc import slurm
from hpc.files import read_json, write_json
from hpc.ledger import Ledger
from hpc.plan import Plan, load_plan, plan_path


@dataclass(frozen=True, kw_only=True, slots=True)
class QueuedTask:
    """A task that a job in the queue will work on, works on, or has worked on."""

    job: slurm.Job
    digest: str
    """With which the job makes it."""


@dataclass(frozen=True)
class RunQueue:
    """The jobs of a run that Slurm has in its queue."""

    jobs: list[slurm.Job] = field(default_factory=list)
    tasks: dict[str, QueuedTask] = field(default_factory=dict)
    """By `stage/task`, without those that have failed in a job that goes on with others."""
    arrays: dict[str, set[str]] = field(default_factory=dict)
    """By array id: every task that its submission gave it, also those that left the queue."""

    @property
    def ids(self) -> list[str]:
        """Of the jobs, without their elements, in order."""
        return sorted({job.array for job in self.jobs}, key=int)

    def doomed(self, undone: Sequence[str], inputs: Mapping[str, Iterable[str]]) -> list[str]:
        """Ids of pending jobs that will not start, or not with what they need.

        A job waits for whole arrays. When a task of one has failed, Slurm cancels those who wait
        only after the rest of the array has ended. And a task may need what has to be made again.

        Args:
            undone: every task that is not done, in the order of the stages.
            inputs: what each of them needs, by `stage/task`.
        """
        lost = {name for name in undone if name not in self.tasks}
        broken = {array for array, tasks in self.arrays.items() if tasks & lost}
        found: dict[str, None] = {}
        for name in undone:
            if name not in self.tasks or not (job := self.tasks[name].job).is_pending:
                continue
            in_vain = job.reason == "DependencyNeverSatisfied" or broken & set(job.waits_for)
            if in_vain or lost & set(inputs[name]):
                found[job.id] = None
                lost.add(name)
                broken.add(job.array)
        return list(found)


def run_queue(run: Path) -> RunQueue:
    """Ask Slurm for the jobs of a run.

    Raises:
        SlurmError: Slurm can't be asked.
    """
    plans: dict[str, Plan] = {}
    queue = RunQueue()
    for job in slurm.queue():
        words = job.comment.split(" ")
        if len(words) != 3 or words[0] != "simgap" or not plan_path(run, words[1]).is_file():
            continue
        _, submission, stage = words
        if submission not in plans:
            plans[submission] = load_plan(plan_path(run, submission))
        _add(queue, job, plans[submission], stage)
    return queue


def settled_queue(run: Path, patience: float = 120) -> RunQueue:
    """The run's jobs in the queue, when none of them is just ending.

    A job that is ending may be gone for good or about to be requeued; a moment later it is clear.

    Raises:
        SlurmError: Slurm can't be asked.
    """
    ends = time.monotonic() + patience
    while True:
        queue = run_queue(run)
        ending = [job.id for job in queue.jobs if job.state == "COMPLETING"]
        if not ending or time.monotonic() > ends:
            return queue
        time.sleep(1)


def _add(queue: RunQueue, job: slurm.Job, plan: Plan, stage: str) -> None:
    elements = next(item.elements for item in plan.stages if item.stage == stage)
    queue.jobs.append(job)
    if job.array not in queue.arrays:  # once, not once a job: an array has thousands
        queue.arrays[job.array] = {f"{stage}/{task}" for tasks in elements for task in tasks}
    ledger = Ledger(plan.run)
    for task in elements[job.element]:
        attempt = ledger.attempt(stage, task) or {}
        if attempt.get("job") == job.id and attempt["state"] == "failed" and not job.is_pending:
            continue  # the job goes on with its other tasks
        name = f"{stage}/{task}"
        queue.tasks[name] = QueuedTask(job=job, digest=plan.tasks[name]["digest"])


def stage_of(job: slurm.Job) -> str:
    """The stage that a job of a run works on."""
    return job.comment.split(" ")[2]


def queued(run: Path) -> Mapping[str, QueuedTask]:
    """The tasks of a run's jobs in the queue, by `stage/task`.

    Raises:
        SlurmError: Slurm can't be asked.
    """
    return run_queue(run).tasks


# what was submitted


def record_jobs(run: Path, submission: str, jobs: Mapping[str, str]) -> None:
    """Keep the job ids of a submission's stages, for when they have left the queue."""
    write_json(run / "jobs" / f"{submission}.json", {"submission": submission, "jobs": dict(jobs)})


def recorded_jobs(run: Path) -> dict[str, dict[str, str]]:
    """Job id of each stage, by submission, oldest first."""
    found: dict[str, dict[str, str]] = {}
    for path in sorted((run / "jobs").glob("*.json")):
        record: dict[str, Any] = read_json(path)
        found[record["submission"]] = dict(record["jobs"])
    return found
