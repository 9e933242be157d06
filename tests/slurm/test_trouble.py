"""Each way in which jobs die: at most one more submission, nothing done twice for nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hpc import slurm
from hpc.minislurm import Cluster
from tests.slurm.conftest import SlurmStudy, outputs

Expected = Callable[[SlurmStudy], dict[str, str]]


# What takes Slurm half a minute and more begins first, and the other tests run meanwhile.


@pytest.fixture(scope="module", autouse=True)
def deaf(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> SlurmStudy:
    """A study with a job that does not hear that its time is up."""
    study = SlurmStudy(tmp_path_factory.mktemp("deaf"))
    study.texts["b"] = "deaf"  # as native code that never returns to Python
    study.settings = {"minutes": 1, "sbatch": {"nodelist": "node4"}}
    study.to_slurm()
    return study


@pytest.fixture(scope="module", autouse=True)
def lost(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> SlurmStudy:
    """A study with a job whose node lost its power."""
    study = SlurmStudy(tmp_path_factory.mktemp("lost"))
    study.texts["b"] = "very slow once"
    study.settings = {"sbatch": {"exclude": "node1,node2,node4"}}
    study.to_slurm()
    study.wait(_started(study))
    assert study.queue().tasks["write/letters/b"].job.nodes == "node3"
    cluster.call("scontrol", "update", "NodeName=node3", "State=DRAIN", "Reason=nobody else")
    cluster.lose("node3")
    return study


def _started(study: SlurmStudy, name: str = "write/letters/b") -> Callable[[], object]:
    return lambda: study.attempt(name).get("progress", {}).get("done", 0) > 0


def test_one_failing_shard_among_forty(slurm_study: SlurmStudy, expected: Expected) -> None:
    names = [f"{number:02d}" for number in range(40)]
    slurm_study.settings = {"tasks_per_job": 5}
    slurm_study.texts = {name: f"text {name}" for name in names} | {"17": "once"}
    slurm_study.words = {"all": [f"write/letters/{name}" for name in names]}
    slurm_study.to_slurm()
    slurm_study.wait_for_end()
    assert [name for name, state in slurm_study.states().items() if state != "done"] == [
        "write/letters/17",
        "join/all",
    ]
    assert "fails the first time" in slurm_study.attempt("write/letters/17")["error"]
    assert slurm_study.causes() == {"write/letters/17": "ValueError"}
    slurm_study.to_slurm()
    slurm_study.wait_for_end()
    assert slurm_study.is_done()
    assert slurm_study.times_run() == {
        **{f"letters/{n}": 1 for n in names},
        "letters/17": 2,
        "all": 1,
    }
    assert outputs(slurm_study) == expected(slurm_study)


def test_a_rerun_while_the_rest_of_an_array_still_runs(slurm_study: SlurmStudy) -> None:
    slurm_study.texts |= {"a": "once", "b": "held"}
    slurm_study.to_slurm()
    slurm_study.wait(lambda: slurm_study.attempt("write/letters/a").get("state") == "failed")
    slurm_study.wait(_started(slurm_study))
    slurm_study.wait(lambda: "write/letters/a" not in slurm_study.queue().tasks)
    jobs = slurm_study.to_slurm()  # what waited for the failed one would never start
    assert set(jobs) == {"write", "join"}
    slurm_study.let_go()
    slurm_study.wait_for_end()
    assert slurm_study.is_done()
    assert slurm_study.times_run() == {
        "letters/a": 2, "letters/b": 1, "letters/c": 1, "all": 1, "lefts": 1
    }  # fmt: skip


def test_scancel_of_a_running_array(slurm_study: SlurmStudy, expected: Expected) -> None:
    slurm_study.texts["b"] = "very slow once"
    jobs = slurm_study.to_slurm()
    slurm_study.wait(_started(slurm_study))
    slurm.cancel([jobs["write"]])
    slurm_study.wait_for_end()
    assert slurm_study.states()["write/letters/a"] == "done"
    assert slurm_study.attempt("write/letters/b")["error"] == "ended by Slurm"
    assert slurm_study.causes()["write/letters/b"] == "CANCELLED"
    slurm_study.to_slurm()
    slurm_study.wait_for_end()
    assert slurm_study.is_done()
    assert slurm_study.times_run()["letters/b"] == 2
    assert outputs(slurm_study) == expected(slurm_study)


def test_requeue_by_hand(slurm_study: SlurmStudy) -> None:
    slurm_study.texts["b"] = "very slow once"
    slurm_study.settings = {"tasks_per_job": 3}
    jobs = slurm_study.to_slurm()
    slurm_study.wait(_started(slurm_study))
    slurm.requeue(jobs["write"])
    slurm_study.wait_for_end()
    assert slurm_study.is_done()
    assert slurm_study.times_run() == {
        "letters/a": 1, "letters/b": 2, "letters/c": 1, "all": 1, "lefts": 1
    }  # fmt: skip


@pytest.mark.parametrize("how", ["USR2", "time limit", "preemption", "grace"])
def test_a_job_that_is_told_to_stop_goes_on_later(slurm_study: SlurmStudy, how: str) -> None:
    slurm_study.texts["b"] = "very slow once"
    slurm_study.settings = {"tasks_per_job": 3}
    if how in ("preemption", "grace"):
        seconds = 30 if how == "grace" else 0
        slurm.call("scontrol", "update", "PartitionName=preemptible", f"GraceTime={seconds}")
        slurm_study.settings |= {"partition": "preemptible"}
    if how == "time limit":
        slurm_study.settings |= {"minutes": 1, "signal_seconds": 45}
    jobs = slurm_study.to_slurm()
    if how != "time limit":  # which comes by itself, however soon the task has started
        slurm_study.wait(_started(slurm_study))
    if how == "USR2":
        slurm.call("scancel", "--signal=USR2", jobs["write"])
    if how in ("preemption", "grace"):
        node = slurm_study.queue().tasks["write/letters/b"].job.nodes
        words = ("--exclusive", f"--nodelist={node}", "--output=/dev/null", "--wrap=sleep 1")
        slurm.call("sbatch", *words)
    slurm_study.wait_for_end(100)
    assert slurm_study.is_done()
    assert slurm_study.times_run()["letters/b"] == 2
    marker = slurm_study.assess()["write/letters/b"].marker
    assert marker is not None
    earlier = marker.ran_on["earlier"][0]
    assert (earlier["restart"], marker.ran_on["restart"]) == (0, 1)
    assert earlier["state"] == "interrupted"
    reason = "its time limit is near" if how == "time limit" else "other jobs need its nodes"
    assert how == "preemption" or reason in earlier["error"]


def test_a_job_that_is_stopped_too_often_has_failed(slurm_study: SlurmStudy) -> None:
    slurm_study.texts["b"] = "very slow once"
    slurm_study.settings = {"max_requeues": 0}
    jobs = slurm_study.to_slurm()
    slurm_study.wait(_started(slurm_study))
    slurm.call("scancel", "--signal=USR2", jobs["write"])
    slurm_study.wait_for_end()
    attempt = slurm_study.attempt("write/letters/b")
    assert attempt["state"] == "failed"
    assert "told to stop" in attempt["error"] and "max_requeues" in attempt["error"]
    assert slurm_study.causes() == {"write/letters/b": "PREEMPTED"}
    assert slurm_study.states()["write/letters/c"] == "done"


def test_a_job_over_its_memory(slurm_study: SlurmStudy) -> None:
    slurm_study.texts["b"] = "hungry"
    slurm_study.to_slurm()
    slurm_study.wait_for_end()
    assert slurm_study.states()["write/letters/c"] == "done"
    assert slurm_study.states()["write/letters/b"] == "missing"
    assert slurm_study.attempt("write/letters/b")["state"] == "running"
    assert slurm_study.causes() == {"write/letters/b": "OUT_OF_MEMORY"}
    slurm_study.settings = {"memory_gb": 2}
    slurm_study.to_slurm()
    slurm_study.wait_for_end()
    assert slurm_study.is_done()


def test_a_node_is_lost_with_its_job(lost: SlurmStudy, cluster: Cluster) -> None:
    lost.wait(lambda: lost.queue().tasks["write/letters/b"].job.is_pending, 120)
    assert not lost.is_done()
    cluster.start("node3")
    lost.wait(lambda: cluster.call("sinfo", "-h", "-n", "node3", "-o", "%T").startswith("drain"))
    cluster.call("scontrol", "update", "NodeName=node3", "State=RESUME")
    lost.wait_for_end(120)
    assert lost.is_done()
    assert lost.times_run() == {
        "letters/a": 1, "letters/b": 2, "letters/c": 1, "all": 1, "lefts": 1
    }  # fmt: skip


def test_a_time_limit_without_a_chance_to_stop(deaf: SlurmStudy) -> None:
    deaf.wait_for_end(120)
    assert deaf.causes() == {"write/letters/b": "TIMEOUT"}
    assert deaf.states()["write/letters/c"] == "done"
    deaf.to_slurm()
    deaf.wait_for_end()
    assert deaf.is_done()
    assert deaf.times_run()["letters/a"] == 1
