"""What one submission runs: everything that is not done, not queued, and asked for."""

from __future__ import annotations

import fcntl
import os
import re
import shlex
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from hpc import slurm
from hpc.plan import DONE, Assessment, Plan, StagePlan, pack
from hpc.profile import Profile
from hpc.queued import RunQueue, record_jobs, recorded_jobs, run_queue, settled_queue
from hpc.stage import DistributedStage, Stage
from hpc.words import count


class RunIsBusy(Exception):
    """Another submission, or jobs of an earlier one, are in the way; the message says which."""


@contextmanager
def alone(run: Path, patience: float = 0.0) -> Iterator[None]:
    """Hold the run's lock, so that two submissions don't start the same tasks.

    Args:
        run: its folder.
        patience: seconds to wait for another submission to end.

    Raises:
        RunIsBusy: another submission holds it.
    """
    run.mkdir(parents=True, exist_ok=True)
    ends = time.monotonic() + patience
    with lock_path(run).open("a+", encoding="utf-8") as file:
        while True:
            try:
                fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > ends:
                    file.seek(0)
                    raise RunIsBusy(
                        f"another submission works on {run}: {file.read().strip()}; wait for it, "
                        "look at it with `simgap status`, or end it with `simgap cancel`"
                    ) from None
            time.sleep(0.2)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {time.ctime()}")
        file.flush()
        yield
        file.truncate(0)


def lock_path(run: Path) -> Path:
    """Held by a submission at work, and says which process it is."""
    return run / ".submission"


def end_local(run: Path) -> str | None:
    """Tell a submission that works on this machine to end.

    Returns:
        Who it is, or None if there is none.

    Raises:
        OSError: it works on another machine, or belongs to somebody else.
    """
    path = lock_path(run)
    if not path.exists():
        return None
    with path.open("r+", encoding="utf-8") as file:
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = file.read().strip()
        else:
            return None
    found = re.match(r"process (\d+) on (\S+)", holder)
    if not found or found[2] != socket.gethostname():
        raise OSError(f"{run}: {holder or 'an unknown process'} works on it: end it there")
    os.kill(int(found[1]), signal.SIGTERM)
    return holder


def check_processes(stages: Sequence[Stage], profile: Profile) -> None:
    """Refuse several processes for a stage whose tasks are the work of one.

    Raises:
        ValueError: the message names the stage.
    """
    for stage in stages:
        asked = profile.resources(stage.name)
        if asked.world > 1 and not isinstance(stage, DistributedStage):
            raise ValueError(
                f"profile {profile.name}: {stage.name}: {asked.nodes} nodes with {asked.processes} "
                "processes each, but a task of this stage is the work of one process: expected 1"
            )


def queue_for(run: Path, cluster: str, *, scripts: bool = False) -> RunQueue:
    """The run's jobs in Slurm's queue; a run that has never been to Slurm has none.

    Args:
        run: its folder.
        cluster: where this submission goes.
        scripts: whether it only writes scripts, which may be done without Slurm.

    Raises:
        RunIsBusy: there are jobs, and the submission could not wait for them.
        SlurmError: Slurm can't be asked.
    """
    if (cluster != "slurm" or (scripts and not slurm.is_here())) and not recorded_jobs(run):
        return RunQueue()
    queue = settled_queue(run)
    if queue.jobs and (scripts or cluster != "slurm"):
        raise RunIsBusy(
            f"{run} has jobs in Slurm's queue: {', '.join(queue.ids)}; wait, or end them by "
            f"`{shlex.join(['simgap', 'cancel', str(run)])}`"
        )
    return queue


def queued_tasks(run: Path) -> int:
    """How many tasks of a run are in the queue; none if Slurm can't be asked."""
    with suppress(slurm.SlurmError):
        if recorded_jobs(run):
            return len(run_queue(run).tasks)
    return 0


def to_run(
    run: Path,
    assessed: Mapping[str, Assessment],
    queue: RunQueue,
    patterns: Sequence[str] = (),
) -> dict[str, Assessment]:
    """The tasks that have to run and are not in the queue yet.

    Args:
        run: its folder.
        assessed: every task.
        queue: the run's jobs.
        patterns: only tasks that fit one of these, if there are any; `*` matches anything.

    Raises:
        ValueError: a pattern fits no task, or a chosen task needs another that is neither done,
            nor queued, nor chosen.
        RunIsBusy: jobs in the queue make a task from other settings than today's.
    """
    undone = {name: item for name, item in assessed.items() if item.state != DONE}
    _refuse_outdated(run, undone, queue)
    todo = {name: item for name, item in undone.items() if name not in queue.tasks}
    if not patterns:
        return todo
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in assessed):
            example = next(iter(assessed))
            raise ValueError(f"--task {pattern}: no such task; they are named like {example}")
    chosen = {n: item for n, item in todo.items() if any(fnmatchcase(n, one) for one in patterns)}
    for name, item in chosen.items():
        for needed in item.producers:
            if needed in todo and needed not in chosen:
                raise ValueError(f"--task {name}: needs {needed}, which is not done")
    return chosen


