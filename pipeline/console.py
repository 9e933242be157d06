"""What submissions show: a live view on a terminal, plain lines elsewhere and in the run's log."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpc.ledger import Ledger
from hpc.plan import Plan, StagePlan
from hpc.status import StageStatus, watch
from hpc.words import clock, count

if TYPE_CHECKING:
    from rich.progress import Progress

_SECONDS_BETWEEN_LINES = 30


class Log:
    """Prints lines to the terminal and appends them, with the time, to a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def say(self, line: str) -> None:
        """Print a line and keep it."""
        self.keep(line)
        try:
            print(line, flush=True)
        except BrokenPipeError:  # `| head`: who looks is gone, the work goes on
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def keep(self, line: str) -> None:
        """Append a line to the file only."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(f"{stamp} {part}\n" for part in line.split("\n"))


class StageReporter:
    """Follows the stages of a plan (`hpc.executors.Reporter`)."""

    def __init__(self, plan: Plan, log: Log) -> None:
        self._plan, self._log = plan, log
        self._ledger = Ledger(plan.run)
        self._live: Progress | None = _live_view() if sys.stdout.isatty() else None
        self._started = self._looked = self._said = 0.0
        self._digests: dict[str, str] = {}
        self._bar: Any = None

    def __enter__(self) -> StageReporter:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        if self._live:
            self._live.stop()

    def stage_starts(self, stage: StagePlan, tasks: Sequence[str]) -> None:
        """Show the stage."""
        self._started = self._said = time.time()
        self._finished: dict[str, float] = {}
        entries = self._plan.tasks
        self._digests = {task: entries[f"{stage.stage}/{task}"]["digest"] for task in tasks}
        at_once = min(stage.at_once, len(stage.elements))
        jobs = f"{count(len(stage.elements), 'job')}, {at_once} at once"
        line = f"{stage.stage}: {count(len(tasks), 'task')} in {jobs}"
        self._log.keep(line)
        if self._live:
            self._bar = self._live.add_task(stage.stage, total=len(tasks), words="")
        else:
            print(line, flush=True)

    def poll(self, stage: StagePlan) -> None:
        """Show how far the stage is, at most once a second."""
        now = time.time()
        if now - self._looked < 1:
            return
        self._looked = now
        status = watch(stage.stage, self._digests, self._ledger, self._started, self._finished)
        words = _in_words(status, now, stage.at_once)
        if self._live:
            completed = status.fraction * status.total
            self._live.update(self._bar, completed=completed, words=words)
        if now - self._said >= _SECONDS_BETWEEN_LINES:
            self._said = now
            line = f"{stage.stage}: {status.done} of {status.total} tasks, {words}"
            self._log.keep(line)
            if not self._live:
                print(line, flush=True)

    def stage_ends(self, stage: StagePlan, failed: Sequence[str], blocked: Sequence[str]) -> None:
        """Show how the stage ended."""
        done = len(self._digests) - len(failed) - len(blocked)
        faults = [f"{len(failed)} FAILED"] if failed else []
        faults += [f"{len(blocked)} not started, an input failed"] if blocked else []
        seconds = time.time() - self._started
        summary = f"{done} of {len(self._digests)} tasks done in {clock(seconds)}"
        line = f"{stage.stage}: {', '.join([summary, *faults])}"
        self._log.keep(line)
        if self._live:
            self._live.update(self._bar, completed=done, words=", ".join(faults))
        else:
            print(line, flush=True)
        for name in failed:
            self._tell_failure(stage.stage, name)

    def _tell_failure(self, stage: str, name: str) -> None:
        attempt = self._ledger.attempt(stage, name) or {}
        error = attempt.get("error", "its job ended without a word (killed, or out of memory?)")
        lines = f"  {stage} {name}: {error}\n    log: {attempt.get('log') or 'in this output'}"
        self._log.keep(lines)
        if self._live:
            self._live.console.print(lines, style="red", markup=False, highlight=False)
        else:
            print(lines, flush=True)


def _live_view() -> Progress:
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    return Progress(
        TextColumn("{task.description:<10}"),
        BarColumn(bar_width=24),
        TextColumn("{task.completed:>3.0f}/{task.total:.0f}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[words]}", markup=False),
    )


def _in_words(status: StageStatus, now: float, at_once: int) -> str:
    words = [f"{len(status.running)} running"]
    if rate := status.rate(now):
        words.append(rate)
    left = status.seconds_left(now, at_once)
    if left:
        words.append(f"{clock(left)} left")
    if status.failed:
        words.append(f"{len(status.failed)} FAILED")
    return ", ".join(words)
