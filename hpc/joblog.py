"""A job's log: the attempts that it holds, and the lines of one task in them.

Jobs append to their log, so that the output of every attempt stays. On Slurm each attempt begins
with a line `===== attempt 2 (restart 1) of job 12_3 on node1, 2026-11-21 09:00:00 =====`, and each
task in it with `2026-11-21 09:00:01 pool/00007: starts (not yet run)`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_ATTEMPT = re.compile(r"===== attempt \d+ \(restart (\d+)\) of job \S+ on \S+, .+ =====$")
_BEGINS = re.compile(
    r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d (\S+): (?:starts \(|kept, |process \S+ on \S+ works on it)"
)
# submitit tells which pickle it loads, and repeats as an error what the worker has told already;
# srun that the worker's exit status was not 0.
_CHATTER = re.compile(r"submitit (INFO|WARNING) |srun: error: .*: Exited with exit code \d+$")
_REPEATED = (re.compile(r"submitit ERROR "), re.compile(r"(hpc\.worker\.)?TasksFailed: "))
_MOST_BYTES = 8 * 2**20


@dataclass
class Attempt:
    """What a job wrote between its start and its end."""

    restart: int | None
    """How often the job had been requeued; None for what precedes the first attempt's heading."""
    lines: list[str] = field(default_factory=list)


class TaskLines:
    """Tells which lines of a log are about a task, one line after the other."""

    def __init__(self, task: str) -> None:
        self._task = task
        self._inside = False

    def takes(self, line: str) -> bool:
        """Whether the next line of the log belongs to the task."""
        if _ATTEMPT.match(line):
            self._inside = False
        elif found := _BEGINS.match(line):
            self._inside = found[1] == self._task
        return self._inside and not _CHATTER.match(line)


def is_heading(line: str) -> bool:
    """Whether a line of a log is where an attempt begins."""
    return bool(_ATTEMPT.match(line))


def attempts(log: Path) -> list[Attempt]:
    """The attempts in a log, oldest first; of a huge log only the last 8 MiB are looked at.

    Raises:
        OSError: the log can't be read.
    """
    found = [Attempt(None)]
    for line in _last_lines(log):
        if heading := _ATTEMPT.match(line):
            found.append(Attempt(int(heading[1])))
        else:
            found[-1].lines.append(line)
    return found if found[0].lines else found[1:]


def _last_lines(log: Path) -> list[str]:
    with log.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _MOST_BYTES))
        return file.read().decode(errors="replace").splitlines()


def attempt_lines(log: Path, restart: int | None) -> list[str]:
    """What one attempt wrote.

    Args:
        log: the job's log; one that can't be read is empty.
        restart: of the attempt; None for the last one.

    Returns:
        Its lines; without any heading in the log (a job on this machine), all there are.
    """
    try:
        found = attempts(log)
    except OSError:
        return []
    if restart is not None and any(one.restart is not None for one in found):
        return [line for one in found if one.restart == restart for line in one.lines]
    return found[-1].lines if found else []


def last_restart(log: Path) -> int | None:
    """The restart of the last attempt in a log, if there is a heading."""
    try:
        return next(
            (one.restart for one in reversed(attempts(log)) if one.restart is not None), None
        )
    except OSError:
        return None


def about(lines: Iterable[str], task: str) -> list[str]:
    """The lines that are about a task, and all that follow until another begins."""
    of_task = TaskLines(task)
    return [line for line in lines if of_task.takes(line)]


def without_repetition(lines: Sequence[str]) -> list[str]:
    """Lines without submitit's own traceback of what the worker has told before."""
    first, last = _REPEATED
    start = next((at for at, line in enumerate(lines) if first.match(line)), len(lines))
    end = next((at for at in range(start, len(lines)) if last.match(lines[at])), None)
    return [*lines[:start], *lines[end + 1 :]] if end is not None else list(lines)


def last_traceback(lines: Sequence[str]) -> tuple[str, str] | None:
    """The last traceback in a log: the line of its error, and the whole."""
    starts = [at for at, line in enumerate(lines) if line.endswith("(most recent call last):")]
    if not starts:
        return None
    block = [lines[starts[-1]]]
    for line in lines[starts[-1] + 1 :]:
        block.append(line)
        if line and not line[0].isspace():
            return line, "\n".join(block)
    return None


def log_of(record: Mapping[str, Any], run: Path) -> Path | None:
    """The log that an attempt's record names: of the process that failed, where the run is now."""
    if not record.get("log"):
        return None
    path = Path(record["log"])
    if record.get("rank"):
        path = of_rank(path, record["rank"])
    if not path.exists() and "logs" in path.parts:  # the run's folder was moved
        at = len(path.parts) - 1 - path.parts[::-1].index("logs")
        moved = run.joinpath(*path.parts[at:])
        return moved if moved.exists() else path
    return path


def of_rank(log: Path, rank: int) -> Path:
    """The log of another process of the same job."""
    return log.with_name(re.sub(r"_\d+_log\.out$", f"_{rank}_log.out", log.name))


def of_all_ranks(log: Path) -> list[Path]:
    """The logs of a job's processes, the given one first."""
    job = re.sub(r"_\d+_log\.out$", "", log.name)
    found = re.compile(re.escape(job) + r"_\d+_log\.out")
    others = log.parent.iterdir() if log.parent.is_dir() else ()
    return [log, *sorted(one for one in others if one != log and found.fullmatch(one.name))]
