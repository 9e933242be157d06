"""What would run, in hours: the work of each stage by the speeds that are known.

Where tasks of a stage have finished in this run, they say how fast it is; else the profile does. A
job's steps (computing, decoding, reading, writing) go on side by side, so that the slowest
counts. What nobody knows is not made up.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hpc.plan import Assessment, StagePlan
from hpc.stage import Resources
from pipeline.forecast.amounts import NOTHING, Amount, largest, total, unknown
from pipeline.forecast.estimate import Work, work_of
from pipeline.forecast.sizes import Sizes
from pipeline.forecast.speeds import Speeds

MEASURED = "measured"
"""In place of a step: as fast as this run's finished tasks were."""
ALL_READING, ALL_WRITING = "reading in all", "writing in all"
_HOUR = 3600.0


@dataclass(frozen=True, kw_only=True)
class StageForecast:
    """What a stage takes."""

    stage: str
    tasks: int
    jobs: int
    at_once: int
    seconds: Amount
    """Of all its jobs, one after the other."""
    wall: Amount
    """Seconds from its first job to its last, with as many jobs at once as there may be."""
    gpus: int
    """Of a job."""
    cores: int
    """Of a job."""
    read: Amount
    written: Amount
    stored: Amount
    limit: str
    """The step that takes most of its time; empty if nothing is known."""

    @property
    def gpu_hours(self) -> Amount:
        """That its jobs have reserved."""
        return self.seconds * (self.gpus / _HOUR) if self.gpus else NOTHING

    @property
    def core_hours(self) -> Amount:
        """That its jobs have reserved."""
        return self.seconds * (self.cores / _HOUR)


@dataclass(frozen=True)
class _Pace:
    """How fast one job does the tasks of a stage."""

    resources: Resources
    speeds: Speeds
    measured: float | None
    """Seconds of a unit of work in this run, with one process."""

    @property
    def device(self) -> str:
        """What computes."""
        return "GPU" if self.resources.gpus else "CPU"

    def steps(self, work: Work) -> dict[str, Amount]:
        """Seconds of each step of a task."""
        if self.measured is not None:
            return {MEASURED: work.units * (self.measured / self.resources.world)}
        cores, nodes, found = self.resources.cpus, self.resources.nodes, {}
        if work.speed:
            devices = self.resources.world * (1 if self.resources.gpus else cores)
            computing = self.speeds.device_seconds(work.speed, work.units, work.flops)
            found[self.device] = computing / devices
        elif work.told_by:
            found[self.device] = unknown(work.told_by)
        if work.images.value or work.images.missing:
            decoders = self.resources.world * max(1, min(work.decoders, cores))
            found["decoding"] = self.speeds.decoding_seconds(work.images) / decoders
        if work.read != NOTHING:
            found["reading"] = self.speeds.file_seconds("read_gb", work.read) / nodes
        if work.written != NOTHING:
            found["writing"] = self.speeds.file_seconds("write_gb", work.written) / nodes
        return found


