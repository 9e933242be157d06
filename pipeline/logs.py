"""Why tasks failed, and how to run just them again.

python -m pipeline.logs experiments/mini.yaml
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpc.words import count
from pipeline.command_line import study_parser
from pipeline.stages import NAMES

if TYPE_CHECKING:
    from hpc.plan import Assessment
    from hpc.queued import RunQueue
    from hpc.triage import Failure, Group, Triage

_EPILOG = """\
examples:
  simgap logs experiments/mini.yaml
      what failed, grouped by cause, with the command that runs just that again
  simgap logs runs/mini --stage embed --lines 40
  simgap logs runs/mini --task embed/pool/00003
      one task whole: every attempt, and what its log says
  simgap logs runs/mini --follow train/pruned/seed-0
      what a task writes, as it writes it, across requeues

The exit status is 1 if anything (with --task or --follow: that task) failed, 0 if not.
"""
_LINES = 10
_TASKS_NAMED = 10
_TASKS_IN_COMMAND = 12


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = study_parser(
        "logs",
        "Show what failed in a study, grouped by cause: what to do about it, the tasks and shards "
        "it hit, the last lines, the log, and the command that runs just them again.",
        _EPILOG,
    )
    made.add_argument("--stage", choices=NAMES, metavar="STAGE", help="only failures of this stage")
    made.add_argument("--task", metavar="STAGE/TASK", help="one task: all its attempts and lines")
    made.add_argument(
        "--follow", metavar="STAGE/TASK", help="show what a task writes until it ends"
    )
    made.add_argument(
        "--lines",
        type=_number,
        metavar="N",
        help=f"how many lines of each log (default: {_LINES}; of one task, all)",
    )
    return made


def _number(word: str) -> int:
    if not word.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number, found {word!r}")
    return int(word)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    arguments = parser().parse_intermixed_args(argv)
    from pipeline.experiment.load import ExperimentError
    from pipeline.study import load_study

    try:
        view = View(load_study(arguments.study, arguments.overrides))
        if arguments.follow:
            return _follow(view, arguments)
        if arguments.task:
            name = _find(arguments.task, arguments.stage, view)
            failed = any(one.reference == name for one in view.triage.failures)
            return _tell(view.task(name, arguments.lines), failed=failed)
        lines = _LINES if arguments.lines is None else arguments.lines
        return _tell(view.failures(arguments.stage, lines), failed=view.any_failed(arguments.stage))
    except BrokenPipeError:  # `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ExperimentError, OSError, ValueError) as error:
        print(f"simgap logs: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _tell(lines: Iterable[str], failed: bool = False) -> int:
    for line in lines:
        print(line)
    sys.stdout.flush()
    return int(failed)


def _follow(view: View, arguments: argparse.Namespace) -> int:
    from pipeline.follow import follow

    return follow(view.run, _find(arguments.follow, arguments.stage, view), view.assess)


def _find(given: str, stage: str | None, view: View) -> str:
    """The `stage/task` that a user means; the stage may be left out where that is clear.

    Raises:
        ValueError: no task has this name, or several.
    """
    known = view.assessed
    found = [given] if given in known else []
    if not found:
        found = [name for name in known if name.partition("/")[2] == given]
        found = [name for name in found if stage in (None, name.partition("/")[0])]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"{given}: expected one task, found {', '.join(found)}")
    import difflib

    near = difflib.get_close_matches(given, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"they are named like {next(iter(known))}"
    raise ValueError(f"{given}: no task has this name; {hint}")


class View:
    """What is known of the failures of a study at one moment."""

    def __init__(self, experiment: Any) -> None:
        from pipeline.layout import Layout

        self._experiment = experiment
        self.run: Path = Layout(experiment.run).run
        # Before the ledger is read: a job that ends in between is not taken for lost.
        self.queue, self.trouble = ask_queue(self.run)
        self.assessed: Mapping[str, Assessment] = self.assess()

    @cached_property
    def triage(self) -> Triage:
        """What failed, and why."""
        from hpc.triage import triage

        return triage(self.run, self.assessed, self.queue)

    def assess(self) -> Mapping[str, Assessment]:
        """The state of every task now."""
        from hpc.ledger import Ledger
        from hpc.plan import assess
        from pipeline.stages import stages_of

        return assess(stages_of(self._experiment), Ledger(self.run))

    def any_failed(self, stage: str | None) -> bool:
        """Whether a task failed, in this stage or at all."""
        return any(stage in (None, one.stage) for one in self.triage.failures)

    # all failures

    def failures(self, stage: str | None, lines: int) -> Iterator[str]:
        """The failures of a stage or of all, grouped by cause."""
        from hpc.triage import group

        if self.trouble:
            yield from (_paint(self.trouble, "yellow"), "")
        chosen = [one for one in self.triage.failures if stage in (None, one.stage)]
        groups = group(chosen)
        if groups:
            tasks = count(len(chosen), "task")
            yield f"{self.run}: {tasks} failed, for {count(len(groups), 'reason')}"
        for one in groups:
            yield ""
            yield from self._group(one, lines)
        waiting = [one for one in self.triage.waiting if stage in (None, one.stage)]
        yield from [""] if waiting and groups else []
        for wait in waiting:
            verb = "waits" if wait.tasks == 1 else "wait"
            yield f"{wait.stage}: {count(wait.tasks, 'task')} {verb} for {', '.join(wait.on)}"
        if not groups:
            yield f"{self.run}: no failures; {self._counts(stage)}"

    def _counts(self, stage: str | None) -> str:
        names = [name for name, one in self.assessed.items() if stage in (None, one.stage)]
        done = sum(self.assessed[name].state == "done" for name in names)
        running = len(self.triage.running.intersection(names))
        queued = len(self.triage.active.intersection(names)) - running
        rest = len(names) - done - running - queued
        told = [f"{count(done, 'task')} done"]
        told += [f"{running:,} running"] if running else []
        told += [f"{queued:,} queued"] if queued else []
        words = "not done, queued or not" if self.trouble else "not submitted"
        return ", ".join(told + ([f"{rest:,} {words}"] if rest else []))

    def _group(self, group: Group, lines: int) -> Iterator[str]:
        example = group.failures[0]
        stages = [f"{count(n, 'task')} of {stage}" for stage, n in group.stages.items()]
        yield _paint(group.cause.title, "red")
        yield f"    hit: {', '.join(stages)}: {self._named(group.failures)}"
        if group.cause.advice:
            yield f"    advice: {group.cause.advice}"
        records = [*example.attempt.get("earlier", ()), example.attempt] if example.attempt else []
        if records:
            yield f"    attempts of {example.reference}:"
        for number, record in enumerate(records, start=1):
            words = _attempt(record, example) if record is records[-1] else _attempt(record)
            yield f"        {number}. {words}"
        told = example.lines()[-lines:] if lines else []
        if told:
            yield f"    last lines of {example.reference}:"
            yield from (f"      | {line}" for line in told)
        yield f"    log: {example.log or _no_log(example.attempt)}"
        if command := rerun_command(self.run, group.failures):
            yield f"    run them again: {_paint(command, 'bold')}"

    def _named(self, failures: Sequence[Failure]) -> str:
        names = [self._name(one) for one in failures[:_TASKS_NAMED]]
        more = len(failures) - len(names)
        return ", ".join(names) + (f" and {more:,} more" if more else "")

    def _name(self, failure: Failure) -> str:
        """The task, the shards that it is about, and whether its job came to it at all."""
        about = shards_of(failure.reference, self.assessed)
        if not failure.attempt:
            about.append("not begun")
        return failure.reference + (f" ({', '.join(about)})" if about else "")

    # one task

    def task(self, name: str, lines: int | None) -> Iterator[str]:
        """All that is known of one task, attempt by attempt."""
        from hpc.joblog import about, attempt_lines, log_of, without_repetition

        item = self.assessed[name]
        failure = next((one for one in self.triage.failures if one.reference == name), None)
        yield f"{name}: {self._state(name, failure)}"
        if shards := shards_of(name, self.assessed):
            yield f"    shards: {', '.join(shards)}"
        if failure and failure.cause.advice:
            yield f"    advice: {failure.cause.advice}"
        record = self._latest(item, failure)
        records = [*record.get("earlier", ()), record] if record else []
        for number, one in enumerate(records, start=1):
            yield ""
            words = _attempt(one, failure) if one is record else _attempt(one)
            yield _paint(f"attempt {number}: {words}", "bold")
            log = log_of(one, self.run)
            yield f"    log: {log or _no_log(one)}"
            told = attempt_lines(log, one.get("restart")) if log else []
            told = without_repetition(about(told, item.task.name) or told)
            told = told or str(one.get("traceback", "")).splitlines()
            yield from (f"  | {line}" for line in (told[-lines:] if lines else told))
        if failure and not record:
            yield f"    log: {failure.log or _no_log(record)}"
            yield from (f"  | {line}" for line in failure.lines()[-(lines or 0) :])
        if failure and (command := rerun_command(self.run, [failure])):
            yield from ("", f"run it again: {_paint(command, 'bold')}")

    def _latest(self, item: Assessment, failure: Failure | None) -> dict[str, Any]:
        """The record of the latest attempt: at work, failed, or the one that made the output."""
        from hpc.ledger import Ledger

        record = Ledger(self.run).attempt(item.stage, item.task.name)
        if record is not None:
            return record
        if item.marker is None or failure:
            return {}
        ends = item.marker.started + item.marker.seconds
        times = {"state": "done", "started": item.marker.started, "ended": ends}
        return {**item.marker.ran_on, **times}

    def _state(self, name: str, failure: Failure | None) -> str:
        item = self.assessed[name]
        if failure:
            return _paint(f"failed: {failure.cause.title}", "red")
        if name in self.triage.running:
            return "running"
        if name in self.triage.active:
            job = self.queue.tasks[name].job if self.queue and name in self.queue.tasks else None
            return f"in the queue as job {job.id}: {job.reason}" if job else "running"
        return item.state + (f" ({item.reason})" if item.reason else "")


def ask_queue(run: Path) -> tuple[RunQueue | None, str]:
    """The run's jobs in Slurm's queue; None if Slurm can't be asked, and then why that matters."""
    from hpc.queued import recorded_jobs, run_queue
    from hpc.slurm import SlurmError, is_here

    recorded = recorded_jobs(run)
    if not recorded and not is_here():
        return None, ""
    try:
        return run_queue(run), ""
    except SlurmError as error:
        told = "Slurm can't be asked, so jobs that ended without a word are not shown"
        return None, f"{told}: {error}" if recorded else ""


