"""What would run, in hours and bytes, as people read it."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.forecast.amounts import Amount, total
from pipeline.forecast.hours import MEASURED, StageForecast
from pipeline.forecast.speeds import SPEEDS, Speeds

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")

_USERS = {
    "embed": {"embed"},
    "cluster": {"cluster", "assign"},
    "scan": {"dedup", "reference", "scan"},
    "mask": {"mask"},
    "train": {"train"},
    "evaluate": {"evaluate", "features"},
    "decode": {"embed", "train", "evaluate", "features"},
}
"""The stages that a section of speeds is for; all of them for one that is not here."""


@dataclass(frozen=True)
class ForecastView:
    """A forecast, and what it was made from."""

    stages: Sequence[StageForecast]
    disk: Mapping[str, Amount]
    """Bytes that each folder of the run will hold more than now."""
    run: Path
    profile: str
    speeds: Speeds

    @property
    def uses_gpus(self) -> bool:
        """Whether any job has a GPU: then hours are those of GPUs."""
        return any(one.gpus for one in self.stages)

    def show(self) -> None:
        """Print it: a table on a terminal, plain lines elsewhere."""
        rows = [_headings(self.uses_gpus), *map(self._row, self.stages), self._total()]
        if sys.stdout.isatty():
            _print_table(rows)
        else:
            print("\n".join(_aligned(rows)))
        for line in self.notes():
            print(line)

    def _hours(self, one: StageForecast) -> Amount:
        return one.gpu_hours if self.uses_gpus else one.core_hours

    def _row(self, one: StageForecast) -> list[str]:
        return [
            one.stage,
            f"{one.tasks:,}",
            f"{one.jobs:,}",
            f"{one.at_once:,}",
            told_hours(self._hours(one)),
            told_time(one.wall),
            told_bytes(one.read),
            told_bytes(one.written),
            "measured in this run" if one.limit == MEASURED else one.limit,
        ]

    def _total(self) -> list[str]:
        return [
            "in all",
            f"{sum(one.tasks for one in self.stages):,}",
            f"{sum(one.jobs for one in self.stages):,}",
            "",
            told_hours(total(map(self._hours, self.stages))),
            told_time(total(one.wall for one in self.stages)),
            told_bytes(total(one.read for one in self.stages)),
            told_bytes(total(one.written for one in self.stages)),
            "",
        ]

    def notes(self) -> Iterator[str]:
        """What the table does not say: the disk, where speeds are from, what is not known."""
        yield self._disk_note()
        yield from self._speed_notes()
        amounts = [a for one in self.stages for a in (one.seconds, one.read, one.written)]
        if any(one.at_most for one in amounts):
            yield (
                "'up to': how many images a split keeps is not known before its mask is made; the "
                "most that it can keep counts (give expect.kept to say less)"
            )
        if missing := total(amounts).missing:
            yield "unknown until these are given:"
            yield from dict.fromkeys(f"  {self._place(key)}" for key in sorted(missing))

    def _disk_note(self) -> str:
        needed = total(self.disk.values())
        folders = ", ".join(
            f"{name} {told_bytes(one)}" for name, one in self.disk.items() if one.value
        )
        free = shutil.disk_usage(_existing(self.run)).free
        least = sum(one.value for one in self.disk.values() if not one.at_most)
        lacks = ": TOO LITTLE" if least > free else ""
        room = f"{told_bytes(Amount(free))} free there{lacks}"
        return f"disk: {told_bytes(needed)} in all{f' ({folders})' if folders else ''}; {room}"

    def _speed_notes(self) -> Iterator[str]:
        """One line for each section of the profile's speeds that counted."""
        if any(one.limit == MEASURED for one in self.stages):
            done = ", ".join(one.stage for one in self.stages if one.limit == MEASURED)
            yield f"speed of {done}: as fast as this run's finished tasks"
        stages = {one.stage for one in self.stages if one.limit != MEASURED}
        for section, values in self.speeds.sections.items():
            if not stages & _USERS.get(section, stages):
                continue
            told = ", ".join(f"{key} {values[key]:,}" for key in SPEEDS[section] if key in values)
            source = self.speeds.source(section)
            yield f"speeds.{section}: {told}{f' ({source})' if source else ''}"

    def _place(self, key: str) -> str:
        if key.startswith("speeds."):
            return f"{key} in the profile {self.profile}"
        if key.startswith("tests."):
            key = f"tests.*.{key.split('.', 2)[2]}"
        return key if " " in key else f"{key} in the experiment"

    def values(self) -> dict[str, object]:
        """The same for programs."""
        return {
            "stages": [_stage_values(one) for one in self.stages],
            "disk_bytes": {name: _value(one) for name, one in self.disk.items()},
        }


def _headings(uses_gpus: bool) -> list[str]:
    hours = "GPU-hours" if uses_gpus else "core-hours"
    return ["stage", "tasks", "jobs", "at once", hours, "time", "read", "written", "limited by"]


def _stage_values(one: StageForecast) -> dict[str, object]:
    return {
        "stage": one.stage,
        "tasks": one.tasks,
        "jobs": one.jobs,
        "at_once": one.at_once,
        "gpu_hours": _value(one.gpu_hours),
        "core_hours": _value(one.core_hours),
        "seconds": _value(one.wall),
        "bytes_read": _value(one.read),
        "bytes_written": _value(one.written),
        "limited_by": one.limit,
    }


def _value(amount: Amount) -> dict[str, object]:
    return {
        "value": amount.value,
        "at_most": amount.at_most,
        "unknown_without": sorted(amount.missing),
    }


def told_bytes(amount: Amount) -> str:
    """`9.9 TB`, `over 33 MB`, `unknown`."""
    value, unit = amount.value, 0
    while value >= 999.5 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    words = f"{value:.1f}" if 0 < value < 9.95 and unit else f"{value:.0f}"
    return amount.told(f"{words} {_UNITS[unit]}" if amount.value else "")


def told_hours(amount: Amount) -> str:
    """`2,329`, `1.5`, `0.02`."""
    value = amount.value
    words = (
        f"{value:,.0f}" if value >= 99.5 else f"{value:.1f}" if value >= 0.95 else f"{value:.2f}"
    )
    return amount.told(words if value else "")


def told_time(amount: Amount) -> str:
    """`12 s`, `34 min`, `61 h`, `95 days`."""
    seconds = amount.value
    for unit, size, least in (("days", 86_400, 4), ("h", 3600, 3), ("min", 60, 3)):
        if seconds >= least * size:
            return amount.told(f"{seconds / size:,.0f} {unit}")
    return amount.told(f"{seconds:.0f} s" if seconds else "")


def _existing(path: Path) -> Path:
    return path if path.exists() else _existing(path.parent)


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            cell.ljust(width) if at in (0, len(row) - 1) else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()


def _print_table(rows: Iterable[Sequence[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    headings, *stages, last = rows
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_footer=True)
    for at, heading in enumerate(headings):
        left = at in (0, len(headings) - 1)
        table.add_column(heading, last[at], justify="left" if left else "right", no_wrap=at == 0)
    for row in stages:
        table.add_row(*row)
    Console().print(table)
