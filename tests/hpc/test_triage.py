"""What failed in a run: from records, from Slurm's states, and from logs alone."""

from __future__ import annotations

import re

import pytest

from hpc import joblog, slurm
from hpc.ledger import Ledger
from hpc.queued import RunQueue
from hpc.slurm import PastJob
from hpc.triage import group, triage
from tests.hpc.conftest import Study
from tests.hpc.fake_slurm import OOM, TIME_LIMIT, FakeCluster, heading, raised, starts


@pytest.fixture
def cluster(study: Study, monkeypatch: pytest.MonkeyPatch) -> FakeCluster:
    made = FakeCluster(study)

    def past(jobs: list[str]) -> dict[str, PastJob]:
        made.asked += jobs
        return {job: made.past[job] for job in jobs if job in made.past}

    monkeypatch.setattr(slurm, "is_here", lambda: True)
    monkeypatch.setattr(slurm, "past", past)
    return made


def test_the_same_traceback_is_one_cause_whatever_task_it_names(study: Study) -> None:
    study.texts.update(a="fail", c="fail")
    study.submit()
    found = triage(study.run, study.assess(), None)
    (one,) = group(found.failures)
    assert [failure.reference for failure in one.failures] == ["write/letters/a", "write/letters/c"]
    assert one.cause.kind == "ValueError"
    expected = r"ValueError in tests/hpc/toy\.py:\d+ \w+: letters/a: this text always fails"
    assert re.fullmatch(expected, one.cause.title)
    assert one.stages == {"write": 2}
    assert [(w.stage, w.tasks, w.on) for w in found.waiting] == [("join", 2, ("write",))]


# what died without a word


@pytest.mark.parametrize(
    "state", ["OUT_OF_MEMORY", "TIMEOUT", "NODE_FAIL", "CANCELLED", "PREEMPTED"]
)
def test_slurms_state_is_the_cause_of_what_died(cluster: FakeCluster, state: str) -> None:
    cluster.submit()
    cluster.attempt("write/letters/a", "12_0")
    cluster.ended("12_0", state)
    failure = cluster.failure("write/letters/a")
    assert failure.cause.kind == state
    assert failure.cause.title.startswith(state)
    assert failure.cause.advice


@pytest.mark.parametrize(("line", "kind"), [(OOM, "OUT_OF_MEMORY"), (TIME_LIMIT, "TIMEOUT")])
def test_without_accounting_the_log_tells(cluster: FakeCluster, line: str, kind: str) -> None:
    cluster.submit()
    cluster.attempt("write/letters/a", "12_0")
    cluster.log("12_0", heading(), starts("letters/a"), "half way", line)
    failure = cluster.failure("write/letters/a")
    assert failure.cause.kind == kind
    assert failure.lines() == [starts("letters/a"), "half way", line]


def test_a_job_that_slurm_cancelled_for_its_memory_is_out_of_memory(cluster: FakeCluster) -> None:
    cluster.submit()
    cluster.attempt("write/letters/a", "12_0")
    cluster.ended("12_0", "CANCELLED")
    cluster.log("12_0", heading(), starts("letters/a"), OOM)
    assert cluster.failure("write/letters/a").cause.kind == "OUT_OF_MEMORY"


def test_what_slurm_says_of_a_later_attempt_is_not_said_of_an_earlier(cluster: FakeCluster) -> None:
    cluster.submit()
    cluster.attempt("write/letters/a", "12_0", restart=0)
    cluster.log("12_0", heading(0), starts("letters/a"), TIME_LIMIT, heading(1))
    cluster.ended("12_0", "CANCELLED")
    assert cluster.failure("write/letters/a").cause.kind == "TIMEOUT"


@pytest.mark.parametrize(
    ("exit_code", "kind"),
    [("0:9", "KILLED"), ("137:0", "KILLED"), ("0:11", "SEGMENTATION_FAULT"), ("1:0", "SILENT"),
     ("7:0", "SILENT"), ("0:7", "BUS_ERROR")],
)  # fmt: skip
def test_the_exit_code_is_the_last_word(cluster: FakeCluster, exit_code: str, kind: str) -> None:
    cluster.submit()
    cluster.attempt("write/letters/a", "12_0")
    cluster.log("12_0", heading(), starts("letters/a"))
    cluster.ended("12_0", "FAILED", exit_code)
    assert cluster.failure("write/letters/a").cause.kind == kind


