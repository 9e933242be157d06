"""A job's log: attempts kept apart, and the lines of one task."""

from __future__ import annotations

from pathlib import Path

from hpc import joblog
from tests.hpc.fake_slurm import TIME_LIMIT, heading, starts


def test_each_attempt_and_each_task_has_its_own_lines(tmp_path: Path) -> None:
    log = tmp_path / "12_0_0_log.out"
    lines = [
        "module loaded", heading(0), "write: 2 tasks on node1", starts("a"), "a1", starts("b"),
        "b1", TIME_LIMIT, "submitit INFO (2026-11-21) - Starting", heading(1),
        "2026-11-21 09:00:01 a: kept, its inputs are what it was made from", starts("b"), "b2",
    ]  # fmt: skip
    log.write_text("\n".join(lines))
    parts = [joblog.about(joblog.attempt_lines(log, n), "b") for n in (0, 1, None, 2)]
    assert parts == [[starts("b"), "b1", TIME_LIMIT], [starts("b"), "b2"], [starts("b"), "b2"], []]
    assert joblog.about(joblog.attempt_lines(log, 0), "a") == [starts("a"), "a1"]
    assert joblog.last_restart(log) == 1


def test_a_log_that_says_a_thing_twice_is_shown_once() -> None:
    lines = ["x: FAILED", "ValueError: no", "submitit ERROR (2026) - Submitted job triggered",
             "Traceback (most recent call last):", '  File "worker.py"',
             "hpc.worker.TasksFailed: 1 of 1 failed: x", "srun: error: exited"]  # fmt: skip
    assert joblog.without_repetition(lines) == [
        "x: FAILED",
        "ValueError: no",
        "srun: error: exited",
    ]
    assert joblog.without_repetition(lines[2:5]) == lines[2:5]  # another error: nobody told it yet
