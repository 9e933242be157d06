"""Runs as Slurm leaves them behind, without a Slurm: records, logs, and what it remembers of jobs."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpc import slurm
from hpc.ledger import Ledger
from hpc.plan import Plan
from hpc.queued import QueuedTask, RunQueue, record_jobs
from hpc.slurm import PastJob
from hpc.triage import Failure, Triage, triage
from tests.hpc.conftest import Study

TIME_LIMIT = (
    "slurmstepd: error: *** JOB 12 ON node1 CANCELLED AT 2026-11-21T09:00:00 DUE TO TIME LIMIT ***"
)
OOM = (
    "slurmstepd: error: Detected 1 oom_kill event in StepId=12.0. Some of the step tasks have "
    "been OOM Killed."
)


def heading(restart: int = 0) -> str:
    return (
        f"===== attempt {restart + 1} (restart {restart}) of job 12_0 on node1, "
        "2026-11-21 09:00:00 ====="
    )


def starts(task: str) -> str:
    return f"2026-11-21 09:00:01 {task}: starts (not yet run)"


@dataclass
class FakeCluster:
    """A run that went to a Slurm which only remembers what the test tells it."""

    study: Study
    past: dict[str, PastJob] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    plan: Plan = field(init=False)

    def submit(self, at_once: int = 9) -> None:
        """`write` becomes job 12, `join` job 13."""
        self.plan = self.study.plan(at_once)
        record_jobs(self.study.run, self.plan.submission, {"write": "12", "join": "13"})

    def log(self, job: str, *lines: str, stage: str = "write", rank: int = 0) -> Path:
        path = self.study.run / "logs" / stage / self.plan.submission / f"{job}_{rank}_log.out"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.writelines(f"{line}\n" for line in lines)
        return path

    def attempt(self, task: str, job: str, state: str = "running", **more: Any) -> None:
        stage, _, name = task.partition("/")
        log = self.study.run / "logs" / stage / self.plan.submission / f"{job}_0_log.out"
        record = {
            "state": state, "digest": self.plan.tasks[task]["digest"], "cluster": "slurm",
            "job": job, "restart": 0, "log": str(log), "host": "node1", "pid": 1,
            "started": time.time(), "progress": {"done": 0, "total": 0, "unit": ""}, "earlier": [],
        }  # fmt: skip
        Ledger(self.study.run).write_attempt(stage, name, {**record, **more})

    def ended(self, job: str, state: str, exit_code: str = "0:0", rss: int | None = None) -> None:
        self.past[job] = PastJob(id=job, state=state, exit_code=exit_code, max_rss_bytes=rss)

    def queue(self, **jobs: str) -> RunQueue:
        """Tasks in the queue: `write__letters__a="12_0 RUNNING"`."""
        found = RunQueue([], {}, {})
        for name, words in jobs.items():
            job_id, state, *reason = words.split()
            job = slurm.Job(
                id=job_id, state=state, reason=(reason or ["None"])[0], waits_for=(), nodes="",
                comment="", name="",
            )  # fmt: skip
            task = name.replace("__", "/")
            digest = self.plan.tasks[task]["digest"]
            found.tasks[task] = QueuedTask(job=job, digest=digest)
        return found

    def triage(self, queue: RunQueue | None = RunQueue([], {}, {})) -> Triage:  # noqa: B008
        return triage(self.study.run, self.study.assess(), queue)

    def failure(self, task: str, queue: RunQueue | None = RunQueue([], {}, {})) -> Failure:  # noqa: B008
        return next(one for one in self.triage(queue).failures if one.reference == task)


def raised(error: str, *frames: str) -> str:
    lines = [f'  File "{one}", line 7, in run\n    work()' for one in frames]
    return "\n".join(["Traceback (most recent call last):", *lines, error])