def test_a_traceback_that_could_not_be_recorded_is_found_in_the_log(cluster: FakeCluster) -> None:
    cluster.submit()
    cluster.attempt("write/letters/a", "12_0")
    text = raised("ValueError: no", "/x/pipeline/a.py").splitlines()
    cluster.log("12_0", heading(), starts("letters/a"), *text, "srun: error: exited")
    assert (
        cluster.failure("write/letters/a").cause.title == "ValueError in /x/pipeline/a.py:7 run: no"
    )


def test_slurmstepd_may_tell_in_the_log_of_another_process(cluster: FakeCluster) -> None:
    cluster.submit()
    cluster.attempt("write/letters/a", "12_0")
    cluster.log("12_0", heading(), starts("letters/a"))
    cluster.log("12_0", heading(), "joined", OOM, rank=1)
    assert cluster.failure("write/letters/a").cause.kind == "OUT_OF_MEMORY"


def test_advice_says_what_was_asked_for_and_used(cluster: FakeCluster) -> None:
    cluster.submit()
    for task, job, rss in (("a", "12_0", 10**9), ("b", "12_1", 1_900_000_000)):
        cluster.attempt(f"write/letters/{task}", job)
        cluster.ended(job, "OUT_OF_MEMORY", rss=rss)
    (one,) = group(cluster.triage().failures[:2])
    assert "raise memory_gb of write" in one.cause.advice
    assert "asked for 2 GB" in one.cause.advice
    assert "used 1.9 GB" in one.cause.advice


def test_too_little_memory_is_another_cause_for_each_stage(cluster: FakeCluster) -> None:
    cluster.study.submit()
    cluster.study.texts["a"] = "xy"
    cluster.submit()
    for task, job in (("write/letters/a", "12"), ("join/all", "13_0")):
        cluster.attempt(task, job)
        cluster.ended(job, "OUT_OF_MEMORY")
    assert [list(one.stages) for one in group(cluster.triage().failures)] == [["write"], ["join"]]


def test_an_exception_about_a_killed_helper_is_told_as_what_killed_it(cluster: FakeCluster) -> None:
    cluster.submit()
    error = "RuntimeError: DataLoader worker (pid 71) is killed by signal: Killed."
    for job, task in (("12_0", "a"), ("12_1", "b")):
        cluster.attempt(
            f"write/letters/{task}", job, "failed", error=error, traceback=raised(error)
        )
        cluster.log(job, heading(), starts(f"letters/{task}"), error)
    cluster.log("12_0", OOM)
    assert cluster.failure("write/letters/a").cause.kind == "OUT_OF_MEMORY"
    assert cluster.failure("write/letters/b").cause.kind == "RuntimeError"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ("told to stop: its time limit is near; max_requeues is 0", "TIMEOUT"),
        ("told to stop: other jobs need the nodes; max_requeues is 0", "PREEMPTED"),
        ("told to stop: its time limit is near, or other jobs need the nodes", "CUT_OFF"),
    ],
)
def test_a_worker_that_was_told_to_stop_may_know_why(
    cluster: FakeCluster, error: str, kind: str
) -> None:
    cluster.submit()
    cluster.attempt("write/letters/a", "12_0", "failed", error=error)
    cause = cluster.failure("write/letters/a").cause
    assert (cause.kind, error in cause.title) == (kind, True)


def test_being_cut_off_too_often_is_told_in_the_workers_words(cluster: FakeCluster) -> None:
    cluster.submit()
    error = "its job was cut off 4 times (preempted, ...), and max_requeues is 3"
    cluster.attempt("write/letters/a", "12_0", "failed", error=error)
    cause = cluster.failure("write/letters/a").cause
    assert (cause.kind, error in cause.title) == ("CUT_OFF", True)
    assert "max_requeues of write" in cause.advice


