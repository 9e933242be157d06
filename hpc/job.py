"""One Slurm job: the script that sbatch is given, and what each of the job's processes runs.

python -m hpc.job PLAN STAGE        what a script without submitit starts, by srun
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc import slurm
from hpc.distributed import Fault, Leader, Place, follow, slurm_place, torch_environment
from hpc.ledger import Ledger
from hpc.plan import Plan, StagePlan
from hpc.profile import Profile, SlurmOptions
from hpc.stage import Context, DistributedStage, Resources, Stage
from hpc.worker import Interrupted, JobRecord, TasksFailed, Worker

# NCCL catches USR1.
_STOP = signal.SIGUSR2
_SECONDS_TO_TELL = 3
_SECONDS_TO_NOTICE = 30
"""For the first process of a job to end by itself when another has failed."""


# the script


@dataclass(frozen=True, kw_only=True)
class Script:
    """The parts of a stage's script for sbatch."""

    options: Mapping[str, Any]
    """sbatch's long options; True for one without a value."""
    setup: Sequence[str]
    """Shell lines before srun."""
    srun: Sequence[str]
    """Arguments of srun."""
    python: str
    """The command that starts Python, quoted for a shell."""
    logs: Path
    """Folder of the jobs' logs; it has to exist before a job starts."""


def script_of(plan: Plan, stage: StagePlan, profile: Profile, waits_for: Sequence[str]) -> Script:
    """What sbatch is told about a stage's jobs.

    Raises:
        ValueError: the run's path can't be used in a script.
    """
    chosen = profile.slurm(stage.stage)
    logs = log_folder(plan, stage.stage)
    if "%" in str(logs) or "\\" in str(logs) or "\n" in str(logs):
        raise ValueError(f"{plan.run}: Slurm would read '%' and '\\' in a run's path as its own")
    environment = variables(stage.resources, profile.environment(stage.stage))
    exports = [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]
    own = {"job-name": f"{plan.run.name}-{stage.stage}", "comment": comment(plan, stage.stage)}
    if waits_for:
        own["dependency"] = "afterok:" + ":".join(waits_for)
        own["kill-on-invalid-dep"] = "yes"
    return Script(
        options={**sbatch_options(stage.resources, chosen), **own},
        setup=[*chosen.setup, *exports],
        srun=_srun_arguments(stage.resources, chosen),
        python=_python(chosen),
        logs=logs,
    )


def sbatch_options(resources: Resources, chosen: SlurmOptions) -> dict[str, Any]:
    """sbatch's long options for a job; nothing that the profile didn't ask for.

    Only how the job is stopped and comes back is simgap's own: signal, requeue, open-mode.
    """
    asked = {
        "partition": chosen.partition,
        "account": chosen.account,
        "qos": chosen.qos,
        "constraint": chosen.constraint,
        "nodes": resources.nodes,
        "ntasks-per-node": resources.processes,
        "cpus-per-task": resources.cpus,
        "gpus-per-node": resources.gpus or None,
        "mem": f"{max(1, int(resources.memory_gb * 1e9 / 2**20))}M",
        "time": resources.minutes,
        "signal": f"{_STOP.name.removeprefix('SIG')}@{chosen.signal_seconds}",
        "requeue": True,
        "open-mode": "append",
    }
    return {**{name: one for name, one in asked.items() if one is not None}, **chosen.sbatch}


def comment(plan: Plan, stage: str) -> str:
    """By which a job in the queue is recognised."""
    return f"simgap {plan.submission} {stage}"


def log_folder(plan: Plan, stage: str) -> Path:
    """Where the output of a submission's jobs of a stage goes."""
    return plan.run / "logs" / stage / plan.submission


