"""Run a study: whatever of it is missing or stale, and nothing else.

python -m pipeline.submit experiments/mini.yaml
"""

from __future__ import annotations

import argparse
import fcntl
import os
import shlex
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.stages import NAMES

CLUSTERS = ("local", "inline")
_EPILOG = """\
examples:
  simgap submit experiments/mini.yaml
      run the whole study on this machine, as many jobs side by side as it has room for
  simgap submit experiments/mini.yaml --dry-run
      what would run, what is up to date, and why the rest is not
  simgap submit experiments/mini.yaml training.epochs=8 training.seeds='[0, 1, 2]'
      change settings for this submission; only what depends on them runs again
  simgap submit experiments/mini.yaml --until mask
      thresholds, similarities and masks, but no training

The same command again is the resume: it runs what is missing or stale. Everything is in
runs/<name>/: experiment.yaml, the numbered folders of results, done/ with a marker for each
finished task, logs/ with the output of every job.
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="simgap submit",
        description="Run a study: embed, thresholds, similarities, masks, subsets, training, "
        "evaluation, report. Runs whatever is missing or stale, and nothing else.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("experiment", help="experiment YAML, or the name of a shipped one (mini)")
    made.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="change a setting; YAML values"
    )
    made.add_argument(
        "--cluster",
        choices=CLUSTERS,
        default="local",
        help="local: jobs on this machine (default); inline: in this process, for debugging",
    )
    made.add_argument(
        "--profile",
        default="local",
        help="site profile, a YAML file or the name of a shipped one: resources for each stage",
    )
    made.add_argument("--until", choices=NAMES, metavar="STAGE", help=f"stop after: {_listed()}")
    made.add_argument(
        "--split",
        action="append",
        metavar="NAME",
        help="train and evaluate only on this split (may be repeated); no report",
    )
    made.add_argument("--dry-run", action="store_true", help="say what would run and why")
    made.add_argument(
        "--verify",
        action="store_true",
        help="read every output again and compare it with its hash; without this, only outputs "
        "whose size or time has changed",
    )
    return made


def _listed() -> str:
    return ", ".join(NAMES)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    arguments = parser().parse_intermixed_args(words)
    arguments.command = shlex.join(["simgap", "submit", *words])
    from hpc.profile import ProfileError
    from pipeline.experiment import ExperimentError

    try:
        signal.signal(signal.SIGTERM, _interrupt)
        return _submit(arguments)
    except (ExperimentError, ProfileError, RunIsBusy, OSError, ValueError) as error:
        print(f"simgap submit: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted: jobs ended; the same command goes on from here", file=sys.stderr)
        return 130


def _interrupt(number: int, frame: object) -> None:
    """End as by Ctrl-C: the jobs end too."""
    raise KeyboardInterrupt


class RunIsBusy(Exception):
    """Another submission drives the run."""


def _submit(arguments: argparse.Namespace) -> int:
    from hpc.ledger import Ledger
    from hpc.plan import assess
    from hpc.profile import load_profile
    from pipeline.console import Log
    from pipeline.experiment import load_experiment, to_values
    from pipeline.layout import Layout, find
    from pipeline.stages import stages_of

    path = find("experiments", arguments.experiment)
    experiment = load_experiment(path, arguments.overrides)
    profile = load_profile(find("slurm_templates", arguments.profile), NAMES)
    until = arguments.until or NAMES[-1]
    if arguments.split:
        experiment = _only(experiment, arguments.split)
        until = min(until, "evaluate", key=NAMES.index)
    stages = stages_of(experiment)[: NAMES.index(until) + 1]
    layout = Layout(experiment.run)
    ledger = Ledger(layout.run)
    if arguments.dry_run:
        assessed = assess(stages, ledger, thorough=arguments.verify)
        _explain(assessed, layout)
        return 0
    with _alone(layout.run):
        assessed = assess(stages, ledger, thorough=arguments.verify)
        todo = [item for item in assessed.values() if item.state != "done"]
        if not todo:
            print(f"{layout.run} is up to date: {len(assessed)} tasks done, nothing to run")
            _tell_report(layout, until)
            return 0
        study = to_values(experiment)
        write_experiment(layout, study, path)
        return _run(arguments, assessed, study, layout, profile, until, Log(layout.log))


def _only(experiment: Any, splits: Sequence[str]) -> Any:
    """The experiment with training on some splits only."""
    from pipeline.experiment import ExperimentError

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


@contextmanager
def _alone(run: Path) -> Iterator[None]:
    """Hold the run's lock, so that two local submissions don't start the same tasks."""
    run.mkdir(parents=True, exist_ok=True)
    path = run / ".submission"
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise RunIsBusy(
                f"another submission works on {run}: {file.read().strip()}; wait for it, look at "
                "it with `simgap status`, or end it"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {time.ctime()}")
        file.flush()
        yield


def _run(
    arguments: argparse.Namespace,
    assessed: Mapping[str, Any],
    study: Mapping[str, Any],
    layout: Any,
    profile: Any,
    until: str,
    log: Any,
) -> int:
    from hpc.executors import run_inline, run_local
    from hpc.plan import make_plan
    from hpc.worker import code_version
    from pipeline.console import StageReporter

    plan = make_plan(
        assessed,
        _stage_plans(assessed, profile, arguments.cluster),
        run=layout.run,
        builder="pipeline.stages:build_stages",
        study=study,
        submitted={
            "command": arguments.command,
            "time": time.strftime("%Y-%m-%d %H:%M:%S"),
            "host": socket.gethostname(),
            "commit": code_version(),
            "cluster": arguments.cluster,
            "profile": profile.name,
        },
    )
    done = len(assessed) - len(plan.tasks)
    log.say(f"{layout.run}: {len(plan.tasks)} tasks to run, {done} up to date")
    execute = {"local": run_local, "inline": run_inline}[arguments.cluster]
    started = time.time()
    with StageReporter(plan, log) as reporter:
        undone = execute(plan, reporter, profile.environment)
    if undone:
        log.say(
            f"{len(undone)} tasks are not done. Full tracebacks are in the logs named above; when "
            "the cause is mended, the same command runs what is left."
        )
        return 1
    from hpc.status import clock

    log.say(f"done in {clock(time.time() - started)}")
    _tell_report(layout, until)
    return 0


def _tell_report(layout: Any, until: str) -> None:
    if until == "report":
        print(f"report: {layout.report}")


def _stage_plans(assessed: Mapping[str, Any], profile: Any, cluster: str) -> list[Any]:
    from hpc.executors import this_machine
    from hpc.plan import StagePlan, pack

    room, plans = this_machine(), []
    for stage in NAMES:
        items = [item for item in assessed.values() if item.stage == stage]
        names = [item.task.name for item in items if item.state != "done"]
        if not names:
            continue
        resources = room.clamp(profile.resources(stage))
        at_once = 1 if cluster == "inline" else room.at_once(resources)
        plans.append(
            StagePlan(
                stage=stage,
                resources=resources,
                elements=pack(names, at_once),
                at_once=at_once,
            )
        )
    return plans


def _explain(assessed: Mapping[str, Any], layout: Any) -> None:
    """Print what would run, stage by stage, with reasons."""
    from collections import Counter

    todo = [item for item in assessed.values() if item.state != "done"]
    print(f"{layout.run}: {len(todo)} tasks would run, {len(assessed) - len(todo)} are up to date")
    for stage in dict.fromkeys(item.stage for item in assessed.values()):
        items = [item for item in assessed.values() if item.stage == stage]
        reasons = Counter((item.state, item.reason) for item in items if item.state != "done")
        done = sum(item.state == "done" for item in items)
        print(f"{stage:<10} {len(items) - done:>6} to run {done:>6} up to date")
        for (state, reason), count in reasons.most_common(10):
            example = next(i.task.name for i in items if (i.state, i.reason) == (state, reason))
            others = f" and {count - 1} more" if count > 1 else ""
            print(f"    {state}: {example}{others}: {reason}")
        if len(reasons) > 10:
            print(f"    and {len(reasons) - 10} other reasons")


if __name__ == "__main__":
    sys.exit(main())
