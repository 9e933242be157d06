"""Rows of benchmarks/results.csv: what was measured, where, when, with which code."""

from __future__ import annotations

import csv
import json
import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpc.worker import code_version

PATH = Path(__file__).with_name("results.csv")
COLUMNS = ("date", "code", "device", "benchmark", "case", "size", "value", "unit")


def append(
    benchmark: str, case: str, size: Mapping[str, Any], value: float, unit: str, device: str = ""
) -> None:
    """Append a row.

    Args:
        benchmark: the module's name.
        case: what of it.
        size: the shape of the problem.
        value: what came out.
        unit: of the value; `ratio` for one against a peer in the same run.
        device: the accelerator's name; the processor's if empty.
    """
    new = not PATH.exists()
    with PATH.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if new:
            writer.writerow(COLUMNS)
        where = device or f"{_processor()}, {len(os.sched_getaffinity(0))} cores"
        today = time.strftime("%Y-%m-%d")
        shape = json.dumps(dict(size))
        row = (today, code_version(), where, benchmark, case, shape, f"{value:.4g}", unit)
        writer.writerow(row)


def _processor() -> str:
    with open("/proc/cpuinfo") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()
