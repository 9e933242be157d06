"""Run a plan: `inline` in this process, `local` as jobs on this machine, or on Slurm.

The first two run the stages in order and watch the ledger, not exit codes: a task counts when its
marker is there. What a failed task leaves undone is not started; everything else is. On Slurm all
stages are submitted at once, as arrays that depend on each other, and the queue does the rest.
The only module that imports submitit.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from hpc import slurm
from hpc.distributed import Place, torch_environment
from hpc.job import SlurmJob, script_of, variables
from hpc.ledger import Ledger
from hpc.plan import Plan, StagePlan
from hpc.profile import Profile
from hpc.room import visible_gpus
from hpc.stage import OutputError, Resources, Stage
from hpc.worker import JobRecord, TasksFailed, Worker


class Reporter(Protocol):
    """Is told how a plan goes along."""

    def stage_starts(self, stage: StagePlan, tasks: Sequence[str]) -> None:
        """A stage's first job is about to start."""

    def poll(self, stage: StagePlan) -> None:
        """Called a few times a second while jobs run."""

    def stage_ends(self, stage: StagePlan, failed: Sequence[str], blocked: Sequence[str]) -> None:
        """No job of the stage is left: which tasks failed, and which were not started."""


@contextmanager
def job_environment(resources: Resources, environment: Mapping[str, str]) -> Iterator[None]:
    """Have a job's environment variables in this process for a while."""
    before = dict(os.environ)
    os.environ.update(variables(resources, environment))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


EnvironmentOf = Callable[[str], Mapping[str, str]]
"""The environment variables that a stage's jobs get."""


def run_inline(plan: Plan, reporter: Reporter, environment: EnvironmentOf) -> list[str]:
    """Run a plan in this process, one task after the other: for debugging.

    Returns:
        The tasks, as `stage/task`, that failed or could not start.
    """

    def run_elements(stage: StagePlan, elements: Sequence[int], poll: Callable[[], None]) -> None:
        for element in elements:
            with suppress(TasksFailed):  # recorded in the ledger, which decides
                Worker(plan.path, stage.stage, element)(JobRecord(cluster="inline"))
            poll()

    return _run_stages(plan, reporter, environment, run_elements)


def run_local(plan: Plan, reporter: Reporter, environment: EnvironmentOf) -> list[str]:
    """Run a plan as jobs on this machine, never more at once than it has room for.

    Returns:
        The tasks, as `stage/task`, that failed or could not start.

    Raises:
        ValueError: the run's path can't be used.
    """
    if "%j" in str(plan.run):
        raise ValueError(f"{plan.run}: '%j' in a run's path would be read as a job's id")

    def run_elements(stage: StagePlan, elements: Sequence[int], poll: Callable[[], None]) -> None:
        _LocalStage(plan, stage).run(elements, poll)

    return _run_stages(plan, reporter, environment, run_elements)


RunElements = Callable[[StagePlan, Sequence[int], Callable[[], None]], None]


def _run_stages(
    plan: Plan, reporter: Reporter, environment: EnvironmentOf, run_elements: RunElements
) -> list[str]:
    built = {stage.name: stage for stage in plan.build_stages()}
    undone: list[str] = []
    for stage in plan.stages:
        names = [name for element in stage.elements for name in element]
        blocked = [name for name in names if _blocked_by(plan, stage.stage, name, undone)]
        reporter.stage_starts(stage, names)
        elements = [i for i, tasks in enumerate(stage.elements) if not set(tasks) <= set(blocked)]
        with job_environment(stage.resources, environment(stage.stage)):
            run_elements(stage, elements, partial(reporter.poll, stage))
        missing = [name for name in names if not _is_done(plan, built[stage.stage], name)]
        failed = [name for name in missing if name not in blocked]
        undone += [f"{stage.stage}/{name}" for name in missing]
        reporter.stage_ends(stage, failed, blocked)
    return undone


def _blocked_by(plan: Plan, stage: str, task: str, undone: Sequence[str]) -> bool:
    inputs = plan.tasks[f"{stage}/{task}"]["inputs"]
    return any(name.partition("#")[0] in undone for name in inputs)


def _is_done(plan: Plan, stage: Stage, name: str) -> bool:
    ledger = Ledger(plan.run)
    task, entry = plan.task(f"{stage.name}/{name}")
    marker = ledger.marker(stage.name, name, entry["digest"])
    if marker is None or ledger.attempt(stage.name, name) is not None:
        return False
    inputs = {name: ledger.content(name, digest) for name, digest in entry["inputs"].items()}
    if inputs != dict(marker.input_fingerprints):
        return False  # it was made from other content, and its job never came to it
    try:
        ledger.verify(stage, task, marker)
    except OutputError:
        return False
    return True


