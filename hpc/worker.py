"""What a job runs: its tasks one by one, a marker for each.

A task that fails is recorded and doesn't stop the next one; at the end the job fails if any did. A
job that is started again does the same call: what is done by then is left alone.
"""

from __future__ import annotations

import os
import socket
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hpc.ledger import Ledger
from hpc.plan import Plan, StagePlan, load_plan
from hpc.stage import Context, Counts, OutputError, Resources, Rest, Stage, Task

_ATTEMPTS_KEPT = 20
_TOLD_OF_EARLIER = (
    "state", "job", "restart", "host", "cpus", "gpus", "started", "ended", "error", "log",
)  # fmt: skip


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


class Interrupted(BaseException):
    """A job was told to stop; not an Exception, so that no task takes it for its own failure."""

    def __init__(self, words: str, *, comes_back: bool) -> None:
        super().__init__(words)
        self.comes_back = comes_back
        """Whether the job is in the queue again and goes on from here."""


@dataclass(frozen=True, kw_only=True)
class JobRecord:
    """What the records say of the job that does the work."""

    cluster: str
    job: str = ""
    """The scheduler's id."""
    log: str = ""
    """Where its output goes."""
    restart: int = 0
    """How often it was requeued."""


Lead = Callable[[Mapping[str, Any]], None]
"""Sends an order to the job's other processes."""


def _alone(order: Mapping[str, Any]) -> None:
    """A job of one process leads nobody."""


@dataclass(frozen=True)
class Worker:
    """Runs one element of one stage of a plan. Holds arguments only: cheap to pickle."""

    plan_path: Path
    stage: str
    element: int

    def __call__(self, job: JobRecord, lead: Lead = _alone) -> None:
        """Run the element's tasks.

        Args:
            job: for the records.
            lead: how the job's other processes are told to take part in a task.

        Raises:
            TasksFailed: at least one task failed; all were tried.
            Interrupted: the job was told to stop.
        """
        plan, stage_plan, stage = self.load()
        names = stage_plan.elements[self.element]
        if job.restart > stage_plan.max_requeues and job.cluster == "slurm":
            self._give_up(plan, names, job, stage_plan.max_requeues)
        commit = code_version()
        host = socket.gethostname()
        _say(f"{self.stage}: {len(names)} tasks on {host}, code {commit or 'unknown'}")
        if commit != plan.submitted.get("commit", commit):
            _say(f"warning: submitted from code {plan.submitted['commit']}, this is {commit}")
        resources = stage_plan.resources
        ran_on = {
            **asdict(job),
            "host": host,
            "pid": os.getpid(),
            "commit": commit,
            "cpus": resources.world * resources.cpus,
            "gpus": resources.nodes * resources.gpus,
        }
        failed: list[str] = []
        with ThreadPoolExecutor(1) as beside:  # at the end, or if interrupted, waits for the rest
            runner = _Runner(plan, stage, resources, ran_on, lead, beside, failed)
            for name, upcoming in zip(names, [*names[1:], ""], strict=True):
                runner.run(name, upcoming)
                if failed and resources.world > 1:
                    break  # the other processes have ended
        if failed:
            listed = ", ".join(failed[:5]) + (" ..." if len(failed) > 5 else "")
            raise TasksFailed(f"{len(failed)} of {len(names)} {self.stage} tasks failed: {listed}")

    def load(self) -> tuple[Plan, StagePlan, Stage]:
        """The plan, the stage's part of it, and the stage."""
        plan = load_plan(self.plan_path)
        stage_plan = next(item for item in plan.stages if item.stage == self.stage)
        return plan, stage_plan, next(s for s in plan.build_stages() if s.name == self.stage)

    def _give_up(self, plan: Plan, names: Sequence[str], job: JobRecord, allowed: int) -> None:
        """Fail the task that this job was cut off in again and again."""
        ledger = Ledger(plan.run)
        times = f"{job.restart} time{'' if job.restart == 1 else 's'}"
        error = (
            f"its job was cut off {times} (preempted, out of time, or its node lost), "
            f"and max_requeues is {allowed}"
        )
        for name in names:
            attempt = ledger.attempt(self.stage, name)
            if attempt and attempt.get("job") == job.job and attempt["state"] != "failed":
                ended = {"state": "failed", "error": error, "ended": time.time()}
                ledger.write_attempt(self.stage, name, {**attempt, **ended})
        raise TasksFailed(error)


