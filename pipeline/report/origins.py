"""Where the numbers come from: commands, versions, machines, digests, hours."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from hpc.files import read_json
from hpc.ledger import Ledger, Marker
from hpc.status import StageStatus, count_hours
from hpc.worker import code_version
from pipeline.artifacts import fingerprint
from pipeline.layout import Layout
from pipeline.report.svg import Value

COLUMNS = ("stage", "task", "digest", "started", "seconds", "cpus", "gpus", "host", "job", "commit")
"""Of the list of all tasks."""


_PACKAGES = (
    "simgap",
    "torch",
    "open_clip_torch",
    "numpy",
    "scikit-learn",
    "matplotlib",
    "submitit",
)


@dataclass(frozen=True)
class StageOrigin:
    """What one stage took, and the digests of what it made."""

    stage: str
    tasks: int
    core_hours: float
    """Of all attempts that ended, also of failed ones that were followed by a finished one."""
    gpu_hours: float
    commits: tuple[str, ...]
    hosts: int
    digest: str
    """Of all its tasks' digests."""


@dataclass(frozen=True)
class Origins:
    """What a run's markers and plans tell."""

    stages: tuple[StageOrigin, ...]
    commands: tuple[str, ...]
    """Each with the time of its first submission."""
    tasks: Sequence[tuple[Value, ...]]
    """In the columns COLUMNS."""

    @property
    def gpu_hours(self) -> float:
        """Of all stages."""
        return sum(stage.gpu_hours for stage in self.stages)

    @property
    def core_hours(self) -> float:
        """Of all stages."""
        return sum(stage.core_hours for stage in self.stages)


def read_origins(run: Layout) -> Origins:
    """Read every marker and every plan of a run; stages come in the order of their first task."""
    ledger = Ledger(run.run)
    found = {stage: list(ledger.all_markers(stage)) for stage in ledger.stages()}
    found = {stage: markers for stage, markers in found.items() if markers}
    order = sorted(found, key=lambda stage: min(marker.started for marker in found[stage]))
    tasks = [row for stage in order for row in _rows(stage, found[stage])]
    origins = [_origin(stage, ledger, found[stage]) for stage in order]
    return Origins(tuple(origins), tuple(_commands(run)), tasks)


def _origin(stage: str, ledger: Ledger, markers: Sequence[Marker]) -> StageOrigin:
    spent = StageStatus(stage)
    for marker in markers:
        count_hours(spent, {**marker.ran_on, "seconds": marker.seconds}, marker.started)
    for attempt in ledger.all_attempts(stage):
        if attempt["state"] != "running":
            count_hours(spent, attempt, attempt["started"])
    commits = dict.fromkeys(str(marker.ran_on.get("commit") or "") for marker in markers)
    return StageOrigin(
        stage,
        len(markers),
        spent.seconds["cpus"] / 3600,
        spent.seconds["gpus"] / 3600,
        tuple(filter(None, commits)),
        len({marker.ran_on.get("host") for marker in markers}),
        fingerprint({marker.task: marker.digest for marker in markers}),
    )


def _rows(stage: str, markers: Sequence[Marker]) -> Iterator[tuple[Value, ...]]:
    for marker in markers:
        ran_on = marker.ran_on
        times = (round(marker.started, 3), round(marker.seconds, 3))
        where = (ran_on.get(name) for name in COLUMNS[5:])
        yield (stage, marker.task, marker.digest, *times, *where)


def _commands(run: Layout) -> Iterator[str]:
    """The commands that were given, oldest first; one that was given again is told once."""
    seen: set[str] = set()
    for path in sorted(run.plans.glob("*.json")):
        try:
            submitted: Mapping[str, object] = read_json(path)["submitted"]
            command, time = str(submitted["command"]), submitted.get("time")
        except (OSError, ValueError, LookupError, TypeError):
            continue  # of another version of the program; what it made has markers
        if command not in seen:
            seen.add(command)
            yield f"{command} ({time})"


def program_facts(run: Layout) -> dict[str, object]:
    """What makes the page, where and when."""
    return {
        "Experiment": str(run.experiment),
        "Made": time.strftime("%Y-%m-%d %H:%M"),
        "Machine": platform.node(),
        "Code": code_version() or "not under version control",
        "Versions": [
            *(f"{name} {_version(name)}" for name in _PACKAGES),
            f"Python {platform.python_version()}",
        ],
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
