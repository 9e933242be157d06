"""Which tests run side by side (`pytest -n 2`)."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from tests.pipeline import small
from tests.pipeline.small import SmallStudy

# Two processes on two cores: idle threads of one must not keep those of the other waiting.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

SLURM = Path(__file__).parent / "slurm"


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist looks for groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A file's tests share what they made; Slurm's share clusters, and, being longest, begin."""
    items.sort(key=lambda item: SLURM not in item.path.parents)
    for item in items:
        group = SLURM.name if SLURM in item.path.parents else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session")
def finished_study(tmp_path_factory: pytest.TempPathFactory) -> SmallStudy:
    """A small study that has run whole, made once for all processes. Not to be changed."""
    folder = tmp_path_factory.getbasetemp()
    shared = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    study = SmallStudy(shared / "a study's ümlauts")
    with (shared / "small.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (shared / "small.whole").exists():
            small.make(study.folder)
            printed = study.submit()
            assert f"report: {study.run}/9_report/index.html" in printed
            (shared / "small.whole").touch()
    return study
