"""Run a study: whatever of it is missing or stale, and nothing else.

python -m pipeline.submit experiments/mini.yaml
"""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpc.profile import CLUSTERS
from hpc.words import count
from pipeline.command_line import study_parser
from pipeline.console import Log
from pipeline.forecast.speeds import SPEEDS
from pipeline.layout import Layout
from pipeline.stages import NAMES

if TYPE_CHECKING:
    from hpc.plan import Assessment, Plan, StagePlan
    from hpc.profile import Profile
    from hpc.queued import RunQueue
    from hpc.stage import Stage

SLURMS_OWN_MAX_ARRAY_SIZE = 1001
_EPILOG = """\
examples:
  simgap submit experiments/mini.yaml
      run the whole study on this machine, as many jobs side by side as it has room for
  simgap submit my.yaml --profile slurm_templates/a100.yaml
      on a login node: submit the whole study as arrays that depend on each other, and return
  simgap submit my.yaml --profile a100 --dry-run
      what would run, what is up to date, and why the rest is not
  simgap submit experiments/mini.yaml training.epochs=8 training.seeds='[0, 1, 2]'
      change settings for this submission; only what depends on them runs again
  simgap submit experiments/mini.yaml --until mask
      thresholds, similarities and masks, but no training
  simgap submit my.yaml --profile a100 --sbatch scripts
      write scripts for sbatch instead, for sites where scripts are read before they run

The same command again is the resume: it runs what is missing or stale, and leaves alone what is
queued. Everything is in runs/<name>/: experiment.yaml, the numbered folders of results, done/ with
a marker for each finished task, logs/ with the output of every job.
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = study_parser(
        "submit",
        "Run a study: embed, thresholds, similarities, masks, subsets, training, evaluation, "
        "report. Runs whatever is missing or stale, and nothing else.",
        _EPILOG,
        positional="experiment",
    )
    made.add_argument(
        "--profile",
        default="local",
        help="site profile, a YAML file or the name of a shipped one: where jobs run and what the "
        "jobs of each stage ask for (default: this machine)",
    )
    made.add_argument(
        "--cluster",
        choices=CLUSTERS,
        help="slurm; local: jobs on this machine; inline: in this process, for debugging "
        "(default: what the profile says)",
    )
    made.add_argument(
        "--until",
        choices=NAMES,
        default=NAMES[-1],
        metavar="STAGE",
        help=f"stop after: {', '.join(NAMES)}",
    )
    made.add_argument(
        "--split",
        action="append",
        metavar="NAME",
        help="train and evaluate only on this split (may be repeated); no report",
    )
    made.add_argument(
        "--task",
        action="append",
        metavar="STAGE/TASK",
        help="run only this task, if it is not done (may be repeated; * matches anything)",
    )
    made.add_argument(
        "--sbatch", type=Path, metavar="DIR", help="write scripts for sbatch and submit nothing"
    )
    made.add_argument(
        "--dry-run",
        action="store_true",
        help="say what would run and why, and what it would take: GPU-hours, time, bytes",
    )
    made.add_argument(
        "--json", action="store_true", help="with --dry-run: what it would take, for programs"
    )
    made.add_argument(
        "--verify",
        action="store_true",
        help="read every output again and compare it with its hash; without this, only outputs "
        "whose size or time has changed",
    )
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    arguments = parser().parse_intermixed_args(words)
    arguments.command = shlex.join(["simgap", "submit", *words])
    from hpc.profile import ProfileError
    from hpc.slurm import SlurmError
    from hpc.submission import RunIsBusy
    from pipeline.experiment.load import ExperimentError

    try:
        signal.signal(signal.SIGTERM, _interrupt)
        return _submit(arguments)
    except (ExperimentError, ProfileError, SlurmError, RunIsBusy, OSError, ValueError) as error:
        print(f"simgap submit: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted: the same command goes on from here", file=sys.stderr)
        return 130


def _interrupt(number: int, frame: object) -> None:
    """End as by Ctrl-C: the jobs end too."""
    raise KeyboardInterrupt


def _submit(arguments: argparse.Namespace) -> int:
    from hpc.ledger import Ledger
    from hpc.plan import assess
    from hpc.profile import load_profile
    from hpc.submission import alone, check_processes, queued_tasks
    from pipeline.experiment.load import load_experiment
    from pipeline.layout import find
    from pipeline.stages import stages_of
    from pipeline.training.global_batch import check_training

    if arguments.json and not arguments.dry_run:
        raise ValueError("--json tells what a submission would take: expected --dry-run with it")
    path = find("experiments", arguments.experiment)
    experiment = load_experiment(path, arguments.overrides, without_data=arguments.dry_run)
    profile = load_profile(find("slurm_templates", arguments.profile), NAMES, SPEEDS)
    cluster = arguments.cluster or ("slurm" if arguments.sbatch else profile.cluster)
    if arguments.sbatch and cluster != "slurm":
        raise ValueError(f"--sbatch writes scripts for Slurm, not for --cluster {cluster}")
    if experiment.training is None:
        arguments.until = _without_training(arguments)
    if arguments.split:
        experiment = _only(experiment, arguments.split)
        arguments.until = min(arguments.until, "evaluate", key=NAMES.index)
    stages = stages_of(experiment)[: NAMES.index(arguments.until) + 1]
    check_processes(stages, profile)
    if experiment.training is not None:
        check_training(experiment.training, profile.resources("train"), profile.name)
    layout = Layout(experiment.run)
    if arguments.dry_run:
        from pipeline.forecast.dry_run import DryRun

        assessed = assess(stages, Ledger(layout.run), thorough=arguments.verify)
        dry_run = DryRun(experiment, assessed, profile, partial(_plans, cluster))
        if arguments.json:
            print(json.dumps(dry_run.forecast().values(), indent=2))
        else:
            dry_run.show(queued_tasks(layout.run))
        return 0
    submission = Submission(arguments, cluster, profile, experiment, path, Log(layout.log))
    with alone(layout.run, patience=60 if cluster == "slurm" else 0):
        return submission.start(stages)


@dataclass(frozen=True)
class Submission:
    """Carries out what was decided to run."""

    arguments: argparse.Namespace
    cluster: str
    profile: Profile
    experiment: Any
    source: Path
    log: Log

    @property
    def layout(self) -> Layout:
        """The run's paths."""
        return Layout(self.experiment.run)

    def start(self, stages: Sequence[Stage]) -> int:
        """Decide what to run, and do it; returns the exit status."""
        from hpc.ledger import Ledger
        from hpc.plan import DONE, assess
        from hpc.submission import decide

        run = self.layout.run
        decision = decide(
            run,
            partial(assess, stages, Ledger(run), thorough=self.arguments.verify),
            self.cluster,
            self.arguments.task or (),
            scripts=self.arguments.sbatch is not None,
        )
        assessed, queue, todo = decision.assessed, decision.queue, decision.todo
        if replaced := len(decision.replaced):
            self.log.say(f"{count(replaced, 'job')} waited for failed ones, will be replaced")
        if not todo:
            self._nothing_to_run(assessed, queue)
            return 0
        done = sum(item.state == DONE for item in assessed.values())
        waiting = f", {len(queue.tasks)} queued already" if queue.tasks else ""
        self.log.say(f"{run}: {count(len(todo), 'task')} to run{waiting}, {done} up to date")
        if self.arguments.sbatch:
            return self.write_scripts(todo)
        return self.submit(todo, queue) if self.cluster == "slurm" else self.run(todo)

    def run(self, todo: Mapping[str, Assessment]) -> int:
        """Run it on this machine and wait for its end; returns the exit status."""
        from hpc.executors import run_inline, run_local
        from hpc.words import clock
        from pipeline.console import StageReporter

        plan = self._plan(todo, _local_stages(todo, self.profile, self.cluster))
        execute = {"local": run_local, "inline": run_inline}[self.cluster]
        started = time.time()
        with StageReporter(plan, self.log) as reporter:
            undone = execute(plan, reporter, self.profile.environment)
        if undone:
            self.log.say(
                f"{count(len(undone), 'task')} not done. `simgap logs` tells why; when the cause "
                "is mended, the same command runs what is left."
            )
            return 1
        self.log.say(f"done in {clock(time.time() - started)}")
        self._tell_report()
        return 0

    def submit(self, todo: Mapping[str, Assessment], queue: RunQueue) -> int:
        """Submit it to Slurm and return; returns the exit status."""
        from hpc import slurm
        from hpc.submission import slurm_stages, submit_stages

        plan = self._plan(todo, slurm_stages(todo, self.profile, slurm.max_array_size()))
        submit_stages(plan, self.profile, queue, self.log.say)
        self.log.say("The queue does the rest. To follow it, see what failed, or end it:")
        run = shlex.quote(_short(self.layout.run))
        print(f"  simgap status {run} --watch\n  simgap logs {run}\n  simgap cancel {run}")
        return 0

    def write_scripts(self, todo: Mapping[str, Assessment]) -> int:
        """Write it as scripts; returns the exit status."""
        from hpc import slurm
        from hpc.scripts import write_scripts
        from hpc.submission import slurm_stages
        from pipeline.layout import shipped

        size = slurm.max_array_size() if slurm.is_here() else SLURMS_OWN_MAX_ARRAY_SIZE
        plan = self._plan(todo, slurm_stages(todo, self.profile, size))
        templates = shipped("slurm_templates", "local").parent
        scripts = write_scripts(plan, self.profile, templates, self.arguments.sbatch)
        print(f"{count(len(scripts) - 1, 'script')} written. To submit them:")
        print(f"  bash {shlex.quote(str(scripts[-1]))}")
        return 0

    def _nothing_to_run(self, assessed: Mapping[str, Assessment], queue: RunQueue) -> None:
        done = sum(item.state == "done" for item in assessed.values())
        run = self.layout.run
        if done == len(assessed):
            print(f"{run} is up to date: {count(done, 'task')} done, nothing to run")
            self._tell_report()
            return
        open_tasks = [name for name, item in assessed.items() if item.state != "done"]
        queued = sum(name in queue.tasks for name in open_tasks)
        told = [f"{count(done, 'task')} done"]
        told += [f"{queued} queued or running (jobs {', '.join(queue.ids)})"] if queued else []
        rest = len(open_tasks) - queued
        told += [f"{rest} not chosen"] if rest else []
        print(f"{run}: {', '.join(told)}, nothing to submit")

    def _tell_report(self) -> None:
        if self.arguments.until == "report":
            print(f"report: {self.layout.report}")
        elif self.experiment.training is None and self.arguments.until == "mask":
            run = shlex.quote(_short(self.layout.run))
            print("this study has no training: it ends at the masks. To use a split elsewhere:")
            print(f"  simgap export {run} {next(iter(self.experiment.splits))} --to list")

    def _plan(self, todo: Mapping[str, Assessment], stages: Sequence[StagePlan]) -> Plan:
        from hpc.plan import make_plan
        from hpc.worker import code_version
        from pipeline.experiment.load import to_values

        study = to_values(self.experiment)
        write_experiment(self.layout, study, self.source)
        return make_plan(
            todo,
            stages,
            run=self.layout.run,
            builder="pipeline.stages:build_stages",
            study=study,
            submitted={
                "command": self.arguments.command,
                "time": time.strftime("%Y-%m-%d %H:%M:%S"),
                "host": socket.gethostname(),
                "commit": code_version(),
                "cluster": self.cluster,
                "profile": self.profile.name,
            },
        )