def variables(resources: Resources, environment: Mapping[str, str]) -> dict[str, str]:
    """Environment variables of a job: one thread a core in every library, and the profile's own."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return {**dict.fromkeys(names, str(resources.cpus)), **environment}


def _srun_arguments(resources: Resources, chosen: SlurmOptions) -> list[str]:
    # From Slurm 22.05 on, srun does not take over sbatch's --cpus-per-task.
    words = [f"--cpus-per-task={resources.cpus}"]
    if resources.world > 1:
        words.append("--kill-on-bad-exit=1")  # or the others wait for the dead one
    if chosen.container and chosen.container.runtime == "pyxis":
        words += [f"--container-image={chosen.container.image}", *chosen.container.arguments]
    return words


def _python(chosen: SlurmOptions) -> str:
    if chosen.container is None:
        return chosen.python or shlex.quote(sys.executable)
    python = chosen.python or "python3"
    if chosen.container.runtime == "pyxis":
        return python
    words = [chosen.container.runtime, "exec", *chosen.container.arguments, chosen.container.image]
    return f"{shlex.join(words)} {python}"


# what runs


@dataclass(frozen=True)
class SlurmJob:
    """What each process of a Slurm job runs."""

    worker: Worker

    def __call__(self) -> None:
        """Run the element's tasks, or take part in them.

        Raises:
            TasksFailed: at least one task failed; all were tried.
            SystemExit: the job was told to stop.
        """
        place = slurm_place(os.environ)
        os.environ.update(torch_environment(place))
        plan, stage_plan, stage = self.worker.load()
        if place.world != (expected := stage_plan.resources.world):
            raise ValueError(f"Slurm started {place.world} processes, the plan has {expected}")
        job = _this_job(plan, stage.name, place.rank)
        print(
            f"===== attempt {job.restart + 1} (restart {job.restart}) of job {job.job} on "
            f"{os.environ.get('SLURMD_NODENAME', '?')}, {time.strftime('%Y-%m-%d %H:%M:%S')} =====",
            flush=True,
        )
        if place.rank:
            _follow(plan, stage_plan, stage, place)
        else:
            self._lead(plan, stage_plan, place, job)

    def _lead(self, plan: Plan, stage_plan: StagePlan, place: Place, job: JobRecord) -> None:
        signals = _Signals(job.restart, stage_plan)
        signals.listen()
        faults = _Faults(Ledger(plan.run), self.worker.stage, signals.told)
        try:
            with Leader(place, faults.note) as leader:
                try:
                    self.worker(job, faults.watched(leader.call))
                except TasksFailed:
                    faults.wait_for_cause(_SECONDS_TO_TELL if place.world > 1 else 0)
                    raise
        except Interrupted:
            sys.exit(1)
        finally:
            faults.record()


def _this_job(plan: Plan, stage: str, rank: int) -> JobRecord:
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    number = os.environ["SLURM_JOB_ID"]
    job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else number
    return JobRecord(
        cluster="slurm",
        job=job,
        log=str(log_folder(plan, stage) / f"{job}_{rank}_log.out"),
        restart=int(os.environ.get("SLURM_RESTART_COUNT", "0")),
    )


def _follow(plan: Plan, stage_plan: StagePlan, stage: Stage, place: Place) -> None:
    if not isinstance(stage, DistributedStage):
        raise TypeError(f"{stage.name} is the work of one process, this is one of {place.world}")

    told = threading.Event()
    _leave_it_to_the_first(told)

    def act(order: Mapping[str, Any]) -> None:
        task, entry = plan.task(f"{stage.name}/{order['task']}")
        context = Context(
            digest=entry["digest"],
            inputs=order["inputs"],
            resources=stage_plan.resources,
            progress=lambda done, total, unit: None,
        )
        try:
            stage.follow(task, context)
        except Exception:
            if told.is_set():  # no fault of its own: Slurm ends this process in a moment
                time.sleep(_SECONDS_TO_NOTICE)
            raise

    follow(place, act)


class _Faults:
    """What went wrong in the job's other processes: the cause of what this one runs into."""

    def __init__(self, ledger: Ledger, stage: str, told: threading.Event) -> None:
        self._ledger, self._stage = ledger, stage
        self._told_to_stop = told
        self._task = ""
        self._found: dict[str, Fault] = {}
        self._cause = threading.Event()

    def wait_for_cause(self, seconds: float) -> None:
        """Wait a moment: that a process was killed may be heard after what it led to."""
        self._cause.wait(seconds)

    def watched(self, call: Callable[[Mapping[str, Any]], None]) -> Callable[..., None]:
        """`call`, with a look at the task that it is about."""

        def lead(order: Mapping[str, Any]) -> None:
            self._task = order["task"]
            call(order)

        return lead

    def note(self, fault: Fault) -> None:
        """Record a fault at once, and end this process if it hangs in a collective operation."""
        print(f"rank {fault['rank']} on {fault['host']}: {fault['error']}", flush=True)
        if self._told_to_stop.is_set():
            return
        # A process that was killed is the cause of what the others report.
        if self._task not in self._found or not fault["traceback"]:
            self._found[self._task] = fault
        self.record()
        if not fault["traceback"]:
            self._cause.set()
        timer = threading.Timer(_SECONDS_TO_NOTICE, os._exit, (1,))
        timer.daemon = True
        timer.start()

    def record(self) -> None:
        """Make the faults the errors of their tasks' attempts."""
        for task, fault in self._found.items():
            if attempt := self._ledger.attempt(self._stage, task):
                failure = {
                    "state": "failed",
                    "error": f"rank {fault['rank']} on {fault['host']}: {fault['error']}",
                    "traceback": fault["traceback"] or attempt.get("traceback", ""),
                    "rank": fault["rank"],
                    "ended": time.time(),
                }
                self._ledger.write_attempt(self._stage, task, {**attempt, **failure})


