from __future__ import annotations

from dataclasses import replace

import pytest

from hpc.ledger import Ledger
from hpc.status import LOST, StageStatus, survey, watch
from hpc.words import clock
from tests.hpc.conftest import Study


def _attempt(done: int, total: int, started: float) -> dict[str, object]:
    return {"started": started, "progress": {"done": done, "total": total, "unit": "images"}}


def test_rate_and_time_left_of_running_tasks() -> None:
    running = [_attempt(50, 100, 0.0), _attempt(25, 100, 5.0)]
    status = StageStatus("embed", total=4, done=0, running=running)
    assert status.fraction == pytest.approx(0.75 / 4)
    assert status.rate(now=10.0) == "10 images/s"
    # 15 s of work did 0.75 tasks, so each takes 20 s; 3.25 tasks are left for 2 jobs.
    assert status.seconds_left(now=10.0) == pytest.approx(20 * 3.25 / 2)


def test_time_left_is_unknown_before_anything_moves() -> None:
    status = StageStatus("embed", total=2, running=[_attempt(0, 0, 0.0)])
    assert status.seconds_left(now=5.0) is None
    assert clock(None) == "?"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (61.4, "1:01"), (3600, "1:00:00"), (90061, "25:01:01")]
)
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_survey_counts_every_task_once(study: Study) -> None:
    study.submit()
    study.texts.update(b="fail", d="gh")
    study.words["all"].append("write/letters/d")
    study.submit()
    ledger = Ledger(study.run)
    write, join = survey(study.assess(), ledger, ["write", "join"], {}, 9.0)
    assert (write.total, write.done, list(write.failed)) == (4, 3, ["letters/b"])
    assert (join.total, join.done, join.stale, join.missing) == (2, 0, 2, 0)
    with ledger.lock("join", "all") as ours:
        assert ours
        digest = study.assess()["join/all"].digest
        progress = {"done": 1, "total": 2, "unit": "letters"}
        ledger.write_attempt(
            "join",
            "all",
            {
                "state": "running",
                "digest": digest,
                "started": 0.0,
                "progress": progress,
                "cpus": 3600,
            },
        )
        _, join = survey(study.assess(), ledger, ["write", "join"], {}, 9.0)
        assert (len(join.running), join.stale) == (1, 1)
    _, join = survey(study.assess(), ledger, ["write", "join"], {}, 9.0)
    assert (len(join.running), join.stale, list(join.failed)) == (0, 1, ["all"])
    assert join.failed["all"]["state"] == LOST  # its process is gone
    assert join.hours("cpus", 9.0)[0] < 0.01  # nobody knows when


def test_hours_count_each_attempt_with_what_its_own_job_had(study: Study) -> None:
    study.submit()
    ledger = Ledger(study.run)
    item = study.assess()["write/letters/a"]
    assert item.marker is not None
    earlier = [
        {"state": "failed", "started": 0.0, "ended": 1800.0, "cpus": 8, "gpus": 2},
        {"state": "cut off", "started": 0.0, "cpus": 8, "gpus": 2},  # nobody knows until when
    ]
    ran_on = {**item.marker.ran_on, "cpus": 1, "gpus": 0, "earlier": earlier}
    ledger.write_marker("write", replace(item.marker, ran_on=ran_on, seconds=3600.0))
    write, _ = survey(study.assess(), ledger, ["write", "join"], {}, 9.0)
    assert write.hours("gpus", 9.0)[0] == pytest.approx(1.0)
    assert write.hours("cpus", 9.0)[0] == pytest.approx(5.0, abs=0.01)


def test_watching_goes_by_finished_tasks_when_others_have_hardly_begun(study: Study) -> None:
    study.submit()
    digests = {i.task.name: i.digest for i in study.assess().values() if i.stage == "write"}
    ledger = Ledger(study.run)
    for letter in "ab":
        marker = ledger.marker("write", f"letters/{letter}", digests[f"letters/{letter}"])
        assert marker is not None
        ledger.write_marker("write", replace(marker, started=50.0, seconds=20.0))
    ledger.marker_path("write", "letters/c", digests["letters/c"]).unlink()
    running = {"state": "running", "digest": digests["letters/c"], **_attempt(1, 1000, 70.0)}
    ledger.write_attempt("write", "letters/c", running)
    finished: dict[str, float] = {}
    for _ in range(2):
        status = watch("write", digests, ledger, 50.0, finished)
        assert (status.done, len(status.running), status.missing) == (2, 1, 0)
        assert status.seconds_left(now=80.0) == pytest.approx(20, rel=0.01)
    assert set(finished) == {"letters/a", "letters/b"}
    assert (
        watch("write", digests, ledger, 60.0, {}).mean_seconds is None
    )  # of an earlier submission
