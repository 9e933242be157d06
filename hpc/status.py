"""How far a run is: per stage what is done, running, queued, failed; rate, time left, GPU-hours."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hpc.ledger import Ledger
from hpc.plan import DONE, MISSING, Assessment
from hpc.queued import QueuedTask

LOST = "lost"
"""State of an attempt whose job is gone without a word."""

_REASONS = {
    "Priority": "jobs with a higher priority come first",
    "Resources": "waits for free nodes",
    "Dependency": "waits for {stages}",
    "DependencyNeverSatisfied": (
        "never starts, because {stages} failed; the same submit command replaces it"
    ),
    "JobArrayTaskLimit": "as many run as array_parallelism in the profile allows",
    "BeginTime": "was put back into the queue a moment ago, starts soon",
    "JobHeldUser": "held; `scontrol release` lets it go",
    "launch failed requeued held": "its node could not start it; `scontrol release` tries again",
    "JobHeldAdmin": "held by an administrator",
    "PartitionTimeLimit": "asks for more time than the partition gives: minutes in the profile",
    "PartitionNodeLimit": "asks for more nodes than the partition gives: nodes in the profile",
    "PartitionDown": "the partition is down",
    "PartitionInactive": "the partition takes no jobs to its nodes",
    "ReqNodeNotAvail": "nodes that it needs are down or reserved",
    "PartitionConfig": "the partition can't give what it asks for; ask `simgap doctor`",
    "BadConstraints": "no node fits: constraint, cpus, memory_gb and gpus in the profile",
    "InvalidAccount": "the account is not valid: account in the profile",
    "InvalidQOS": "the QOS is not valid: qos in the profile",
    "None": "was just submitted",
}


@dataclass
class StageStatus:
    """The tasks of one stage, counted."""

    stage: str
    total: int = 0
    done: int = 0
    missing: int = 0
    """Never ran to the end, and not in the queue."""
    stale: int = 0
    """Ran, but have to run again, and are not in the queue."""
    queued: int = 0
    """In a job that waits, or that runs and has not come to them."""
    waits: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Pending jobs by array id and reason, in words."""
    running: list[Mapping[str, Any]] = field(default_factory=list)
    """What is known of the attempts at work."""
    failed: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    """By task: what is known of the attempt that failed, or whose job is gone."""
    mean_seconds: float | None = None
    """Of the finished tasks."""
    seconds: dict[str, float] = field(default_factory=lambda: {"cpus": 0.0, "gpus": 0.0})
    """Spent by every attempt, times the cores and the GPUs of its job."""
    each: dict[str, int] = field(default_factory=lambda: {"cpus": 0, "gpus": 0})
    """Cores and GPUs of the latest job."""

    @property
    def fraction(self) -> float:
        """Share of the work that is done, tasks at work counted by their own progress."""
        return (self.done + sum(map(_fraction, self.running))) / max(self.total, 1)

    def rate(self, now: float) -> str:
        """What the running tasks get done in a second, such as `1,234 images/s`."""
        per_second: dict[str, float] = defaultdict(float)
        for attempt in self.running:
            progress = attempt["progress"]
            if progress["done"]:
                seconds = max(now - attempt["started"], 1e-9)
                per_second[progress["unit"]] += progress["done"] / seconds
        return ", ".join(f"{rate:,.0f} {unit}/s" for unit, rate in per_second.items())

    def seconds_left(self, now: float, at_once: int = 1) -> float | None:
        """Estimate of the time left, from running tasks' progress and finished tasks' times."""
        open_tasks = self.total - self.done
        work = self._work_left(now)
        return None if work is None else work / max(1, len(self.running), min(at_once, open_tasks))

    def _work_left(self, now: float) -> float | None:
        """Seconds that the open tasks take, one after the other."""
        open_tasks = self.total - self.done
        if not open_tasks:
            return 0.0
        each = self.mean_seconds or _expected_seconds(self.running, now)
        return None if each is None else each * (open_tasks - sum(map(_fraction, self.running)))

    def hours(self, kind: str, now: float) -> tuple[float, float | None]:
        """Hours of `cpus` or `gpus`: used, and expected in all if that can be told."""
        used = self.seconds[kind]
        work = self._work_left(now)
        expected = None if work is None else (used + work * self.each[kind]) / 3600
        return used / 3600, expected


def survey(
    assessed: Mapping[str, Assessment],
    ledger: Ledger,
    stages: Iterable[str],
    queue: Mapping[str, QueuedTask] | None,
    now: float,
) -> list[StageStatus]:
    """Count the tasks of each stage.

    Args:
        assessed: what `hpc.plan.assess` found.
        ledger: the run's attempts.
        stages: names, in order.
        queue: the tasks in Slurm's queue; None if Slurm can't be asked: what was at work still is.
        now: seconds since the epoch.
    """
    found = {stage: StageStatus(stage) for stage in stages}
    seconds: dict[str, list[float]] = defaultdict(list)
    for item in assessed.values():
        status = found[item.stage]
        status.total += 1
        if item.marker is not None:
            seconds[item.stage].append(item.marker.seconds)
            count_hours(status, {**item.marker.ran_on, "seconds": item.marker.seconds}, now)
        if item.state == DONE:
            status.done += 1
        else:
            _count_open(status, item, ledger, queue, now)
    for stage, times in seconds.items():
        found[stage].mean_seconds = sum(times) / len(times)
    for stage, waits in _waits(queue or {}).items():
        found[stage].waits = waits
    return list(found.values())