def _local_stages(
    todo: Mapping[str, Assessment], profile: Profile, cluster: str
) -> list[StagePlan]:
    from hpc.plan import StagePlan, pack
    from hpc.room import this_machine
    from hpc.submission import by_stage

    room, plans = this_machine(), []
    for stage, names in by_stage(todo).items():
        resources = room.clamp(profile.resources(stage))
        at_once = 1 if cluster == "inline" else room.at_once(resources)
        elements = pack(names, at_once)
        plans.append(
            StagePlan(stage=stage, resources=resources, elements=elements, at_once=at_once)
        )
    return plans


def _without_training(arguments: argparse.Namespace) -> str:
    """The last stage of a study without training."""
    if arguments.split:
        raise ValueError("--split chooses what to train on, but this study has no training")
    if NAMES.index("mask") < NAMES.index(arguments.until) < len(NAMES) - 1:
        raise ValueError(f"--until {arguments.until}: this study has no training, it ends at mask")
    return min(arguments.until, "mask", key=NAMES.index)


def _only(experiment: Any, splits: Sequence[str]) -> Any:
    """The experiment with training on some splits only."""
    from pipeline.experiment.load import ExperimentError

    for name in splits:
        if name not in experiment.trained_splits:
            known = ", ".join(experiment.trained_splits)
            raise ExperimentError(f"--split {name}: not among the trained splits: {known}")
    training = experiment.training.model_copy(update={"splits": list(splits)})
    return experiment.model_copy(update={"training": training})


def write_experiment(layout: Any, values: Mapping[str, Any], source: Path) -> None:
    """Keep the resolved experiment in the run's folder."""
    import yaml

    from hpc.files import write_text

    text = yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)
    write_text(layout.experiment, f"# Resolved from {source}; written by each submission.\n{text}")


def _short(path: Path) -> str:
    """A path from here, if it lies below."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _plans(cluster: str, todo: Mapping[str, Assessment], profile: Profile) -> Sequence[StagePlan]:
    """The jobs of a dry run."""
    from hpc import slurm
    from hpc.submission import slurm_stages

    if cluster != "slurm":
        return _local_stages(todo, profile, cluster)
    try:
        size = slurm.max_array_size()
    except slurm.SlurmError:  # planned at a desk; on the login node Slurm is asked again
        size = SLURMS_OWN_MAX_ARRAY_SIZE
    return slurm_stages(todo, profile, size)


if __name__ == "__main__":
    sys.exit(main())
