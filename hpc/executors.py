"""Run a plan: `inline` in this process, `local` as jobs on this machine. Slurm comes next.

An executor runs the stages of a plan in order and watches the ledger, not exit codes: a task counts
when its marker is there. What a failed task leaves undone is not started; everything else is.
The only module that imports submitit.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from hpc.ledger import Ledger
from hpc.plan import Plan, StagePlan
from hpc.stage import OutputError, Resources, Stage
from hpc.worker import TasksFailed, Worker


class Reporter(Protocol):
    """Is told how a plan goes along."""

    def stage_starts(self, stage: StagePlan, tasks: Sequence[str]) -> None:
        """A stage's first job is about to start."""

    def poll(self, stage: StagePlan) -> None:
        """Called a few times a second while jobs run."""

    def stage_ends(self, stage: StagePlan, failed: Sequence[str], blocked: Sequence[str]) -> None:
        """No job of the stage is left: which tasks failed, and which were not started."""


@dataclass(frozen=True)
class Room:
    """What a machine has for jobs."""

    cpus: int
    memory_gb: float
    gpus: tuple[int, ...]

    def clamp(self, wanted: Resources) -> Resources:
        """What a job gets here: cores and memory no more than there are.

        Raises:
            ValueError: GPUs are asked for that are not there; never a slow run on the CPU instead.
        """
        if wanted.gpus > len(self.gpus):
            raise ValueError(
                f"{wanted.gpus} GPUs a job are asked for and this machine shows {len(self.gpus)}"
            )
        return replace(
            wanted,
            cpus=min(wanted.cpus, self.cpus),
            memory_gb=min(wanted.memory_gb, self.memory_gb),
        )

    def at_once(self, resources: Resources) -> int:
        """How many jobs with these resources fit side by side."""
        fits = [self.cpus // resources.cpus, int(self.memory_gb // resources.memory_gb)]
        if resources.gpus:
            fits.append(len(self.gpus) // resources.gpus)
        return max(1, min(fits))


def this_machine() -> Room:
    """The cores, memory and GPUs that this process may use."""
    return Room(len(os.sched_getaffinity(0)), _memory_gb(), _visible_gpus())


def _memory_gb() -> float:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and (text := limit.read_text().strip()).isdigit():
        total = min(total, int(text) / 1e9)
    return total


def _visible_gpus() -> tuple[int, ...]:
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return tuple(int(word) for word in chosen.split(",") if word.strip().isdigit())
    driver = Path("/proc/driver/nvidia/gpus")
    return tuple(range(len(list(driver.iterdir())))) if driver.is_dir() else ()


@contextmanager
def job_environment(resources: Resources, environment: Mapping[str, str]) -> Iterator[None]:
    """Environment variables of a job: one thread a core in every library, and the profile's own."""
    threads = dict.fromkeys(
        ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(resources.cpus)
    )
    before = dict(os.environ)
    os.environ.update({**threads, **environment})
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def run_inline(plan: Plan, reporter: Reporter, environment: Mapping[str, str]) -> list[str]:
    """Run a plan in this process, one task after the other: for debugging.

    Returns:
        The tasks, as `stage/task`, that failed or could not start.
    """

    def run_elements(stage: StagePlan, elements: Sequence[int], poll: Callable[[], None]) -> None:
        for element in elements:
            with suppress(TasksFailed):  # recorded in the ledger, which decides
                Worker(plan.path, stage.stage, element)()
            poll()

    return _run_stages(plan, reporter, environment, run_elements)


def run_local(plan: Plan, reporter: Reporter, environment: Mapping[str, str]) -> list[str]:
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
    plan: Plan, reporter: Reporter, environment: Mapping[str, str], run_elements: RunElements
) -> list[str]:
    built = {stage.name: stage for stage in plan.build_stages()}
    undone: list[str] = []
    for stage in plan.stages:
        names = [name for element in stage.elements for name in element]
        blocked = [name for name in names if _blocked_by(plan, stage.stage, name, undone)]
        reporter.stage_starts(stage, names)
        elements = [i for i, tasks in enumerate(stage.elements) if not set(tasks) <= set(blocked)]
        with job_environment(stage.resources, environment):
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

        job = JobEnvironment()
        self.worker(job=job.job_id, log=str(job.paths.stdout))


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
        need, have = self.stage.resources.gpus, _visible_gpus()
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