@dataclass
class _Runner:
    plan: Plan
    stage: Stage
    resources: Resources
    ran_on: Mapping[str, Any]
    lead: Lead
    beside: ThreadPoolExecutor
    """Runs the rest of a task while the next one works."""
    failed: list[str]
    """Names of tasks that failed so far."""
    _unfinished: Future[None] | None = None

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.plan.run)

    def run(self, name: str, upcoming: str) -> None:
        """Run a task unless it is done by now; its rest may go on after this returns."""
        task, entry = self.plan.task(f"{self.stage.name}/{name}")
        with ExitStack() as claim:
            claim.enter_context(_patient_lock(self.ledger, self.stage.name, name))
            record = self._attempt(name, entry["digest"])
            with self._recording(name, record):
                fingerprints = self._input_fingerprints(entry["inputs"])
                if self._is_done(task, entry["digest"], fingerprints):
                    _say(f"{name}: kept, its inputs are what it was made from")
                    self.ledger.attempt_path(self.stage.name, name).unlink(missing_ok=True)
                    return
                _say(f"{name}: starts ({entry['reason']})")
                result = self._work(task, entry, fingerprints, record, upcoming)
                if not callable(result):
                    self._finish(task, entry, fingerprints, record, result)
                    return
                if self._unfinished:
                    self._unfinished.result()  # only one task's results wait in memory
                self._unfinished = self.beside.submit(
                    self._finish_rest, claim.pop_all(), task, entry, fingerprints, record, result
                )

    def _finish_rest(
        self,
        claim: ExitStack,
        task: Task,
        entry: Mapping[str, Any],
        fingerprints: Mapping[str, str],
        record: Mapping[str, Any],
        rest: Rest,
    ) -> None:
        with claim, self._recording(task.name, record):
            self._finish(task, entry, fingerprints, record, rest())

    @contextmanager
    def _recording(self, name: str, record: Mapping[str, Any]) -> Iterator[None]:
        """Record a failure or an interruption of a task."""
        try:
            yield
        except Exception as error:
            self._record_failure(name, record, error)
            self.failed.append(name)
        except Interrupted as interrupted:
            state = "interrupted" if interrupted.comes_back else "failed"
            _say(f"{name}: {interrupted}")
            ended = {"state": state, "error": str(interrupted), "ended": time.time()}
            self.ledger.write_attempt(self.stage.name, name, {**record, **ended})
            raise

    def _attempt(self, name: str, digest: str) -> dict[str, Any]:
        """The record of an attempt that begins, with those before it."""
        before = self.ledger.attempt(self.stage.name, name)
        earlier = []
        if before and before.get("digest") == digest:
            summary = {key: before[key] for key in _TOLD_OF_EARLIER if key in before}
            if summary["state"] == "running":
                summary["state"] = "cut off"  # or it would have said how it ended
            earlier = [*before.get("earlier", []), summary][-_ATTEMPTS_KEPT:]
        return {**self.ran_on, "digest": digest, "started": time.time(), "earlier": earlier}

    def _work(
        self,
        task: Task,
        entry: Mapping[str, Any],
        fingerprints: Mapping[str, str],
        record: dict[str, Any],
        upcoming: str,
    ) -> Counts | Rest:
        """Run a task, but for its rest."""
        progress = _ProgressRecord(self.ledger, self.stage.name, task.name, record)
        progress.write(0, 0, "")
        order = {"task": task.name, "inputs": dict(fingerprints)}
        context = Context(
            digest=entry["digest"],
            inputs=fingerprints,
            resources=self.resources,
            progress=progress,
            upcoming=self.plan.task(f"{self.stage.name}/{upcoming}")[0] if upcoming else None,
            start_followers=lambda: self.lead(order),
        )
        return self.stage.run(task, context)

    def _finish(
        self,
        task: Task,
        entry: Mapping[str, Any],
        fingerprints: Mapping[str, str],
        record: Mapping[str, Any],
        counts: Counts,
    ) -> None:
        """Check what a task wrote, and write its marker."""
        self.ledger.finished(
            self.stage,
            task,
            entry["digest"],
            inputs=dict(entry["inputs"]),
            input_fingerprints=fingerprints,
            parts=dict(entry["parts"]),
            counts=counts,
            started=record["started"],
            seconds=round(time.time() - record["started"], 3),
            ran_on={**self.ran_on, "earlier": record["earlier"]},
        )
        _say(f"{task.name}: done in {time.time() - record['started']:.1f} s {_in_words(counts)}")

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
