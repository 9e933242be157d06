"""How far a run is: per stage what is done, running, failed and missing, rate and time left."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hpc.ledger import Ledger
from hpc.plan import DONE, MISSING, Assessment


@dataclass
class StageStatus:
    """The tasks of one stage, counted."""

    stage: str
    total: int = 0
    done: int = 0
    missing: int = 0
    """Never ran to the end."""
    stale: int = 0
    """Ran, but have to run again."""
    running: list[Mapping[str, Any]] = field(default_factory=list)
    """What is known of the attempts at work."""
    failed: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    """By task: what is known of the attempt that failed."""
    mean_seconds: float | None = None
    """Of the finished tasks."""

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
        if not open_tasks:
            return 0.0
        each = self.mean_seconds or _expected_seconds(self.running, now)
        if each is None:
            return None
        work = each * (open_tasks - sum(map(_fraction, self.running)))
        return work / max(1, len(self.running), min(at_once, open_tasks))


def survey(
    assessed: Mapping[str, Assessment], ledger: Ledger, stages: Iterable[str]
) -> list[StageStatus]:
    """Count the tasks of each stage.

    Args:
        assessed: what `hpc.plan.assess` found.
        ledger: the run's attempts.
        stages: names, in order.
    """
    found = {stage: StageStatus(stage) for stage in stages}
    seconds: dict[str, list[float]] = defaultdict(list)
    for item in assessed.values():
        status = found[item.stage]
        status.total += 1
        if item.marker is not None:
            seconds[item.stage].append(item.marker.seconds)
        if item.state == DONE:
            status.done += 1
        else:
            _count_open(status, item, ledger)
    for stage, times in seconds.items():
        found[stage].mean_seconds = sum(times) / len(times)
    return list(found.values())


def _count_open(status: StageStatus, item: Assessment, ledger: Ledger) -> None:
    attempt = ledger.attempt(item.stage, item.task.name)
    if attempt and attempt.get("digest") == item.digest:
        if attempt["state"] == "failed":
            status.failed[item.task.name] = attempt
            return
        if ledger.is_locked(item.stage, item.task.name):
            status.running.append(attempt)
            return
    if item.state == MISSING:
        status.missing += 1
    else:
        status.stale += 1


def watch(
    stage: str, digests: Mapping[str, str], ledger: Ledger, since: float = 0.0
) -> StageStatus:
    """Count the tasks of a stage while it runs, from markers and attempts alone (cheap).

    Args:
        stage: its name.
        digests: today's digest of each task.
        ledger: the run's markers and attempts.
        since: when the stage's first job started; older attempts don't count.
    """
    status = StageStatus(stage, total=len(digests))
    for task, digest in digests.items():
        attempt = ledger.attempt(stage, task)
        if attempt is None:
            status.done += ledger.marker_path(stage, task, digest).exists()
        elif attempt.get("digest") != digest or attempt["started"] < since:
            continue  # of an earlier submission
        elif attempt["state"] == "failed":
            status.failed[task] = attempt
        else:
            status.running.append(attempt)
    status.missing = status.total - status.done - len(status.failed) - len(status.running)
    return status


def clock(seconds: float | None) -> str:
    """A duration as `1:02:03`, `2:03`, or `?`."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _fraction(attempt: Mapping[str, Any]) -> float:
    progress = attempt["progress"]
    return min(1.0, progress["done"] / progress["total"]) if progress["total"] else 0.0


def _expected_seconds(running: Sequence[Mapping[str, Any]], now: float) -> float | None:
    """Seconds that a task takes, from those at work; one that has just begun weighs little."""
    fraction = sum(map(_fraction, running))
    return sum(now - attempt["started"] for attempt in running) / fraction if fraction else None
