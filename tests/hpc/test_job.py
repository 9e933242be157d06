"""What a job does when Slurm signals it, by a fake scontrol that says what the test tells it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hpc import slurm
from hpc.job import _Signals
from hpc.plan import StagePlan
from hpc.stage import Resources
from hpc.worker import Interrupted

FakeScontrol = Callable[[str], Path]


@pytest.fixture
def fake_scontrol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeScontrol:
    def show(state: str) -> Path:
        calls = tmp_path / "calls"
        script = tmp_path / "bin" / "scontrol"
        script.parent.mkdir()
        script.write_text(
            f'#!/bin/sh\necho "$*" >> {calls}\n'
            f'[ "$1" = requeue ] || echo "JobId=12 JobName=x JobState={state} EndTime=Unknown"\n'
        )
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")
        monkeypatch.setenv("SLURM_JOB_ID", "12")
        return calls

    return show


@pytest.fixture(autouse=True)
def handlers_are_given_back() -> Iterator[None]:
    numbers = (signal.SIGUSR2, signal.SIGTERM, signal.SIGCHLD)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def terminated(restart: int = 0) -> Interrupted:
    plan = StagePlan(
        stage="write", resources=Resources(), elements=[["a"]], at_once=1, max_requeues=2
    )
    signals = _Signals(restart, plan)
    signals.listen()
    with pytest.raises(Interrupted) as caught:
        os.kill(os.getpid(), signal.SIGTERM)
    assert signals.told.is_set()
    return caught.value


@pytest.mark.parametrize("state", ["RUNNING", "SIGNALING", "RESIZING"])
def test_a_warning_while_slurm_is_still_signalling_puts_the_job_back(
    fake_scontrol: FakeScontrol, state: str
) -> None:
    calls = fake_scontrol(state)
    assert "it was requeued 2 times before" in str(terminated(restart=2))
    assert "it is in the queue again" in str(terminated())
    assert "requeue 12" in calls.read_text().splitlines()


@pytest.mark.parametrize("state", ["COMPLETING", "CANCELLED", "TIMEOUT"])
def test_a_job_that_slurm_has_ended_is_not_put_back(
    fake_scontrol: FakeScontrol, state: str
) -> None:
    calls = fake_scontrol(state)
    assert str(terminated()) == "ended by Slurm"
    assert "requeue" not in calls.read_text()


def test_states_in_which_a_job_has_its_processes() -> None:
    states = ("PENDING", "RUNNING", "SIGNALING", "COMPLETING", "COMPLETED", "STAGE_OUT")
    assert [state for state in states if slurm.is_running(state)] == ["RUNNING", "SIGNALING"]