def _refuse_outdated(run: Path, undone: Mapping[str, Assessment], queue: RunQueue) -> None:
    queued = queue.tasks
    others = [n for n, one in undone.items() if n in queued and queued[n].digest != one.digest]
    if others:
        jobs = ", ".join(dict.fromkeys(queue.tasks[name].job.array for name in others))
        stages = dict.fromkeys(name.partition("/")[0] for name in others)
        options = [word for stage in stages for word in ("--stage", stage)]
        raise RunIsBusy(
            f"{len(others)} queued tasks, such as {others[0]}, are made from other settings or "
            f"inputs than today's (jobs {jobs}). Wait for them, or end them by "
            f"`{shlex.join(['simgap', 'cancel', str(run), *options])}`"
        )


def cancel_doomed(assessed: Mapping[str, Assessment], queue: RunQueue) -> list[str]:
    """Cancel queued jobs that will never start; their tasks can be submitted anew.

    To be called when `to_run` has found that all queued tasks are still wanted.

    Returns:
        Their ids; the queue has to be asked again if there are any.
    """
    undone = [name for name, item in assessed.items() if item.state != DONE]
    doomed = queue.doomed(undone, {name: item.producers for name, item in assessed.items()})
    if doomed:
        slurm.cancel(doomed)
    return doomed


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What a submission runs, and what it leaves alone."""

    assessed: Mapping[str, Assessment]
    """Every task."""
    queue: RunQueue
    """The run's jobs that stay queued."""
    todo: Mapping[str, Assessment]
    """The tasks to run."""
    replaced: Sequence[str]
    """Jobs that would never have started; cancelled, and their tasks are in `todo`."""


def decide(
    run: Path,
    assess: Callable[[], Mapping[str, Assessment]],
    cluster: str,
    patterns: Sequence[str] = (),
    *,
    scripts: bool = False,
) -> Decision:
    """Decide what a submission runs; to be called while it holds the run's lock.

    Args:
        run: its folder.
        assess: judges every task; called after Slurm was asked, so that a job that ends in between
            is not taken for lost.
        cluster: where the submission goes.
        patterns: only tasks that fit one of these, if there are any.
        scripts: whether it only writes scripts.

    Raises:
        RunIsBusy, ValueError, SlurmError: as `queue_for` and `to_run`; nothing was cancelled then.
    """
    queue = queue_for(run, cluster, scripts=scripts)
    assessed = assess()
    todo = to_run(run, assessed, queue, patterns)
    replaced = [] if patterns else cancel_doomed(assessed, queue)
    if replaced:
        queue = queue_for(run, cluster)
        todo = to_run(run, assessed, queue)
    return Decision(assessed=assessed, queue=queue, todo=todo, replaced=replaced)


def by_stage(todo: Mapping[str, Assessment]) -> dict[str, list[str]]:
    """Names of tasks by stage, in order."""
    found: dict[str, list[str]] = {}
    for item in todo.values():
        found.setdefault(item.stage, []).append(item.task.name)
    return found


def slurm_stages(
    todo: Mapping[str, Assessment], profile: Profile, max_array_size: int
) -> list[StagePlan]:
    """Deal the tasks of each stage to the elements of one array."""
    plans = []
    for stage, names in by_stage(todo).items():
        chosen = profile.slurm(stage)
        jobs = min(max_array_size, -(-len(names) // chosen.tasks_per_job))
        plans.append(
            StagePlan(
                stage=stage,
                resources=profile.resources(stage),
                elements=pack(names, jobs),
                at_once=min(jobs, chosen.array_parallelism or jobs),
                max_requeues=chosen.max_requeues,
                signal_seconds=chosen.signal_seconds,
            )
        )
    return plans


def waits_for(plan: Plan, stage: StagePlan, jobs: Mapping[str, str], queue: RunQueue) -> list[str]:
    """Ids of all jobs that make what the tasks of a stage need.

    Args:
        plan: the submission.
        stage: the part of it.
        jobs: id of the job of each stage of this submission, so far.
        queue: what was queued before.
    """
    needed = {
        name.partition("#")[0]
        for element in stage.elements
        for task in element
        for name in plan.tasks[f"{stage.stage}/{task}"]["inputs"]
    }
    made_now = dict.fromkeys(name.partition("/")[0] for name in plan.tasks if name in needed)
    # Single elements of a queued array: another element of it may have failed.
    queued = dict.fromkeys(task.job.id for name, task in queue.tasks.items() if name in needed)
    return [*(jobs[name] for name in made_now), *queued]


def submit_stages(
    plan: Plan, profile: Profile, queue: RunQueue, say: Callable[[str], None]
) -> dict[str, str]:
    """Submit each stage as an array that waits for those whose results it needs.

    Returns:
        The job's id for each stage.

    Raises:
        SlurmError: Slurm refused a stage. What was submitted before it stays queued and is
            recognised by the next submission.
    """
    from hpc.executors import submit_slurm

    jobs: dict[str, str] = {}
    for stage in plan.stages:
        after = waits_for(plan, stage, jobs, queue)
        jobs[stage.stage] = submit_slurm(plan, stage, profile, after)
        record_jobs(plan.run, plan.submission, jobs)
        say(_line(stage, jobs[stage.stage], after))
    return jobs


def _line(stage: StagePlan, job: str, after: Sequence[str]) -> str:
    tasks, jobs = sum(map(len, stage.elements)), len(stage.elements)
    line = f"{stage.stage:<10} job {job}: {count(tasks, 'task')} in {count(jobs, 'job')}"
    if stage.at_once < jobs:
        line += f", {stage.at_once} at once"
    if after:
        line += f", after {', '.join(after[:6])}{' ...' if len(after) > 6 else ''}"
    return line