def shards_of(name: str, assessed: Mapping[str, Assessment]) -> list[str]:
    """The shards that a task is about: its own, or those of the only input that has some."""
    recipe = assessed[name].task.recipe
    own = recipe.settings.get("shards")
    inputs = {one.partition("#")[0] for one in recipe.inputs}
    found = [assessed[one].task.recipe.settings.get("shards") for one in inputs if one in assessed]
    lists = [own] if own else [shards for shards in found if shards]
    names = [str(shard[0]) for shard in lists[0]] if len(lists) == 1 else []
    return names if len(names) <= 3 else [f"{names[0]} to {names[-1]}"]


def _no_log(record: Mapping[str, Any]) -> str:
    return "none, it is what the submission printed" if record else "none, its job never started"


def _attempt(record: Mapping[str, Any], failure: Failure | None = None) -> str:
    """An attempt in words: how it ended, where, when, in which job.

    Args:
        record: of the attempt.
        failure: what is known of it beyond the record, if it is the last one.
    """
    state = record["state"]
    if failure and not record.get("traceback"):
        state = failure.cause.kind
    error = f": {record['error']}" if record.get("error") and not failure else ""
    job = f", job {record['job']}" if record.get("job") else ""
    return f"{state} on {record.get('host', '?')}, {_times(record)}{job}{error}"


