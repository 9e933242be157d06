"""Which tests run side by side (`pytest -n 2`)."""

from __future__ import annotations

import fcntl
import os

import pytest
from xdist.scheduler import LoadScopeScheduling

from tests.pipeline import small
from tests.pipeline.small import SmallStudy

# Two processes on two cores: idle threads of one must not keep those of the other waiting.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

SLURM = "tests/slurm"
LONGEST = (
    SLURM,
    "tests/pipeline/test_study.py",
    "tests/pipeline/training/test_processes.py",
    "tests/docs/test_commands.py",
    "tests/pipeline/data/test_tars.py",
    "tests/hpc/test_runs.py",
)


class _ByFile(LoadScopeScheduling):
    """A file's tests share what they made; Slurm's share clusters."""

    def _split_scope(self, nodeid: str) -> str:
        return SLURM if nodeid.startswith(SLURM) else nodeid.partition("::")[0]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> LoadScopeScheduling:
    """How `pytest -n 2` shares the tests out."""
    return _ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest begin, so that no process ends long before the other."""
    items.sort(key=lambda item: _rank(item.nodeid))


def _rank(nodeid: str) -> int:
    """The place of a test's file among the longest; all others come after."""
    places = (place for place, name in enumerate(LONGEST) if nodeid.startswith(name))
    return next(places, len(LONGEST))


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
