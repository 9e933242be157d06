"""What a user sees of a run: what runs, what runs again, what survives a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from hpc.executors import job_environment, run_inline, run_local
from hpc.ledger import Ledger
from hpc.room import Room
from hpc.stage import Resources
from hpc.worker import JobRecord, TasksFailed, Worker
from tests.hpc.conftest import Quiet, Study

ALL = ["all", "lefts", "letters/a", "letters/b", "letters/c"]


def test_runs_everything_then_nothing(study: Study, execute: Any) -> None:
    assert set(study.states().values()) == {"missing"}
    assert study.submit(execute) == []
    assert study.ran() == ALL
    assert set(study.states().values()) == {"done"}
    assert (study.run / "2_join/all.txt").read_text().endswith("\nabcdef")
    assert study.submit(execute) == []
    assert study.ran() == []


def test_a_changed_setting_makes_only_what_depends_on_it_stale(study: Study) -> None:
    study.submit()
    study.ran()
    study.texts["c"] = "xy"
    stale = {name for name, state in study.states().items() if state == "stale"}
    assert stale == {"write/letters/c", "join/all"}
    reasons = {name: item.reason for name, item in study.assess().items() if item.reason}
    assert reasons["write/letters/c"] == "text: ef -> xy"
    assert reasons["join/all"] == "input write/letters/c changed"
    study.submit()
    assert study.ran() == ["all", "letters/c"]
    assert (study.run / "2_join/all.txt").read_text().endswith("\nabcdxy")


def test_who_uses_a_part_does_not_run_when_another_part_changes(study: Study) -> None:
    study.submit()
    study.ran()
    study.texts["a"] = "aX"  # the left half stays
    study.submit()
    assert study.ran() == ["all", "letters/a"]
    assert set(study.states().values()) == {"done"}
    study.texts["a"] = "YX"
    study.submit()
    assert study.ran() == ["all", "lefts", "letters/a"]


@pytest.mark.parametrize("damage", ["delete", "change", "truncate", "same size"])
def test_a_damaged_output_is_made_again_and_its_users_are_checked(
    study: Study, damage: str
) -> None:
    study.submit()
    study.ran()
    output = study.run / "1_write/b.txt"
    text = output.read_text()
    if damage == "delete":
        output.unlink()
    else:
        changed = {"change": text + "!", "truncate": text[:5], "same size": text[:-1] + "!"}[damage]
        output.write_text(changed)
        os.utime(output, ns=(0, 0))
    states = study.states()
    assert states == {
        "write/letters/a": "done",
        "write/letters/b": "damaged",
        "write/letters/c": "done",
        "join/all": "again",
        "join/lefts": "again",
    }
    study.submit()
    assert study.ran() == ["letters/b"]  # it came out the same, so its users are kept
    assert set(study.states().values()) == {"done"}


def test_users_run_again_if_an_input_comes_out_different(study: Study) -> None:
    study.submit()
    study.ran()
    output = study.run / "1_write/b.txt"
    digest = output.read_text().partition("\n")[0]
    ledger = Ledger(study.run)
    marker = ledger.marker("write", "letters/b", digest)
    assert marker is not None
    output.write_text(f"{digest}\nzz")  # as a nondeterministic task might
    stage, task = study.assess()["write/letters/b"], study.assess()["write/letters/b"].task
    assert stage.state == "damaged"
    from tests.hpc import toy

    ledger.finished(
        toy.build(study.values)[0],
        task,
        digest,
        inputs={},
        input_fingerprints={},
        parts=dict(marker.parts),
        counts={},
        started=time.time(),
        seconds=0.0,
    )
    reason = study.assess()["join/all"].reason
    assert reason == "its input write/letters/b was made again and came out different"
    study.submit()
    assert study.ran() == ["all", "lefts"]


def test_a_touched_output_is_read_and_kept(study: Study) -> None:
    study.submit()
    os.utime(study.run / "1_write/b.txt", ns=(0, 0))
    assert set(study.states().values()) == {"done"}


def test_thorough_finds_damage_that_size_and_time_hide(study: Study) -> None:
    study.submit()
    output = study.run / "1_write/b.txt"
    status = output.stat()
    output.write_text(output.read_text()[:-1] + "!")
    os.utime(output, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert set(study.states().values()) == {"done"}
    assert study.assess(thorough=True)["write/letters/b"].state == "damaged"


def test_a_failing_task_stops_neither_its_neighbours_nor_strangers(
    study: Study, execute: Any
) -> None:
    study.texts["b"] = "fail"
    study.words["no_b"] = ["write/letters/a", "write/letters/c"]
    reporter = Quiet()
    undone = study.submit(execute, reporter)
    assert undone == ["write/letters/b", "join/all", "join/lefts"]
    assert reporter.failed == ["letters/b"]
    assert reporter.blocked == ["all", "lefts"]
    assert study.states()["join/no_b"] == "done"
    attempt = Ledger(study.run).attempt("write", "letters/b")
    assert attempt is not None
    assert attempt["error"] == "ValueError: letters/b: this text always fails"
    assert "Traceback" in attempt["traceback"]
    study.ran()
    study.texts["b"] = "cd"
    assert study.submit(execute) == []
    assert study.ran() == ["all", "lefts", "letters/b"]
    assert Ledger(study.run).attempt("write", "letters/b") is None


def test_the_rest_of_a_task_runs_beside_the_next(study: Study) -> None:
    study.texts.update(a="later", b="later fails", c="cd")
    plan = study.plan(at_once=1)
    assert list(map(list, plan.stages[0].elements)) == [["letters/a", "letters/b", "letters/c"]]
    with pytest.raises(TasksFailed, match="1 of 3 write tasks failed: letters/b"):
        Worker(plan.path, "write", 0)(JobRecord(cluster="inline"))
    assert (study.run / "order.log").read_text().splitlines() == [
        "letters/a starts, upcoming letters/b",
        "letters/b starts, upcoming letters/c",
        "letters/a written",  # before b's rest begins: only one waits
        "letters/c starts, upcoming None",
        "letters/c written",
    ]
    states = study.states()
    assert states["write/letters/a"] == states["write/letters/c"] == "done"
    attempt = Ledger(study.run).attempt("write", "letters/b")
    assert attempt is not None
    assert attempt["error"] == "ValueError: letters/b: the rest of this text fails"
    study.texts["b"] = "later"
    assert study.submit(run_inline) == []  # nothing is left locked


def test_a_job_that_is_killed_is_seen_and_the_rest_goes_on(study: Study) -> None:
    study.texts = {"a": "die", "b": "cd", "c": "ef"}
    reporter = Quiet()
    plan = study.plan(at_once=3)
    undone = run_local(plan, reporter, lambda stage: {})
    assert undone == ["write/letters/a", "join/all", "join/lefts"]
    assert study.states()["write/letters/b"] == "done"


def test_local_logs_survive_and_name_the_task(study: Study) -> None:
    study.texts["b"] = "fail"
    study.submit(run_local)
    attempt = Ledger(study.run).attempt("write", "letters/b")
    assert attempt is not None
    log = Path(attempt["log"])
    assert log.is_relative_to(study.run / "logs" / "write")
    assert "letters/b: FAILED" in log.read_text()
    study.submit(run_local)
    assert "letters/b: FAILED" in log.read_text()  # of the first attempt, still


@pytest.mark.parametrize("victim", ["command", "job"])
def test_kill_9_then_the_same_command(study: Study, victim: str) -> None:
    study.texts["b"] = "slow"
    code = (
        "import sys; from pathlib import Path\n"
        "from tests.hpc.conftest import Study; from hpc.executors import run_local\n"
        "study = Study(Path(sys.argv[1])); study.texts['b'] = 'slow'; study.submit(run_local)\n"
    )
    command = subprocess.Popen([sys.executable, "-c", code, str(study.run)])
    ledger = Ledger(study.run)
    _wait(lambda: (ledger.attempt("write", "letters/b") or {}).get("state") == "running")
    # The record is written before the task begins, and the task is to have run twice.
    log = study.run / "runs.log"
    _wait(lambda: log.exists() and "letters/b" in log.read_text().split())
    attempt = ledger.attempt("write", "letters/b")
    assert attempt is not None
    os.kill(command.pid if victim == "command" else attempt["pid"], signal.SIGKILL)
    command.wait()
    # The job of a killed command lives on: its task is waited for, not done twice.
    assert study.submit(run_local) == []
    assert study.ran().count("letters/b") == (1 if victim == "command" else 2)
    assert set(study.states().values()) == {"done"}
    assert list(study.run.rglob("*.tmp*")) == []


@pytest.mark.parametrize("deaf", [False, True], ids=["terminal", "background"])
def test_an_exception_in_the_driver_ends_its_jobs(study: Study, deaf: bool) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN) if deaf else None
    study.texts["b"] = "slow"
    reporter, ledger = Quiet(), Ledger(study.run)

    def interrupt() -> None:
        if ledger.attempt("write", "letters/b"):
            raise KeyboardInterrupt

    reporter.polls.append(interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            study.submit(run_local, reporter)
    finally:
        if deaf:
            signal.signal(signal.SIGINT, before)
    _wait(lambda: not ledger.is_locked("write", "letters/b"))
    assert study.states()["write/letters/b"] == "missing"


def test_never_more_jobs_than_the_machine_has_room_for() -> None:
    room = Room(cpus=8, memory_gb=16, gpus=(0, 1))
    assert room.at_once(Resources(cpus=2)) == 4
    assert room.at_once(Resources(cpus=1, memory_gb=5)) == 3
    assert room.at_once(Resources(gpus=1)) == 2
    assert room.at_once(room.clamp(Resources(cpus=64, memory_gb=500))) == 1
    with pytest.raises(ValueError, match="4 GPUs a job are asked for and this machine shows 2"):
        room.clamp(Resources(gpus=4))


def test_a_job_computes_with_as_many_threads_as_it_has_cores() -> None:
    before = dict(os.environ)
    with job_environment(Resources(cpus=3), {"COLOUR": "blue"}):
        assert os.environ["OMP_NUM_THREADS"] == "3"
        assert os.environ["COLOUR"] == "blue"
    assert dict(os.environ) == before


def _wait(condition: Any, seconds: float = 20) -> None:
    ends = time.time() + seconds
    while not condition():
        assert time.time() < ends, "waited in vain"
        time.sleep(0.02)