def test_what_cut_a_task_off_is_in_the_log_of_its_last_attempt(cluster: FakeCluster) -> None:
    cluster.submit()
    error = "its job was cut off 4 times, and max_requeues is 3"
    cluster.attempt("write/letters/a", "12_0", "failed", error=error)
    cluster.log("12_0", heading(), starts("letters/a"), TIME_LIMIT, heading(1))
    cause = cluster.failure("write/letters/a").cause
    assert (cause.kind, error in cause.title) == ("TIMEOUT", True)


def test_interrupted_and_no_longer_queued_is_a_failure(cluster: FakeCluster) -> None:
    cluster.submit()
    cluster.attempt("write/letters/a", "12_0", "interrupted", error="told to stop")
    assert cluster.failure("write/letters/a").cause.kind == "GONE"
    cluster.ended("12_0", "CANCELLED")
    assert cluster.failure("write/letters/a").cause.kind == "CANCELLED"


def test_a_recorded_exception_does_not_need_slurm(cluster: FakeCluster) -> None:
    cluster.submit()
    cluster.attempt(
        "write/letters/a", "12_0", "failed", error="ValueError: x", traceback=raised("x")
    )
    assert cluster.failure("write/letters/a", None).cause.kind == "ValueError"
    cluster.failure("write/letters/a")
    assert "12_0" not in cluster.asked


# what is not a failure


def test_what_is_queued_or_runs_has_not_failed(cluster: FakeCluster) -> None:
    cluster.submit()
    cluster.attempt("write/letters/a", "12_0")
    cluster.attempt("write/letters/b", "12_1", "interrupted")
    cluster.attempt("write/letters/c", "11", "failed", error="ValueError: x", traceback="T")
    queue = cluster.queue(
        write__letters__a="12_0 RUNNING",
        write__letters__b="12_1 PENDING BeginTime",
        write__letters__c="12_2 PENDING Priority",
        join__all="13_0 PENDING Dependency",
        join__lefts="13_1 PENDING Dependency",
    )
    found = cluster.triage(queue)
    assert found.failures == []
    assert found.waiting == []
    assert found.running == {"write/letters/a"}
    assert len(found.active) == 5


def test_a_failure_is_shown_while_its_job_does_other_tasks(cluster: FakeCluster) -> None:
    cluster.submit()
    cluster.attempt("write/letters/a", "12_0", "failed", error="ValueError: x", traceback="T")
    found = cluster.triage(cluster.queue(write__letters__a="12_0 RUNNING"))
    assert "write/letters/a" in [one.reference for one in found.failures]


def test_without_slurm_only_recorded_failures_are_known(cluster: FakeCluster) -> None:
    cluster.submit()
    cluster.attempt("write/letters/a", "12_0")
    cluster.attempt("write/letters/b", "12_1", "failed", error="ValueError: x", traceback="T")
    found = cluster.triage(None)
    assert [one.reference for one in found.failures] == ["write/letters/b"]
    assert found.active == {"write/letters/a"}


def test_an_attempt_with_other_settings_is_no_failure_of_today(cluster: FakeCluster) -> None:
    cluster.submit()
    cluster.attempt("write/letters/a", "12_0", "failed", error="ValueError: x", traceback="T")
    cluster.study.texts["a"] = "other"
    names = [one.reference for one in cluster.triage().failures]
    assert "write/letters/a" not in names


# what never began


def test_a_job_whose_setup_fails_is_told_by_its_last_words(cluster: FakeCluster) -> None:
    cluster.submit()
    for job in ("12_0", "12_1", "12_2"):
        tidying = f"srun: error: node1: task {job[-1]}: Exited with exit code 127"
        cluster.log(job, f"/slurm_script: line {job[-1]}: module: command not found", tidying)
        cluster.ended(job, "FAILED", "127:0")
    found = cluster.triage()
    (one,) = group(found.failures)
    assert one.cause.kind == "NEVER_BEGAN"
    assert "module: command not found" in one.cause.title
    assert one.stages == {"write": 3}
    assert one.failures[0].lines()[0].endswith("module: command not found")
    assert [(w.stage, w.tasks) for w in found.waiting] == [("join", 2)]


