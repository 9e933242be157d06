"""What failed in a run, grouped by cause; and what only waits for it.

A task failed if its latest attempt recorded so, or if it ended without a word: Slurm has no job for
it in the queue and no process holds it. The cause is the recorded exception; else Slurm's state;
else what the job's log says. All of it works without accounting.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hpc import causes, joblog, slurm
from hpc.causes import Cause
from hpc.ledger import Ledger
from hpc.plan import DONE, Assessment
from hpc.queued import RunQueue
from hpc.stage import Resources
from hpc.undone import Dead, Plans, Unbegun, find_unbegun, sort_undone


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A task that failed."""

    stage: str
    task: str
    cause: Cause
    attempt: Mapping[str, Any]
    """The record of the latest attempt, those before it under `earlier`; empty if none began."""
    log: Path | None
    """Where to read on."""
    past: slurm.PastJob | None = None
    """What Slurm knows of its job."""

    @property
    def reference(self) -> str:
        """`stage/task`."""
        return f"{self.stage}/{self.task}"

    def lines(self) -> list[str]:
        """What the log says of the latest attempt; of the whole job if the task never began."""
        if self.log is None:
            return str(self.attempt.get("traceback", "")).splitlines()
        lines = joblog.attempt_lines(self.log, self.attempt.get("restart"))
        own = joblog.about(lines, self.task) if self.attempt else lines
        return joblog.without_repetition(own or lines) if self.attempt else own


@dataclass(frozen=True, kw_only=True)
class Group:
    """Failures with the same cause."""

    cause: Cause
    failures: list[Failure]

    @property
    def stages(self) -> dict[str, int]:
        """How many of its tasks are of each stage."""
        names = [one.stage for one in self.failures]
        return {name: names.count(name) for name in dict.fromkeys(names)}


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """Tasks of a stage that can't start because of failures before them."""

    stage: str
    tasks: int
    on: tuple[str, ...]
    """The stages whose failures they wait for."""


@dataclass
class Triage:
    """What failed, and what waits for it."""

    failures: list[Failure] = field(default_factory=list)
    waiting: list[Waiting] = field(default_factory=list)
    active: set[str] = field(default_factory=set)
    """Every `stage/task` that a process works on, or that is in the queue."""
    running: set[str] = field(default_factory=set)
    """Those of them that an attempt has begun on."""


def group(failures: Iterable[Failure]) -> list[Group]:
    """Failures by cause, what hit most tasks first."""
    found: dict[tuple[str, ...], list[Failure]] = {}
    for failure in failures:
        found.setdefault(failure.cause.key, []).append(failure)
    groups = [Group(cause=_typical(members), failures=members) for members in found.values()]
    return sorted(groups, key=lambda one: -len(one.failures))


def _typical(failures: Sequence[Failure]) -> Cause:
    """The cause as it is told for all: of the one that used most memory."""

    def used(failure: Failure) -> int:
        return (failure.past and failure.past.max_rss_bytes) or 0

    return max(failures, key=used).cause


def triage(run: Path, assessed: Mapping[str, Assessment], queue: RunQueue | None) -> Triage:
    """Find what failed in a run, and why.

    Args:
        run: its folder.
        assessed: what `hpc.plan.assess` found.
        queue: the run's jobs in the queue, asked for *before* `assessed`, so that a job that ended
            in between counts as queued and not as lost. None if Slurm can't be asked: then only
            what was recorded as failed is found.
    """
    undone = sort_undone(assessed, Ledger(run), queue)
    plans = Plans(run)
    unbegun = find_unbegun(plans, undone.idle) if queue is not None else []
    starved = _starved(assessed, undone.dead, unbegun)
    unbegun = [one for one in unbegun if one.item.reference not in starved]
    past = _ask_slurm(undone.dead, unbegun)
    failures = {one.item.reference: _failure(one, run, plans, past) for one in undone.dead}
    for lost in unbegun:
        failures[lost.item.reference] = _never_began(lost, failures, past)
    in_order = [failures[name] for name in assessed if name in failures]
    return Triage(
        failures=in_order,
        waiting=_waiting(assessed, in_order, starved, undone.running),
        active=undone.active,
        running=undone.running,
    )


def _starved(
    assessed: Mapping[str, Assessment], dead: Sequence[Dead], unbegun: Sequence[Unbegun]
) -> set[str]:
    """The tasks whose job Slurm cancelled before it started, because something before it failed."""
    broken = {one.item.stage for one in dead}
    starved: set[str] = set()
    for stage, needed in _needed_stages(assessed).items():
        of_stage = [one for one in unbegun if one.item.stage == stage]
        if needed & broken:
            starved |= {one.item.reference for one in of_stage if not one.has_log}
        if of_stage:
            broken.add(stage)
    return starved


def _needed_stages(assessed: Mapping[str, Assessment]) -> dict[str, set[str]]:
    """By stage, in order: the stages whose results its tasks use."""
    needed: dict[str, set[str]] = {}
    for item in assessed.values():
        stages = {name.partition("/")[0] for name in item.producers}
        needed.setdefault(item.stage, set()).update(stages)
    return needed


# why


def _ask_slurm(dead: Sequence[Dead], unbegun: Sequence[Unbegun]) -> dict[str, slurm.PastJob]:
    jobs = [one.job for one in dead if one.needs_slurm] + [one.job for one in unbegun]
    return slurm.past(jobs) if jobs and slurm.is_here() else {}


