"""The course of a training, `curve.csv`: collected from what open_clip_train logged.

Columns: epoch (from 1), samples (seen since the start of the training), loss, learning_rate,
samples_per_second, batch_seconds, time (ISO, UTC), logit_scale. A log holds all attempts, and what
an attempt did after its last checkpoint was done again by the next: of two lines about the same
samples the later one counts.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from hpc.files import atomic_path

NAME = "curve.csv"
LOG_TIME = "%Y-%m-%d,%H:%M:%S"
STEP = re.compile(
    r"Train Epoch: (?P<part>\d+) \[ *(?P<seen>\d+)/(?P<of>\d+) .* Loss: (?P<loss>\S+)"
)
"""The part, the samples seen in it, the samples that it has, and the loss of the last batch."""
_NUMBER = r"(\S+)"
_LINE = re.compile(
    rf"(?P<time>\S+) \| INFO \| {STEP.pattern} \(\S+\)$",
)
_DETAIL = {
    "learning_rate": re.compile(rf" LR: {_NUMBER}"),
    "samples_per_second": re.compile(rf", {_NUMBER}/s, "),
    "batch_seconds": re.compile(rf" Batch \(t\): {_NUMBER},"),
    "logit_scale": re.compile(rf" Logit Scale: {_NUMBER}"),
}


@dataclass(frozen=True, kw_only=True)
class Point:
    """One line of the curve."""

    epoch: int
    samples: int
    loss: float
    learning_rate: float
    samples_per_second: float
    batch_seconds: float
    time: str
    logit_scale: float


def points_of(log: Iterable[str], epoch_samples: int) -> list[Point]:
    """The course of a training by the lines of its log.

    Args:
        log: lines of all attempts, the oldest first; what is no line about a step is passed over,
            and so is one that was cut off by a kill.
        epoch_samples: samples seen in an epoch.
    """
    points: list[Point] = []
    for line in log:
        if point := _point(line.rstrip("\n"), epoch_samples):
            while points and points[-1].samples >= point.samples:
                points.pop()
            points.append(point)
    return points


def _point(line: str, epoch_samples: int) -> Point | None:
    found = _LINE.match(line)
    detail = {name: pattern.search(line) for name, pattern in _DETAIL.items()}
    if found is None or None in detail.values():
        return None
    try:
        numbers = {name: float(one[1]) for name, one in detail.items() if one}
        samples = int(found["part"]) * int(found["of"]) + int(found["seen"])
        return Point(
            epoch=1 + (samples - 1) // epoch_samples,
            samples=samples,
            loss=float(found["loss"]),
            time=_utc(found["time"]),
            **numbers,
        )
    except ValueError:
        return None


def _utc(text: str) -> str:
    local = datetime.strptime(text, LOG_TIME).astimezone()
    return local.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def write_curve(log: Path, target: Path, epoch_samples: int) -> int:
    """Write the curve of a training by its log; returns the number of points."""
    points: list[Point] = []
    if log.exists():
        with log.open(encoding="utf-8", errors="replace") as lines:
            points = points_of(lines, epoch_samples)
    names = [field.name for field in fields(Point)]
    with (
        atomic_path(target) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(names)
        writer.writerows([getattr(point, name) for name in names] for point in points)
    return len(points)


def read_curve(path: Path) -> list[Point]:
    """Read `curve.csv`.

    Raises:
        FileNotFoundError: there is none.
        ValueError: a column is missing or a value is no number; the message names the line.
    """
    kinds: dict[str, Callable[[str], Any]] = {"epoch": int, "samples": int, "time": str}
    names = [field.name for field in fields(Point)]
    points = []
    with path.open(newline="", encoding="utf-8") as file:
        for number, row in enumerate(csv.DictReader(file), start=2):
            try:
                values = {name: kinds.get(name, float)(row[name]) for name in names}
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(
                    f"{path}: line {number}: not a point of a curve: {error}"
                ) from error
            points.append(Point(**values))
    return points