def test_a_job_that_python_could_not_start_is_told_by_its_traceback(cluster: FakeCluster) -> None:
    cluster.submit()
    text = raised("ModuleNotFoundError: No module named 'torch'", "/x/pipeline/a.py").splitlines()
    cluster.log("12_0", "submitit ERROR (2026) - Submitted job", *text, "srun: error: exited")
    cause = cluster.failure("write/letters/a").cause
    assert cause.kind == "ModuleNotFoundError"
    assert "before the task began" in cause.title
    assert "setup" in cause.advice


def test_what_shared_a_job_with_a_task_that_killed_it_has_the_same_cause(
    cluster: FakeCluster,
) -> None:
    cluster.submit(at_once=1)  # a single job is no array
    cluster.attempt("write/letters/a", "12")
    cluster.ended("12", "OUT_OF_MEMORY")
    cluster.log("12", heading(), starts("letters/a"), OOM)
    (one,) = group(cluster.triage().failures)
    assert one.cause.kind == "OUT_OF_MEMORY"
    assert [failure.task for failure in one.failures] == ["letters/a", "letters/b", "letters/c"]
    assert [bool(failure.attempt) for failure in one.failures] == [True, False, False]


def test_a_job_cancelled_in_the_queue_is_a_failure_and_the_next_stage_waits(
    cluster: FakeCluster,
) -> None:
    cluster.submit()
    for job in ("12_0", "12_1", "12_2", "13_0", "13_1"):
        cluster.ended(job, "CANCELLED")
    found = cluster.triage()
    assert {one.stage for one in found.failures} == {"write"}
    assert {one.cause.kind for one in found.failures} == {"CANCELLED"}
    assert [(w.stage, w.tasks, w.on) for w in found.waiting] == [("join", 2, ("write",))]


def test_a_job_that_nobody_remembers_left_the_queue(cluster: FakeCluster) -> None:
    cluster.submit()
    assert {one.cause.kind for one in cluster.triage().failures} == {"GONE"}


def test_a_stage_waits_for_a_whole_array_though_its_inputs_are_there(cluster: FakeCluster) -> None:
    cluster.study.texts["d"] = "fail"  # nothing uses it
    cluster.study.plan()
    cluster.study.submit()
    for name in ("all", "lefts"):
        for marker in (cluster.study.run / "done" / "join").glob(f"{name}.*"):
            marker.unlink()
    cluster.submit()
    cluster.attempt("write/letters/d", "12", "failed", error="ValueError: x", traceback="T")
    found = cluster.triage()
    assert [one.reference for one in found.failures] == ["write/letters/d"]
    assert [(w.stage, w.tasks, w.on) for w in found.waiting] == [("join", 2, ("write",))]


def test_what_was_never_submitted_has_not_failed(cluster: FakeCluster) -> None:
    found = triage(cluster.study.run, cluster.study.assess(), RunQueue([], {}, {}))
    assert (found.failures, found.waiting, found.active) == ([], [], set())


# where to read on


def test_the_log_is_found_where_the_run_was_moved_to(cluster: FakeCluster) -> None:
    cluster.submit()
    cluster.attempt("write/letters/a", "12_0")
    log = cluster.log("12_0", heading(), starts("letters/a"), OOM)
    moved = cluster.study.run.with_name("moved")
    cluster.study.run.rename(moved)
    record = Ledger(moved).attempt("write", "letters/a")
    assert record is not None
    assert joblog.log_of(record, moved) == moved / log.relative_to(cluster.study.run)


def test_the_log_is_that_of_the_process_that_failed(cluster: FakeCluster) -> None:
    cluster.submit()
    error = "rank 1 on node2: ValueError: no"
    cluster.attempt("write/letters/a", "12_0", "failed", error=error, traceback="T", rank=1)
    cluster.log("12_0", heading(), starts("letters/a"), "of rank 0")
    log = cluster.log("12_0", heading(), "of rank 1", rank=1)
    failure = cluster.failure("write/letters/a")
    assert failure.log == log
    assert failure.lines() == ["of rank 1"]
