"""What a user sees of a study in Slurm's queue: submitted, recognised, cancelled, gone on with."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hpc import slurm
from hpc.minislurm import Cluster
from hpc.profile import Container
from hpc.submission import RunIsBusy
from tests.slurm.conftest import SlurmStudy, outputs

Expected = Callable[[SlurmStudy], dict[str, str]]


def test_a_study_runs_whole_and_equals_that_of_one_process(
    slurm_study: SlurmStudy, expected: Expected
) -> None:
    jobs = slurm_study.to_slurm()
    assert slurm_study.lines == [
        f"write      job {jobs['write']}: 3 tasks in 3 jobs",
        f"join       job {jobs['join']}: 2 tasks in 2 jobs, after {jobs['write']}",
    ]
    slurm_study.wait_for_end()
    assert slurm_study.is_done()
    assert set(slurm_study.times_run().values()) == {1}
    assert outputs(slurm_study) == expected(slurm_study)
    assert slurm_study.to_slurm() == {}


def test_what_is_queued_is_recognised(slurm_study: SlurmStudy) -> None:
    slurm_study.texts["b"] = "held"
    slurm_study.to_slurm()
    assert slurm_study.to_slurm() == {}
    assert set(slurm_study.queue().tasks) >= {"join/all", "join/lefts"}
    slurm_study.texts["d"] = "gh"
    slurm_study.words["more"] = ["write/letters/b", "write/letters/d"]
    added = slurm_study.to_slurm()
    queued_b = slurm_study.queue().tasks["write/letters/b"].job.id
    assert slurm_study.lines[1].endswith(f", after {added['write']}, {queued_b}")
    slurm_study.let_go()
    slurm_study.wait_for_end()
    assert slurm_study.is_done()
    assert set(slurm_study.times_run().values()) == {1}


def test_submitting_twice_at_once(slurm_study: SlurmStudy) -> None:
    results: list[dict[str, str]] = []
    threads = [
        threading.Thread(target=lambda: results.append(slurm_study.to_slurm())) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(len, results)) == [0, 0, 2]
    slurm_study.wait_for_end()
    assert slurm_study.is_done()
    assert set(slurm_study.times_run().values()) == {1}


def test_queued_tasks_of_other_settings_are_in_the_way_and_left_alone(
    slurm_study: SlurmStudy,
) -> None:
    slurm_study.texts["b"] = "held"
    slurm_study.to_slurm()
    slurm_study.wait_for_all_but_b()
    before = {job.id for job in slurm_study.queue().jobs if job.is_pending}
    assert before
    slurm_study.texts |= {"a": "xy", "b": "cd"}
    with pytest.raises(RunIsBusy, match=r"`simgap cancel .* --stage write --stage join`"):
        slurm_study.to_slurm()
    with pytest.raises(ValueError, match="--task wirte/letters/a: no such task"):
        slurm_study.texts |= {"a": "ab", "b": "held"}
        slurm_study.to_slurm("wirte/letters/a")
    assert before <= {job.id for job in slurm_study.queue().jobs}


def test_single_tasks_can_be_submitted(slurm_study: SlurmStudy) -> None:
    with pytest.raises(ValueError, match=r"--task join/lefts: needs write/letters/a, which is"):
        slurm_study.to_slurm("join/lefts")
    assert list(slurm_study.to_slurm("write/letters/[ab]")) == ["write"]
    assert list(slurm_study.to_slurm("join/lefts")) == ["join"]  # it waits for what is queued
    slurm_study.wait_for_end()
    assert slurm_study.times_run() == {"letters/a": 1, "letters/b": 1, "lefts": 1}


def test_nothing_is_asked_that_the_profile_did_not_ask_for(
    slurm_study: SlurmStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SBATCH_PARTITION", "no-such-partition")
    monkeypatch.setenv("SLURM_NTASKS", "7")  # as in an interactive job
    jobs = slurm_study.to_slurm()
    script = next((slurm_study.run / "logs/write").rglob(f"{jobs['write']}_submission.sh"))
    options = {
        line.removeprefix("#SBATCH --").partition("=")[0]
        for line in script.read_text().splitlines()
        if line.startswith("#SBATCH")
    }
    assert options == {
        "array", "comment", "cpus-per-task", "job-name", "mem", "nodes", "ntasks-per-node",
        "open-mode", "output", "requeue", "signal", "time",
    }  # fmt: skip
    slurm_study.wait_for_end()
    assert slurm_study.is_done()


def test_the_throttle_and_other_options_reach_slurm(slurm_study: SlurmStudy) -> None:
    slurm_study.settings = {
        "array_parallelism": 1,
        "partition": "short",
        "gpus": 2,
        "environment": {"COLOUR": "it's blue"},
        "setup": ('echo "setup ran in $SLURM_JOB_PARTITION, colour $COLOUR"',),
        "sbatch": {"nice": "7"},
    }
    slurm_study.texts["b"] = "held"
    jobs = slurm_study.to_slurm()
    slurm_study.wait(lambda: slurm_study.attempt("write/letters/b"))
    shown = slurm.fields_of(slurm.call("scontrol", "-o", "show", "job", f"{jobs['write']}_2"))
    assert (shown["ArrayTaskThrottle"], shown["Partition"], shown["Nice"]) == ("1", "short", "7")
    assert shown["TresPerNode"] == "gres:gpu:2"
    slurm_study.let_go()
    slurm_study.wait_for_end()
    log = next((slurm_study.run / "logs/write").rglob(f"{jobs['write']}_0_0_log.out"))
    assert "setup ran in short" in log.read_text()
    assert slurm_study.is_done()


def test_the_controller_restarts_with_the_queue_intact(
    slurm_study: SlurmStudy, cluster: Cluster
) -> None:
    slurm_study.texts["b"] = "held"
    jobs = slurm_study.to_slurm()
    slurm_study.wait_for_all_but_b()
    ended = time.time()
    slurm.call("scontrol", "update", f"JobId={jobs['join']}", "Nice=1")  # something to write
    saved = cluster.folder / "state" / "job_state"  # Slurm writes it every few seconds
    slurm_study.wait(lambda: saved.exists() and saved.stat().st_mtime > ended)
    cluster.stop("slurmctld", signal.SIGKILL)
    cluster.start("slurmctld")
    slurm_study.wait(lambda: _answers(slurm_study))
    assert "join/all" in slurm_study.queue().tasks
    assert slurm_study.to_slurm() == {}
    slurm_study.let_go()
    slurm_study.wait_for_end()
    assert slurm_study.is_done()
    assert set(slurm_study.times_run().values()) == {1}


def _answers(study: SlurmStudy) -> bool:
    try:
        study.queue()
    except slurm.SlurmError:
        return False
    return True


def test_accounting_may_be_down(slurm_study: SlurmStudy, cluster: Cluster) -> None:
    cluster.stop("slurmdbd")
    try:
        jobs = slurm_study.to_slurm()
        slurm_study.wait_for_end()
        assert slurm_study.is_done()
        past = slurm.past([f"{jobs['write']}_0", jobs["join"]])
        assert past[f"{jobs['write']}_0"].state == "COMPLETED"
    finally:
        cluster.start("slurmdbd")


def test_a_stage_that_slurm_refuses_is_named(slurm_study: SlurmStudy) -> None:
    slurm_study.settings = {"partition": "no-such"}
    with pytest.raises(slurm.SlurmError, match=r"write: sbatch refused.*invalid partition"):
        slurm_study.to_slurm()
    slurm_study.settings = {}
    slurm_study.to_slurm()
    slurm_study.wait_for_end()
    assert slurm_study.is_done()


_FAKE_APPTAINER = """#!/bin/bash
# A fake: no container runtime can be had here. It says what it was told and runs the command as is.
echo "fake apptainer: $1 $2 $3 $4"
exec "${@:5}"
"""


def test_jobs_run_in_a_container(
    slurm_study: SlurmStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "bin" / "apptainer"
    fake.parent.mkdir()
    fake.write_text(_FAKE_APPTAINER)
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    image = Container(runtime="apptainer", image="/images/it's.sif", arguments=("--bind", "/data"))
    slurm_study.settings = {"container": image, "python": sys.executable}
    jobs = slurm_study.to_slurm()
    slurm_study.wait_for_end()
    assert slurm_study.is_done()
    log = next((slurm_study.run / "logs/write").rglob(f"{jobs['write']}_0_0_log.out"))
    assert "fake apptainer: exec --bind /data /images/it's.sif" in log.read_text()
