"""Published accuracies of other models: a CSV that users give, with model, test and accuracy."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

from hpc.words import nearest

COLUMNS = ("model", "test", "accuracy")

Baselines = Mapping[str, Mapping[str, float]]
"""Model -> test set -> accuracy in [0, 1]."""


def read_baselines(path: Path) -> Baselines:
    """Read a CSV with the columns model, test, accuracy; others are left alone.

    Raises:
        OSError: the file can't be read.
        ValueError: a column is missing, a line has no name or no accuracy between 0 and 1, or a
            model has two on one test set; the message names file and line.
    """
    found: dict[str, dict[str, float]] = {}
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, skipinitialspace=True)
        names = [name.strip() for name in reader.fieldnames or []]
        reader.fieldnames = names
        for column in COLUMNS:
            if column not in names:
                told = nearest(column, names) if names else "the file is empty"
                raise ValueError(f"{path}: no column {column!r}; {told}")
        for line in reader:
            where = f"{path}, line {reader.line_num}"
            model, test = ((line[name] or "").strip() for name in ("model", "test"))
            if not model or not test:
                raise ValueError(f"{where}: expected a model and a test set, found {line}")
            if test in found.setdefault(model, {}):
                raise ValueError(f"{where}: {model} has an accuracy on {test} already")
            found[model][test] = _accuracy(line["accuracy"], where)
    return found


def _accuracy(text: str | None, where: str) -> float:
    try:
        accuracy = float(text or "")
    except ValueError:
        raise ValueError(f"{where}: expected an accuracy, found {text!r}") from None
    if not 0 <= accuracy <= 1:
        raise ValueError(
            f"{where}: accuracy {text}: expected a share between 0 and 1 (61.2% is 0.612)"
        )
    return accuracy