@dataclass
class _Stage:
    """Adds up the tasks of a stage."""

    plan: StagePlan
    pace: _Pace
    seconds: dict[str, Amount] = field(default_factory=dict)
    """Of each task."""
    steps: dict[str, float] = field(default_factory=dict)
    """Seconds of the tasks that each step is the slowest of."""
    read: list[Amount] = field(default_factory=list)
    written: list[Amount] = field(default_factory=list)
    stored: list[Amount] = field(default_factory=list)

    def add(self, task: str, work: Work | None) -> None:
        """Add a task."""
        if work is None:
            self.seconds[task] = unknown(f"an estimate of the stage {self.plan.stage}")
            return
        steps = self.pace.steps(work)
        self.seconds[task] = largest(steps.values())
        if steps:
            slowest = max(steps, key=lambda step: steps[step].value)
            self.steps[slowest] = self.steps.get(slowest, 0.0) + steps[slowest].value
        self.read.append(work.read)
        self.written.append(work.written)
        self.stored.append(work.written if work.stored is None else work.stored)

    def forecast(self) -> StageForecast:
        """What it takes together."""
        plan, resources = self.plan, self.plan.resources
        jobs = [total(self.seconds[task] for task in element) for element in plan.elements]
        seconds, read, written = total(jobs), total(self.read), total(self.written)
        wall = Amount(_makespan([one.value for one in jobs], plan.at_once))
        walls = {self._limit(): wall, **self._in_all(read, written)}
        limit = max(walls, key=lambda step: walls[step].value)
        return StageForecast(
            stage=plan.stage,
            tasks=len(self.seconds),
            jobs=len(jobs),
            at_once=min(plan.at_once, len(jobs)),
            seconds=seconds,
            wall=Amount(walls[limit].value, seconds.missing, seconds.at_most),
            gpus=resources.nodes * resources.gpus,
            cores=resources.world * resources.cpus,
            read=read,
            written=written,
            stored=total(self.stored),
            limit=limit,
        )

    def _limit(self) -> str:
        most = max(self.steps, key=lambda step: self.steps[step], default="")
        return most if self.steps.get(most) else ""

    def _in_all(self, read: Amount, written: Amount) -> dict[str, Amount]:
        """Seconds for which the file system alone would be busy."""
        if self.pace.measured is not None:
            return {}
        speeds = self.pace.speeds
        return {
            ALL_READING: speeds.file_seconds("read_gb_in_all", read),
            ALL_WRITING: speeds.file_seconds("write_gb_in_all", written),
        }


def _makespan(jobs: Iterable[float], at_once: int) -> float:
    """Seconds until the last job ends, if each starts where the first one ends."""
    ends = [0.0] * max(1, at_once)
    for seconds in jobs:
        heapq.heappushpop(ends, ends[0] + seconds)
    return max(ends)


def forecast(
    assessed: Mapping[str, Assessment], plans: Sequence[StagePlan], sizes: Sizes, speeds: Speeds
) -> list[StageForecast]:
    """What the tasks of plans take.

    Args:
        assessed: every task of the study.
        plans: what would run, stage by stage.
        sizes: of the study.
        speeds: of the site.
    """
    found = []
    for plan in plans:
        measured = measured_pace(plan.stage, assessed, plan.resources, sizes)
        stage = _Stage(plan, _Pace(plan.resources, speeds, measured))
        for task in (task for element in plan.elements for task in element):
            work = work_of(plan.stage, task, sizes)
            stage.add(task, work)
        found.append(stage.forecast())
    return found


def measured_pace(
    stage: str, assessed: Mapping[str, Assessment], resources: Resources, sizes: Sizes
) -> float | None:
    """Seconds of one process for a unit of work, as finished tasks of this run took.

    Only tasks count that had the cores and GPUs that jobs are to have now.
    """
    seconds = 0.0
    units = NOTHING
    for item in assessed.values():
        if item.stage != stage or item.marker is None:
            continue
        had = {name: item.marker.ran_on.get(name) for name in ("cpus", "gpus")}
        work = work_of(stage, item.task.name, sizes)
        if work and had == {"cpus": resources.cpus, "gpus": resources.gpus}:
            seconds += _seconds(item) * int(item.marker.counts.get("processes", 1))
            units = units + work.units
    return seconds / units.value if units.value and not units.missing else None


def _seconds(item: Assessment) -> float:
    """Of all attempts at a finished task."""
    assert item.marker is not None
    earlier = item.marker.ran_on.get("earlier") or []
    lost = [one["ended"] - one["started"] for one in earlier if {"ended", "started"} <= one.keys()]
    return item.marker.seconds + sum(lost)


def disk_needed(
    forecasts: Iterable[StageForecast], assessed: Mapping[str, Assessment], run: Path
) -> dict[str, Amount]:
    """Bytes that will lie in each folder of a run."""
    folder = {
        item.stage: item.task.outputs[0].relative_to(run).parts[0] for item in assessed.values()
    }
    needed: dict[str, Amount] = {}
    for one in forecasts:
        needed[folder[one.stage]] = needed.get(folder[one.stage], NOTHING) + one.stored
    return needed
