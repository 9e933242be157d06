"""The contract between a study and the machines it runs on: stages, their tasks, their resources.

A study is a list of stages in order. Each stage lists its tasks without reading data, runs one task
at a time, and can check what a task left behind. Everything else (what is up to date, which tasks
share a job, where jobs run) is decided from these without knowing what the work is about.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable


@dataclass(frozen=True, kw_only=True, slots=True)
class Resources:
    """What one job of a stage asks for."""

    nodes: int = 1
    processes: int = 1
    """Processes on each node; more than one in all only for stages that can `follow`."""
    cpus: int = 1
    """Processor cores of each process; it computes with as many threads."""
    gpus: int = 0
    """On each node, shared by its processes."""
    memory_gb: float = 2.0
    """Memory on each node, in GB (10^9 bytes)."""
    minutes: int = 24 * 60
    """Wall time after which the job is ended."""

    @property
    def world(self) -> int:
        """Processes in all."""
        return self.nodes * self.processes


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """What decides a result: settings and inputs; not paths, resources or the cluster."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    """JSON values: the stage's own section as far as it touches this task, and the identity of raw
    source files."""
    inputs: tuple[str, ...] = ()
    """References to other tasks: `stage/task`, or `stage/task#part` for a part of its result."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """A unit of work: it is run whole, and is done or not done."""

    name: str
    """Unique in its stage; `/` makes folders."""
    recipe: Recipe
    outputs: tuple[Path, ...]
    """Files or folders that exist when the task is done."""
    parts: Mapping[str, Recipe] = field(default_factory=dict)
    """Parts of the result that depend on less than the whole: whoever uses only part `p` names
    `stage/task#p` as input and stays up to date when other parts change."""


class OutputError(Exception):
    """A task's output is missing or is not what the task wrote; the message says which and how."""


Counts = dict[str, Any]
"""What a task says of itself in its marker: JSON values."""

Rest = Callable[[], Counts]
"""The end of a task, such as writing its files: runs in a thread beside the job's next task."""

Progress = Callable[[int, int, str], None]
"""Called as `progress(done, total, unit)` while a task runs, as often as is convenient."""


def _nobody_follows() -> None:
    """A job of one process has no other to start."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    """What a running task is told about its surroundings."""

    digest: str
    inputs: Mapping[str, str]
    """Fingerprint of the content of each input."""
    resources: Resources
    progress: Progress
    upcoming: Task | None = None
    """The task that this job works on next, if it is not done by then; its inputs can be read
    ahead."""
    start_followers: Callable[[], None] = _nobody_follows
    """Starts `follow` of this task in the job's other processes; does nothing if there are none."""


class Stage(Protocol):
    """One step of a study. Implementations are frozen dataclasses of their section's values."""

    @property
    def name(self) -> str:
        """One word; also the name of its folders of markers and logs."""

    @property
    def version(self) -> int:
        """Raised when the same settings no longer give the same result."""

    def tasks(self) -> Sequence[Task]:
        """List the tasks. Cheap: file names, sizes and times may be looked at, data not."""

    def run(self, task: Task, context: Context) -> Counts | Rest:
        """Do the work and write the outputs atomically.

        Returns:
            Counts for the marker; or the rest of the work, which returns them.
        """

    def check(self, task: Task, digest: str) -> dict[str, str]:
        """Open the outputs and verify them.

        Returns:
            Fingerprints of the contents: the whole under `""`, and each part under its name.

        Raises:
            OutputError: an output is missing, damaged, or was made for another digest.
        """


@runtime_checkable
class DistributedStage(Stage, Protocol):
    """A stage whose task may be the work of several processes, on several nodes."""

    def follow(self, task: Task, context: Context) -> None:
        """Take part in a task that the job's first process `run`s; write no outputs."""


def reference(stage: str, task: str) -> str:
    """The name by which other tasks refer to a task."""
    return f"{stage}/{task}"


def digest_of(stage: str, version: int, recipe: Recipe, input_digests: Mapping[str, str]) -> str:
    """Hash everything that decides a result.

    Args:
        stage: the stage's name.
        version: the stage's version.
        recipe: settings and inputs.
        input_digests: today's digest of every reference in `recipe.inputs`.

    Returns:
        16 hexadecimal digits (64 bits of SHA-256).
    """
    decided_by = {
        "stage": stage,
        "version": version,
        "settings": recipe.settings,
        "inputs": [input_digests[name] for name in recipe.inputs],
    }
    canonical = json.dumps(decided_by, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