def _times(record: Mapping[str, Any]) -> str:
    began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record["started"]))
    if "ended" not in record:
        return f"since {began}"
    return f"{began} to {time.strftime('%H:%M:%S', time.localtime(record['ended']))}"


# the command

_NOT_AGAIN = {"--sbatch": 1, "--task": 1, "--until": 1, "--dry-run": 0, "--verify": 0}
"""Options of the earlier command that the next one does without, and how many words they take."""


def rerun_command(run: Path, failures: Sequence[Failure]) -> str:
    """The command that runs just these tasks again; empty if no submission is known."""
    from hpc.plan import load_plan, plan_path

    plans = sorted((run / "plans").glob("*.json"))
    # Slurm's logs lie in a folder of their submission; local ones don't, and the latest counts.
    log = failures[0].log
    own = plan_path(run, log.parent.name) if log else None
    path = own if own and own.is_file() else plans[-1] if plans else None
    command = load_plan(path).submitted.get("command") if path else None
    if not command:
        return ""
    words = list(_kept(shlex.split(str(command))))
    if len(failures) > _TASKS_IN_COMMAND:
        last = max((one.stage for one in failures), key=NAMES.index)
        return shlex.join([*words, "--until", last])
    return shlex.join([*words, *(word for one in failures for word in ("--task", one.reference))])


def _kept(words: Sequence[str]) -> Iterator[str]:
    skip = 0
    for word in words:
        option, equals, _ = word.partition("=")
        # argparse takes `--unt` for --until.
        full = next((o for o in _NOT_AGAIN if len(option) > 2 and o.startswith(option)), None)
        if skip:
            skip -= 1
        elif full:
            skip = 0 if equals else _NOT_AGAIN[full]
        else:
            yield word


# words

_COLOURS = {"red": "31", "yellow": "33", "bold": "1"}


def _paint(text: str, colour: str) -> str:
    """Text in a colour, on a terminal only."""
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return text
    return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m"


if __name__ == "__main__":
    sys.exit(main())