@dataclass(frozen=True)
class LocalJob:
    """What a local job runs: a worker, told its id and where its output goes."""

    worker: Worker

    def __call__(self) -> None:
        """Run the element's tasks."""
        from submitit import JobEnvironment

        os.environ.update(torch_environment(Place()))
        job = JobEnvironment()
        self.worker(JobRecord(cluster="local", job=job.job_id, log=str(job.paths.stdout)))


@dataclass(frozen=True)
class _LocalStage:
    plan: Plan
    stage: StagePlan

    def run(self, elements: Sequence[int], poll: Callable[[], None]) -> None:
        """Run jobs until none is left; on the way out by an exception, end those that run."""
        waiting = list(elements)
        running: dict[int, Any] = {}
        gpus = self._gpu_slots()
        try:
            while waiting or running:
                while waiting and len(running) < self.stage.at_once:
                    slot = min(set(range(self.stage.at_once)) - running.keys())
                    running[slot] = self._submit(waiting.pop(0), gpus[slot])
                poll()
                time.sleep(0.1)
                running = {slot: job for slot, job in running.items() if not job.done()}
        finally:
            for job in running.values():
                job.cancel()
            for job in running.values():
                _wait(job)

    def _gpu_slots(self) -> list[Sequence[int]]:
        need, have = self.stage.resources.gpus, visible_gpus()
        return [have[slot * need : (slot + 1) * need] for slot in range(self.stage.at_once)]

    def _submit(self, element: int, gpus: Sequence[int]) -> Any:
        import submitit

        executor = submitit.LocalExecutor(folder=self.plan.run / "logs" / self.stage.stage / "%j")
        executor.update_parameters(
            timeout_min=self.stage.resources.minutes,
            gpus_per_node=len(gpus),
            visible_gpus=tuple(gpus),
            stderr_to_stdout=True,
        )
        worker = Worker(self.plan.path, self.stage.stage, element)
        # Each job has a process that watches over it; an interrupt makes that print a traceback.
        errors = self.plan.run / "logs" / self.stage.stage / "controllers.log"
        with _errors_to(errors), _interruptible():
            return executor.submit(LocalJob(worker))


@contextmanager
def _errors_to(path: Path) -> Iterator[None]:
    """Let processes that are started meanwhile write their standard error to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    terminal = os.dup(2)
    try:
        with path.open("ab") as file:
            os.dup2(file.fileno(), 2)
        yield
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let processes that are started meanwhile be ended by SIGINT, the way jobs are cancelled.

    A shell without job control starts a command with `&` deaf to it, and its children with it.
    """
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        if before is signal.SIG_IGN:
            signal.signal(signal.SIGINT, before)


def _wait(job: Any, seconds: float = 10) -> None:
    ends = time.time() + seconds
    while not job.done() and time.time() < ends:
        time.sleep(0.1)


def submit_slurm(plan: Plan, stage: StagePlan, profile: Profile, waits_for: Sequence[str]) -> str:
    """Submit the jobs of one stage, as an array if there are several.

    Args:
        plan: the submission.
        stage: the part of it to submit.
        profile: the site's.
        waits_for: ids of jobs that have to end well before these may start.

    Returns:
        The job's id.

    Raises:
        SlurmError: sbatch refused; the message carries its own words.
    """
    import submitit

    made = script_of(plan, stage, profile, waits_for)
    executor = submitit.SlurmExecutor(folder=made.logs, python=made.python)
    executor.update_parameters(
        array_parallelism=profile.slurm(stage.stage).array_parallelism or len(stage.elements),
        job_name=None,  # like the wckey, submitit's own; sites with strict accounting refuse that
        wckey=None,
        stderr_to_stdout=True,
        setup=list(made.setup),
        srun_args=list(made.srun),
        additional_parameters=dict(made.options),
    )
    workers = [Worker(plan.path, stage.stage, index) for index in range(len(stage.elements))]
    try:
        with slurm.scrubbed_environment(), executor.batch():
            jobs = [executor.submit(SlurmJob(worker)) for worker in workers]
    except submitit.core.utils.FailedJobError as error:
        told = dict.fromkeys(line for line in str(error).splitlines() if "sbatch" in line)
        raise slurm.SlurmError(
            f"{stage.stage}: sbatch refused: {'; '.join(told) or error}; `simgap doctor` with this "
            "profile may tell why"
        ) from error
    return str(jobs[0].job_id.partition("_")[0])
