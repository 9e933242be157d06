"""What a job runs: its tasks one by one, a marker for each.

A task that fails is recorded and doesn't stop the next one; at the end the job fails if any did. A
job that is started again does the same call: what is done by then is left alone.
"""

from __future__ import annotations

import os
import socket
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc.ledger import Ledger
from hpc.plan import Plan, load_plan
from hpc.stage import Context, OutputError, Resources, Stage, Task


class TasksFailed(Exception):
    """Some tasks of a job failed; each is recorded in the run's `attempts` folder."""


def code_version() -> str:
    """The git commit of the code that runs, with `+` if it has local changes; empty if unknown."""
    import subprocess

    here = Path(__file__).parent
    try:
        words = ["git", "-C", str(here), "describe", "--always", "--dirty=+", "--abbrev=12"]
        # Only if this very file is under version control, not the environment it is installed in.
        tracked = ["git", "-C", str(here), "ls-files", "--error-unmatch", Path(__file__).name]
        subprocess.run(tracked, check=True, capture_output=True, timeout=10)
        return subprocess.run(
            words, check=True, capture_output=True, text=True, timeout=10
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


@dataclass(frozen=True)
class Worker:
    """Runs one element of one stage of a plan. Holds arguments only: cheap to pickle."""

    plan_path: Path
    stage: str
    element: int

    def __call__(self, *, job: str = "", log: str = "") -> None:
        """Run the element's tasks.

        Args:
            job: the scheduler's id of this job, for the records.
            log: where this job's output goes, for the records.

        Raises:
            TasksFailed: at least one task failed; all were tried.
        """
        plan = load_plan(self.plan_path)
        stage_plan = next(item for item in plan.stages if item.stage == self.stage)
        stage = next(item for item in plan.build_stages() if item.name == self.stage)
        names = stage_plan.elements[self.element]
        commit = code_version()
        job_record = {"job": job, "log": log, "host": socket.gethostname(), "pid": os.getpid()}
        _say(
            f"{self.stage}: {len(names)} tasks on {job_record['host']}, code {commit or 'unknown'}"
        )
        if commit != plan.submitted.get("commit", commit):
            _say(f"warning: submitted from code {plan.submitted['commit']}, this is {commit}")
        runner = _Runner(plan, stage, stage_plan.resources, {**job_record, "commit": commit})
        failed = [name for name in names if not runner.run(name)]
        if failed:
            listed = ", ".join(failed[:5]) + (" ..." if len(failed) > 5 else "")
            raise TasksFailed(f"{len(failed)} of {len(names)} {self.stage} tasks failed: {listed}")


@dataclass(frozen=True)
class _Runner:
    plan: Plan
    stage: Stage
    resources: Resources
    ran_on: Mapping[str, Any]

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.plan.run)

    def run(self, name: str) -> bool:
        """Run a task unless it is done by now; returns whether it is done."""
        task, entry = self.plan.task(f"{self.stage.name}/{name}")
        with _patient_lock(self.ledger, self.stage.name, name):
            started = time.time()
            record = {**self.ran_on, "digest": entry["digest"], "started": started}
            try:
                fingerprints = self._input_fingerprints(entry["inputs"])
                if self._is_done(task, entry["digest"], fingerprints):
                    _say(f"{name}: kept, its inputs are what it was made from")
                    self.ledger.attempt_path(self.stage.name, name).unlink(missing_ok=True)
                    return True
                _say(f"{name}: starts ({entry['reason']})")
                progress = _ProgressRecord(self.ledger, self.stage.name, name, record)
                progress.write(0, 0, "")
                context = Context(
                    digest=entry["digest"],
                    inputs=fingerprints,
                    resources=self.resources,
                    progress=progress,
                )
                counts = self.stage.run(task, context)
                self.ledger.finished(
                    self.stage,
                    task,
                    entry["digest"],
                    inputs=dict(entry["inputs"]),
                    input_fingerprints=fingerprints,
                    parts=dict(entry["parts"]),
                    counts=counts,
                    started=started,
                    seconds=round(time.time() - started, 3),
                    ran_on=self.ran_on,
                )
            except Exception as error:
                self._record_failure(name, record, error)
                return False
        _say(f"{name}: done in {time.time() - started:.1f} s {_in_words(counts)}")
        return True

    def _record_failure(self, name: str, record: Mapping[str, Any], error: Exception) -> None:
        text = traceback.format_exc()
        _say(f"{name}: FAILED\n{text.rstrip()}")
        failure = {
            **record,
            "state": "failed",
            "error": f"{type(error).__name__}: {error}",
            "traceback": text,
            "ended": time.time(),
        }
        with suppress(OSError):  # the disk may be full; the log has it already
            self.ledger.write_attempt(self.stage.name, name, failure)

    def _is_done(self, task: Task, digest: str, inputs: Mapping[str, str]) -> bool:
        marker = self.ledger.marker(self.stage.name, task.name, digest)
        if marker is None or dict(marker.input_fingerprints) != dict(inputs):
            return False
        try:
            self.ledger.verify(self.stage, task, marker)
        except OutputError:
            return False
        return True

    def _input_fingerprints(self, inputs: Mapping[str, str]) -> dict[str, str]:
        """The content of each input as it is now.

        Raises:
            ValueError: an input has not been made, or only with another digest.
        """
        found = {}
        for name, digest in inputs.items():
            content = self.ledger.content(name, digest)
            if content is None:
                raise ValueError(
                    f"its input {name} is not there with digest {digest}: submit again to make it"
                )
            found[name] = content
        return found


