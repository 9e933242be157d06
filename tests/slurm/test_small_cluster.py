"""A cluster without accounting that takes arrays of 11 jobs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpc import slurm
from hpc.ledger import Ledger
from hpc.minislurm import Cluster, Settings
from hpc.queued import queued
from hpc.status import survey
from tests.slurm.conftest import SlurmStudy, start


@pytest.fixture(scope="module")
def small_cluster() -> Iterator[Cluster]:
    yield from start(Settings(nodes=2, accounting=False, max_array_size=11))


@pytest.fixture
def study(small_cluster: Cluster, tmp_path: Path) -> SlurmStudy:
    return SlurmStudy(tmp_path)


def test_a_hundred_tasks_in_arrays_of_eleven(study: SlurmStudy) -> None:
    assert slurm.max_array_size() == 11
    study.texts = {f"{number:03d}": f"t{number:03d}" for number in range(100)}
    study.words = {"all": [f"write/letters/{name}" for name in study.texts]}
    study.to_slurm()
    assert study.lines[0].endswith("100 tasks in 11 jobs")
    study.wait_for_end(120)
    assert study.is_done()
    assert sum(study.times_run().values()) == 101


def test_status_and_causes_need_no_accounting(study: SlurmStudy) -> None:
    study.texts |= {"a": "die", "b": "held", "d": "held"}
    study.settings = {"array_parallelism": 2, "gpus": 1}
    jobs = study.to_slurm()
    study.wait(lambda: study.attempt("write/letters/b"))
    study.wait(lambda: "write/letters/a" not in study.queue().tasks)
    assert not slurm._from_sacct([f"{jobs['write']}_0"])

    write, join = survey(
        study.assess(), Ledger(study.run), ["write", "join"], queued(study.run), time.time()
    )
    counted = (write.done, len(write.running), write.queued, list(write.failed))
    assert sum(map(int, counted[:3])) == 3
    assert counted[3] == ["letters/a"]
    assert join.queued == 2
    assert list(join.waits) == [(jobs["join"], "waits for write")]
    assert write.seconds["gpus"] > 0
    assert study.causes() == {"write/letters/a": "KILLED"}

    study.let_go()
    study.wait_for_end()
    study.texts["a"] = "ab"
    study.to_slurm()
    study.wait_for_end()
    assert study.is_done()
