"""Which tests run side by side (`pytest -n 2`)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Two processes on two cores: idle threads of one must not keep those of the other waiting.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

SLURM = Path(__file__).parent / "slurm"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A file's tests share what they made; Slurm's share clusters, and, being longest, begin."""
    items.sort(key=lambda item: SLURM not in item.path.parents)
    for item in items:
        group = SLURM.name if SLURM in item.path.parents else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))