class _Signals:
    """What the job's first process does when Slurm tells it to stop.

    USR2 comes some time before the time limit, or before other jobs get the nodes. SIGTERM comes
    when Slurm ends the job, or as a warning before it is preempted. A job that ended by itself on a
    warning would count as failed, and all that waits for it would be cancelled: so it goes back
    into the queue.
    """

    def __init__(self, restart: int, plan: StagePlan) -> None:
        self._restart, self._plan = restart, plan
        self._process = os.getpid()
        self.told = threading.Event()
        """Set when the job was told to stop: what fails from then on is no failure of its task."""

    def listen(self) -> None:
        """Take over the signals."""
        signal.signal(_STOP, self._stop)
        signal.signal(signal.SIGTERM, self._terminate)

    def _stop(self, number: int, frame: object) -> None:
        if os.getpid() == self._process:  # not in a forked child
            self._begin()
            self._requeue(_shown())

    def _terminate(self, number: int, frame: object) -> None:
        if os.getpid() != self._process:
            _end_child(number)
        self._begin()
        shown = _shown()
        if not shown:
            os.write(1, b"SIGTERM: the job is about to be ended; working on until then\n")
        elif slurm.is_running(shown["JobState"]):
            self._requeue(shown)
        else:
            raise Interrupted("ended by Slurm", comes_back=True)

    def _begin(self) -> None:
        for number in (_STOP, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        # The whole job was told: data loaders die, and torch would raise that right here.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self.told.set()

    def _requeue(self, shown: Mapping[str, str]) -> None:
        told = f"told to stop: {self._reason(shown)}"
        if self._restart >= self._plan.max_requeues:
            limit = f"max_requeues is {self._plan.max_requeues}"
            words = f"{told}; it was requeued {self._restart} times before, and {limit}"
            raise Interrupted(words, comes_back=False)
        try:
            slurm.requeue(os.environ["SLURM_JOB_ID"])
        except slurm.SlurmError as error:
            raise Interrupted(f"{told}; it can't be requeued: {error}", comes_back=False) from error
        raise Interrupted(f"{told}; it is in the queue again", comes_back=True)

    def _reason(self, shown: Mapping[str, str]) -> str:
        """Slurm has one signal for two reasons."""
        try:
            end = time.mktime(time.strptime(shown["EndTime"], "%Y-%m-%dT%H:%M:%S"))
        except (KeyError, ValueError):
            return "its time limit is near, or other jobs need its nodes"
        # A preempted job's end is near as well, but Slurm says so.
        preempted = shown.get("PreemptTime", "None") not in ("None", "Unknown")
        near = end - time.time() < self._plan.signal_seconds + 90  # it may come a minute early
        return "other jobs need its nodes" if preempted or not near else "its time limit is near"


def _shown() -> dict[str, str]:
    """What Slurm says of this job; nothing if it can't be asked."""
    words = ("scontrol", "--oneliner", "show", "job", os.environ["SLURM_JOB_ID"])
    with suppress(slurm.SlurmError):
        return slurm.fields_of(slurm.call(*words))
    return {}


def _leave_it_to_the_first(told: threading.Event) -> None:
    """The signals of the job's other processes: the first one decides what happens."""
    process = os.getpid()

    def note(number: int, frame: object) -> None:
        if os.getpid() != process and number == signal.SIGTERM:
            _end_child(number)
        told.set()

    for number in (_STOP, signal.SIGTERM):
        signal.signal(number, note)


def _end_child(number: int) -> None:
    """A forked child that its parent wants to end: do as if there were no handler."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one process of a job; returns its exit status."""
    made = argparse.ArgumentParser(
        prog="python -m hpc.job", description="What a script for sbatch starts, by srun."
    )
    made.add_argument("plan", type=Path, help="a run's plans/<submission>.json")
    made.add_argument("stage")
    arguments = made.parse_args(argv)
    element = int(os.environ.get("SLURM_ARRAY_TASK_ID", "0"))
    try:
        SlurmJob(Worker(arguments.plan, arguments.stage, element))()
    except TasksFailed as error:
        print(f"simgap: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