class _ProgressRecord:
    """Writes a running task's progress for `status`, and a line to the log now and then."""

    def __init__(self, ledger: Ledger, stage: str, task: str, record: Mapping[str, Any]) -> None:
        self._ledger, self._stage, self._task = ledger, stage, task
        self._record = record
        self._written = self._said = time.time()

    def __call__(self, done: int, total: int, unit: str) -> None:
        now = time.time()
        if now - self._written >= 1:
            self._written = now
            self.write(done, total, unit)
        if now - self._said >= 15:
            self._said = now
            _say(f"{self._task}: {_rate(done, total, unit, now - self._record['started'])}")

    def write(self, done: int, total: int, unit: str) -> None:
        progress = {"done": done, "total": total, "unit": unit}
        record = {**self._record, "state": "running", "progress": progress}
        self._ledger.write_attempt(self._stage, self._task, record)


def _rate(done: int, total: int, unit: str, seconds: float) -> str:
    rate = done / max(seconds, 1e-9)
    if not total or not done:
        return f"{done:,} {unit}, {rate:,.0f} a second"
    left = (total - done) / rate
    return f"{done:,} of {total:,} {unit}, {rate:,.0f} a second, {left:,.0f} s left"


class _patient_lock:
    """Claim a task; if another process works on it, say so and wait until it ends."""

    def __init__(self, ledger: Ledger, stage: str, task: str) -> None:
        self._claim = (ledger, stage, task)

    def __enter__(self) -> None:
        ledger, stage, task = self._claim
        waited = False
        while True:
            self._lock = ledger.lock(stage, task)
            if self._lock.__enter__():
                return
            self._lock.__exit__(None, None, None)
            if not waited:
                other = ledger.attempt(stage, task) or {}
                where = f"process {other.get('pid', '?')} on {other.get('host', '?')}"
                _say(f"{task}: {where} works on it; waiting for that to end")
                waited = True
            time.sleep(0.5)

    def __exit__(self, *exception: Any) -> None:
        self._lock.__exit__(*exception)


def _in_words(counts: Mapping[str, Any]) -> str:
    told = [f"{name} {value:,}" for name, value in counts.items() if isinstance(value, int | float)]
    return f"({', '.join(told)})" if told else ""


def _say(line: str) -> None:
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}", flush=True)
