"""From stages and what is done to what has to run: pure functions, and the immutable plan file.

assess    each task: done, or why not
pack      the tasks of a stage that have to run -> elements, one job each
make_plan all of it, written once as JSON; jobs read the plan and nothing else
"""

from __future__ import annotations

import importlib
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from hpc.files import read_json, write_json
from hpc.ledger import Ledger, Marker
from hpc.stage import OutputError, Recipe, Resources, Stage, Task, digest_of, reference

DONE = "done"
MISSING = "missing"
STALE = "stale"
DAMAGED = "damaged"
AGAIN = "again"


@dataclass(frozen=True, kw_only=True)
class Assessment:
    """What is known of a task before anything runs."""

    stage: str
    task: Task
    digest: str
    input_digests: Mapping[str, str]
    parts: Mapping[str, str]
    """Digest of each part."""
    state: str
    """done, missing (never ran), stale (ran with another digest), damaged (outputs changed or gone)
    or again (an input is made again, or has other content than the one that was used)."""
    reason: str
    """Why it has to run, in words; empty when done."""
    marker: Marker | None = None

    @property
    def reference(self) -> str:
        """`stage/task`."""
        return reference(self.stage, self.task.name)

    @property
    def producers(self) -> list[str]:
        """The tasks that make what it needs, as `stage/task`."""
        return [name.partition("#")[0] for name in self.task.recipe.inputs]


def assess(
    stages: Sequence[Stage], ledger: Ledger, *, thorough: bool = False
) -> dict[str, Assessment]:
    """Judge every task of a study.

    A task whose own recipe is unchanged runs again if an input has to be *made again* (missing or
    damaged). It does not if an input is merely stale in parts that the task does not use.

    Args:
        stages: in order; a task may only use tasks of stages before it.
        ledger: the run's markers.
        thorough: read every output even if its size and time have not changed.

    Returns:
        Assessments by `stage/task`, in order.
    """
    assessed: dict[str, Assessment] = {}
    digests: dict[str, str] = {}
    for stage in stages:
        for task in stage.tasks():
            assessment = _assess_task(stage, task, ledger, assessed, digests, thorough)
            assessed[assessment.reference] = assessment
            digests[assessment.reference] = assessment.digest
            for part, digest in assessment.parts.items():
                digests[f"{assessment.reference}#{part}"] = digest
    return assessed


def _assess_task(
    stage: Stage,
    task: Task,
    ledger: Ledger,
    assessed: Mapping[str, Assessment],
    digests: Mapping[str, str],
    thorough: bool,
) -> Assessment:
    def digest(recipe: Recipe) -> str:
        return digest_of(stage.name, stage.version, recipe, digests)

    today = digest(task.recipe)
    inputs = {name: digests[name] for name in task.recipe.inputs}
    marker = ledger.marker(stage.name, task.name, today)
    state, reason = DONE, ""
    if marker is None:
        before = ledger.markers(stage.name, task.name)
        state, reason = (
            (STALE, _difference(before[0], task.recipe.settings, inputs))
            if before
            else (MISSING, "not yet run")
        )
    else:
        try:
            ledger.verify(stage, task, marker, thorough=thorough)
        except OutputError as error:
            state, reason = DAMAGED, str(error)
        else:
            if again := _made_again(task.recipe.inputs, assessed):
                state, reason = AGAIN, f"its input {again} is made again"
            elif other := _other_content(marker, assessed):
                state, reason = AGAIN, f"its input {other} was made again and came out different"
    return Assessment(
        stage=stage.name,
        task=task,
        digest=today,
        input_digests=inputs,
        parts={part: digest(recipe) for part, recipe in task.parts.items()},
        state=state,
        reason=reason,
        marker=marker,
    )


def _made_again(inputs: Sequence[str], assessed: Mapping[str, Assessment]) -> str | None:
    for name in inputs:
        producer = name.partition("#")[0]
        if assessed[producer].state in (MISSING, DAMAGED, AGAIN):
            return producer
    return None


def _other_content(marker: Marker, assessed: Mapping[str, Assessment]) -> str | None:
    for name, used in marker.input_fingerprints.items():
        producer, _, part = name.partition("#")
        made = assessed[producer].marker
        if made is not None and made.fingerprints.get(part) != used:
            return producer
    return None