def _failure(dead: Dead, run: Path, plans: Plans, past: Mapping[str, slurm.PastJob]) -> Failure:
    log = joblog.log_of(dead.attempt, run)
    job = past.get(dead.job)
    latest = joblog.last_restart(log) if log and job else None
    if latest not in (None, dead.attempt.get("restart")):
        job = None  # what Slurm says is about a later attempt
    return Failure(
        stage=dead.item.stage,
        task=dead.item.task.name,
        cause=_cause(dead, log, plans.asked(dead.item.stage, log), job),
        attempt=dead.attempt,
        log=log,
        past=job,
    )


def _cause(
    dead: Dead, log: Path | None, asked: Resources | None, job: slurm.PastJob | None
) -> Cause:
    stage, task, record = dead.item.stage, dead.item.task.name, dead.attempt
    error, traceback = str(record.get("error", "")), str(record.get("traceback", ""))

    def of_kind(kind: str, words: str = "") -> Cause:
        return causes.of_kind(kind, stage, asked=asked, used=job, words=words)

    if traceback and not causes.says_child_was_killed(error):
        return causes.of_exception(error, traceback, stage, task)
    whole = _all_lines(log, record.get("restart"))
    lines = joblog.about(whole, task) or whole
    if traceback:
        if _why_ended(whole, job) == "OUT_OF_MEMORY":
            return of_kind("OUT_OF_MEMORY")
        return causes.of_exception(error, traceback, stage, task)
    if record["state"] == "failed":
        return of_kind(_bad_state(job) or _why_stopped(error, lines), error)
    if record["state"] == "interrupted":
        return of_kind(_bad_state(job) or "GONE", "it had been put back into the queue")
    if kind := _why_ended(lines, job):
        return of_kind(kind)
    if told := joblog.last_traceback(joblog.without_repetition(lines)):
        return causes.of_exception(*told, stage, task)
    return of_kind(causes.of_signal(job) or "SILENT")


def _bad_state(job: slurm.PastJob | None) -> str | None:
    """Slurm's state of a job, if it says why the job ended."""
    return job.state if job and job.state in causes.BAD_STATES else None


def _why_stopped(error: str, lines: Sequence[str]) -> str:
    """Why a task was cut off: from its worker's words, or from what Slurm wrote meanwhile."""
    kind, told = causes.of_stop(error), causes.told_by(lines)
    return told if kind == "CUT_OFF" and told in ("TIMEOUT", "PREEMPTED", "NODE_FAIL") else kind


def _why_ended(lines: Sequence[str], job: slurm.PastJob | None) -> str | None:
    """Slurm's state if it says why; else what the log says: one of `causes.KINDS`."""
    state = _bad_state(job)
    told = causes.told_by(lines)
    if state == "CANCELLED" and told in causes.BAD_STATES:
        return told  # by Slurm itself, for this reason
    return state or told


def _all_lines(log: Path | None, restart: int | None) -> list[str]:
    """What all processes of the job wrote: slurmstepd tells of a death in any of their logs."""
    logs = joblog.of_all_ranks(log) if log else []
    return [line for one in logs for line in joblog.attempt_lines(one, restart)]


def _never_began(
    lost: Unbegun, failures: Mapping[str, Failure], past: Mapping[str, slurm.PastJob]
) -> Failure:
    """The cause of a task that its job never came to: what ended the job."""
    job, lines = past.get(lost.job), _all_lines(lost.log, None)
    base = Failure(
        stage=lost.item.stage,
        task=lost.item.task.name,
        cause=causes.of_kind("GONE", lost.item.stage),
        attempt={},
        log=lost.log if lost.has_log else None,
        past=job,
    )
    for name in lost.neighbours:
        before = failures.get(name)
        if before and before.attempt.get("job") == lost.job and _ended_the_job(before):
            return replace(base, cause=before.cause)
    if kind := _why_ended(lines, job):
        return replace(base, cause=causes.of_kind(kind, base.stage, asked=lost.asked, used=job))
    if told := joblog.last_traceback(joblog.without_repetition(lines)):
        cause = causes.of_exception(*told, base.stage, base.task)
        title = f"its job ended before the task began: {cause.title}"
        return replace(base, cause=replace(cause, title=title))
    if lost.has_log:
        last = _last_words(lines)
        return replace(base, cause=causes.of_kind("NEVER_BEGAN", base.stage, words=last))
    return base


def _ended_the_job(failure: Failure) -> bool:
    """Whether the job went down with the task; after an exception it goes on with the next."""
    return not (failure.attempt["state"] == "failed" and failure.attempt.get("traceback"))


def _last_words(lines: Sequence[str]) -> str:
    """The last line that is not about how srun tidied up."""
    tidying = ("srun: ", "slurmstepd: ", "=====")
    told = [line.strip() for line in lines if line.strip() and not line.startswith(tidying)]
    return (told or [line for line in lines if line.strip()] or [""])[-1]


# what waits


def _waiting(
    assessed: Mapping[str, Assessment],
    failures: Sequence[Failure],
    starved: set[str],
    running: set[str],
) -> list[Waiting]:
    """Per stage: how many tasks can't start before failures are mended."""
    failed = {one.reference for one in failures}
    behind: dict[str, set[str]] = {}
    counts: dict[str, list[str]] = {}
    failing = [one.stage for one in failures]
    for name, item in assessed.items():
        if item.state == DONE or name in failed:
            continue
        inputs = set(item.producers)
        stages = {one.partition("/")[0] for one in inputs & failed}
        stages = stages.union(*(behind.get(one, ()) for one in inputs))
        # Its inputs may be there, but Slurm waits for whole arrays.
        if not stages and name in starved:
            stages = set(failing)
        if stages and name not in running:
            behind[name] = stages
            counts.setdefault(item.stage, []).append(name)
    return [
        Waiting(
            stage=stage,
            tasks=len(names),
            on=tuple(s for s in dict.fromkeys(failing) if any(s in behind[n] for n in names)),
        )
        for stage, names in counts.items()
    ]