def _count_open(
    status: StageStatus,
    item: Assessment,
    ledger: Ledger,
    queue: Mapping[str, QueuedTask] | None,
    now: float,
) -> None:
    attempt = ledger.attempt(item.stage, item.task.name)
    if attempt and attempt.get("digest") != item.digest:
        attempt = None
    job = queue[item.reference].job if queue and item.reference in queue else None
    at_work = attempt is not None and attempt["state"] == "running"
    believed = queue is None and attempt is not None and attempt.get("cluster") == "slurm"
    if attempt and at_work and (believed or _is_at_work(item, attempt, job, ledger)):
        status.running.append(attempt)
    elif job:
        status.queued += 1
    elif attempt:
        lost = at_work or attempt["state"] == "interrupted"
        attempt = {**attempt, "state": LOST if lost else attempt["state"]}
        status.failed[item.task.name] = attempt
    elif item.state == MISSING:
        status.missing += 1
    else:
        status.stale += 1
    if attempt:
        count_hours(status, attempt, now)


def _is_at_work(item: Assessment, attempt: Mapping[str, Any], job: Any, ledger: Ledger) -> bool:
    if attempt.get("cluster") == "slurm":
        return job is not None and not job.is_pending and job.id == attempt["job"]
    return ledger.is_locked(item.stage, item.task.name)


def count_hours(status: StageStatus, attempt: Mapping[str, Any], now: float) -> None:
    """Add an attempt, and those before it; of one that was cut off nobody knows when it ended."""
    ended = now if attempt.get("state") == "running" else attempt.get("started", 0)
    seconds = attempt.get("seconds", attempt.get("ended", ended) - attempt.get("started", 0))
    for kind in status.seconds:
        status.each[kind] = attempt.get(kind, 0)
        status.seconds[kind] += seconds * attempt.get(kind, 0)
        for before in attempt.get("earlier", ()):
            earlier = before.get("ended", before["started"]) - before["started"]
            status.seconds[kind] += earlier * before.get(kind, 0)


def _waits(queue: Mapping[str, QueuedTask]) -> dict[str, Counter[tuple[str, str]]]:
    """Why pending jobs wait: per stage, how many jobs of which array for which reason."""
    stage_of = {task.job.array: name.partition("/")[0] for name, task in queue.items()}
    jobs = {task.job.id: (name.partition("/")[0], task.job) for name, task in queue.items()}
    found: dict[str, Counter[tuple[str, str]]] = defaultdict(Counter)
    for stage, job in jobs.values():
        if job.is_pending:
            known = [stage_of.get(array, f"job {array}") for array in _arrays(job.waits_for)]
            stages = ", ".join(dict.fromkeys(known)) or "other jobs"
            reason = job.reason
            if reason == "None" and job.waits_for:  # Slurm has not looked at it yet
                reason = "Dependency"
            words = _REASONS.get(reason, reason).format(stages=stages)
            found[stage][job.array, words] += 1
    return found


def _arrays(jobs: Sequence[str]) -> Iterator[str]:
    return (job.partition("_")[0] for job in jobs)


def watch(
    stage: str,
    digests: Mapping[str, str],
    ledger: Ledger,
    since: float,
    finished: dict[str, float],
) -> StageStatus:
    """Count the tasks of a stage while it runs, from markers and attempts alone (cheap).

    Args:
        stage: its name.
        digests: today's digest of each task.
        ledger: the run's markers and attempts.
        since: when the stage's first job started; older attempts don't count.
        finished: seconds of each task that has been seen to finish since then, which is not looked
            at again; those that are new are added.
    """
    status = StageStatus(stage, total=len(digests))
    for task, digest in digests.items():
        if task in finished:
            status.done += 1
            continue
        attempt = ledger.attempt(stage, task)
        if attempt is None:
            marker = ledger.marker(stage, task, digest)
            status.done += marker is not None
            if marker and marker.started >= since:
                finished[task] = marker.seconds
        elif attempt.get("digest") != digest or attempt["started"] < since:
            continue  # of an earlier submission
        elif attempt["state"] == "failed":
            status.failed[task] = attempt
        else:
            status.running.append(attempt)
    if finished:
        status.mean_seconds = sum(finished.values()) / len(finished)
    status.missing = status.total - status.done - len(status.failed) - len(status.running)
    return status


def _fraction(attempt: Mapping[str, Any]) -> float:
    progress = attempt["progress"]
    return min(1.0, progress["done"] / progress["total"]) if progress["total"] else 0.0


def _expected_seconds(running: Sequence[Mapping[str, Any]], now: float) -> float | None:
    """Seconds that a task takes, from those at work; one that has just begun weighs little."""
    fraction = sum(map(_fraction, running))
    return sum(now - attempt["started"] for attempt in running) / fraction if fraction else None