def _difference(before: Marker, settings: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """Say in words what changed since a marker was written."""
    words = [
        f"{path}: {old} -> {new}" for path, old, new in _changes("", before.settings, settings)
    ]
    old_inputs, new_inputs = set(before.inputs), set(inputs)
    words += [f"no longer uses {name}" for name in sorted(old_inputs - new_inputs)]
    words += [f"now uses {name}" for name in sorted(new_inputs - old_inputs)]
    changed = [name for name in inputs if before.inputs.get(name, inputs[name]) != inputs[name]]
    if changed:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        words.append(f"input {changed[0]}{more} changed")
    return "; ".join(words) or "the stage's version changed"


def _changes(path: str, old: Any, new: Any) -> list[tuple[str, Any, Any]]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return [
            change
            for key in sorted(old.keys() | new.keys())
            for change in _changes(f"{path}.{key}".lstrip("."), old.get(key), new.get(key))
        ]
    return [] if old == new else [(path, _short(old), _short(new))]


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 40 else text[:37] + "..."


def pack(tasks: Sequence[str], elements: int) -> list[list[str]]:
    """Deal tasks into at most `elements` runs of neighbours, as even as can be."""
    elements = min(elements, len(tasks))
    bounds = [len(tasks) * index // elements for index in range(elements + 1)] if elements else []
    return [list(tasks[low:high]) for low, high in pairwise(bounds)]


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """What has to run of one stage."""

    stage: str
    resources: Resources
    elements: list[list[str]]
    """Names of tasks; each element is one job."""
    at_once: int
    """How many elements may run at the same time."""
    max_requeues: int = 0
    """On Slurm: how often a job may be put back into the queue before its task has failed."""
    signal_seconds: int = 0
    """On Slurm: how long before its time limit a job is told to stop."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One submission. Written once, never changed; a job needs nothing else."""

    submission: str
    run: Path
    builder: str
    """`module:function` that makes the stages from `study`."""
    study: Mapping[str, Any]
    """The resolved experiment."""
    stages: list[StagePlan]
    tasks: Mapping[str, Mapping[str, Any]]
    """Every task that has to run: digest, settings, inputs, outputs, parts, reason."""
    submitted: Mapping[str, Any] = field(default_factory=dict)
    """Command, time, host and code version."""

    @property
    def path(self) -> Path:
        """Where the plan lies."""
        return plan_path(self.run, self.submission)

    def build_stages(self) -> list[Stage]:
        """Make the study's stages."""
        module, _, function = self.builder.partition(":")
        stages: list[Stage] = getattr(importlib.import_module(module), function)(self.study)
        return stages

    def task(self, name: str) -> tuple[Task, Mapping[str, Any]]:
        """A task, and its entry in the plan, by its `stage/task`."""
        entry = self.tasks[name]
        recipe = Recipe(settings=entry["settings"], inputs=tuple(entry["inputs"]))
        outputs = tuple(self.run / output for output in entry["outputs"])
        return Task(name=name.partition("/")[2], recipe=recipe, outputs=outputs), entry


def make_plan(
    assessed: Mapping[str, Assessment],
    stages: Sequence[StagePlan],
    *,
    run: Path,
    builder: str,
    study: Mapping[str, Any],
    submitted: Mapping[str, Any],
) -> Plan:
    """Make the plan of one submission and write it."""
    plan = Plan(
        submission=f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(4)}",
        run=run,
        builder=builder,
        study=study,
        stages=list(stages),
        tasks={name: _entry(item, run) for name, item in assessed.items() if item.state != DONE},
        submitted=submitted,
    )
    write_json(plan.path, {**asdict(plan), "run": str(run)})
    return plan


def _entry(item: Assessment, run: Path) -> dict[str, Any]:
    return {
        "digest": item.digest,
        "settings": item.task.recipe.settings,
        "inputs": dict(item.input_digests),
        "outputs": [str(output.relative_to(run)) for output in item.task.outputs],
        "parts": dict(item.parts),
        "reason": item.reason,
    }


def plan_path(run: Path, submission: str) -> Path:
    """Where the plan of a submission lies."""
    return run / "plans" / f"{submission}.json"


def load_plan(path: Path) -> Plan:
    """Read a plan."""
    values = read_json(path)
    stages = [
        StagePlan(**{**stage, "resources": Resources(**stage["resources"])})
        for stage in values.pop("stages")
    ]
    return Plan(**{**values, "run": Path(values["run"]), "stages": stages})
