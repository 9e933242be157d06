"""What a task writes, as it writes it: `simgap logs --follow`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpc import slurm
from hpc.joblog import TaskLines, is_heading, log_of
from hpc.ledger import Ledger
from hpc.plan import DONE, Assessment
from hpc.queued import RunQueue, run_queue

_SECONDS_BETWEEN_LOOKS = 1.0
_SECONDS_BETWEEN_QUESTIONS = 10.0
"""Slurm is asked less often: it has many users."""


def follow(run: Path, name: str, assess: Callable[[], Mapping[str, Assessment]]) -> int:
    """Print what a task writes, from its last attempt on, until it is done or failed.

    Args:
        run: the run's folder.
        name: `stage/task`.
        assess: judges every task as it is now.

    Returns:
        0 if the task is done, 1 if it failed, or nobody will do it.
    """
    item = assess()[name]
    follower = _Follower(run, item, Ledger(run))
    if item.state == DONE and item.marker is not None:
        follower.show(item.marker.ran_on)
        print(f"{name}: done", flush=True)
        return 0
    while (ended := follower.step()) is None:
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    if ended == "idle":
        return _tell_end(name, assess()[name])
    return int(ended == "failed")


def _tell_end(name: str, item: Assessment) -> int:
    if item.state == DONE:
        print(f"{name}: done", flush=True)
        return 0
    reason = item.reason or item.state
    print(f"{name}: nobody works on it and it is not in the queue ({reason})", flush=True)
    return 1


@dataclass
class _Follower:
    run: Path
    item: Assessment
    ledger: Ledger
    tail: Tail | None = None
    told: str = ""
    """The last message about the queue."""
    asked: float = 0.0
    misses: int = 0
    """How often in a row neither the queue nor a lock knew of the task."""
    before: Mapping[str, Any] = field(default_factory=dict)
    """The attempt as it was last seen."""

    def step(self) -> str | None:
        """Look once; returns `done`, `failed`, or `idle` when there is nothing more to see."""
        record = self._record()
        self.show(record or self.before)
        if record is None and self.before and self._is_made():
            self._say("done")
            return "done"
        if record and record["state"] == "failed":
            self._say(f"failed: {record.get('error', '')}")
            return "failed"
        if record and record != self.before:
            self.misses = 0
        self.before = record or self.before
        return self._look_around(record)

    def show(self, record: Mapping[str, Any]) -> None:
        """Print the lines that an attempt has written since the last look."""
        log = log_of(record, self.run)
        if log and (self.tail is None or self.tail.path != log):
            self.tail = Tail(log, self.item.task.name)
        for line in self.tail.read() if self.tail else ():
            print(line, flush=True)
            self.told = ""  # what it waits for is worth saying again after this

    def _record(self) -> dict[str, Any] | None:
        record = self.ledger.attempt(self.item.stage, self.item.task.name)
        return record if record and record.get("digest") == self.item.digest else None

    def _is_made(self) -> bool:
        marker = self.ledger.marker(self.item.stage, self.item.task.name, self.item.digest)
        return marker is not None and marker.started >= self.before["started"]

    def _look_around(self, record: Mapping[str, Any] | None) -> str | None:
        """Now and then, see that somebody still has the task in hand."""
        if time.monotonic() - self.asked < _SECONDS_BETWEEN_QUESTIONS and self.asked:
            return None
        self.asked = time.monotonic()
        try:
            queue = run_queue(self.run) if slurm.is_here() else None
        except slurm.SlurmError as error:
            self._say(f"Slurm can't be asked: {error}")
            return None
        if self._in_hand(record, queue):
            self.misses = 0
            return None
        self.misses += 1  # a task may have ended between the look at its record and this one
        if self.misses == 1:
            self.asked = time.monotonic() - _SECONDS_BETWEEN_QUESTIONS + _SECONDS_BETWEEN_LOOKS
            return None
        if record is None:
            return "idle"
        self._say("failed: its job is gone; `simgap logs` tells why")
        return "failed"

    def _in_hand(self, record: Mapping[str, Any] | None, queue: RunQueue | None) -> bool:
        waits = queue.tasks.get(self.item.reference) if queue else None
        if waits is not None:
            job = waits.job
            if job.is_pending:
                self._say(f"waits in the queue as job {job.id}: {why(job, queue)}")
            elif record is None or record["state"] != "running":
                self._say(f"job {job.id} runs on {job.nodes} and has not come to it yet")
            return True
        if record and record.get("cluster") == "slurm" and queue is None:
            return True  # from here, Slurm can't be asked
        return self.ledger.is_locked(self.item.stage, self.item.task.name)

    def _say(self, words: str) -> None:
        if words != self.told:
            print(f"{self.item.reference}: {words}", flush=True)
        self.told = words


def why(job: slurm.Job, queue: RunQueue | None) -> str:
    """Why a job waits: Slurm's word, and the stages that it waits for."""
    arrays = [one.partition("_")[0] for one in job.waits_for]
    tasks = [name for array in arrays for name in (queue.arrays.get(array, ()) if queue else ())]
    stages = dict.fromkeys(name.partition("/")[0] for name in tasks)
    return job.reason + (f" on {', '.join(stages)}" if stages else "")


class Tail:
    """Reads what is added to a log, a whole line at a time, as far as it is about one task."""

    def __init__(self, path: Path, task: str) -> None:
        self.path = path
        self._task = task
        self._offset = 0
        self._lines: TaskLines | None = None

    def read(self) -> list[str]:
        """The lines that were added; at first, all of the last attempt."""
        added = self._added()
        if self._lines is None:
            self._lines = TaskLines(self._task)
            starts = [at for at, line in enumerate(added) if is_heading(line)]
            added = added[starts[-1] :] if starts else added
        return [line for line in added if self._lines.takes(line)]

    def _added(self) -> list[str]:
        try:
            with self.path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except OSError:
            return []  # a job that has just started may have no log yet
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        return whole.decode(errors="replace").splitlines()
