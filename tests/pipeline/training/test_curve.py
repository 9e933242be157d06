"""The course of a training, from the log of all its attempts."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from pipeline.training.curve import points_of, read_curve, write_curve


def step(part: int, seen: int, loss: float, at: str = "2026-11-21,10:00:00") -> str:
    return (
        f"{at} | INFO | Train Epoch: {part} [{seen:>4}/1000 ({seen / 10:.0f}%)] Data (t): 0.001 "
        f"Batch (t): 0.250, 400.000/s, 400.000/s/gpu LR: 0.00012345678 Logit Scale: 14.286 "
        f"Contrastive_loss: {loss:#.5g} ({loss:#.5g}) Loss: {loss:#.5g} (9.9999)"
    )


def test_every_attempt_counts_and_what_was_lost_does_not() -> None:
    log = [
        "2026-11-21,09:59:59 | INFO | simgap: 2 epochs of 2,000 samples in 2 parts",
        step(0, 100, 5.0), step(0, 1000, 4.0),
        step(1, 100, 3.9), step(1, 500, 3.5),  # lost: killed before the part's checkpoint
        "2026-11-21,11:00:00 | INFO | simgap: goes on after 1,000",
        step(1, 100, 3.8), step(1, 1000, 3.0),
        step(2, 100, 2.9)[:90],  # cut off by a kill
        step(2, 100, 2.8),
    ]  # fmt: skip
    points = points_of(log, epoch_samples=2000)
    assert [(one.epoch, one.samples, one.loss) for one in points] == [
        (1, 100, 5.0), (1, 1000, 4.0), (1, 1100, 3.8), (1, 2000, 3.0), (2, 2100, 2.8),
    ]  # fmt: skip
    assert points[0].learning_rate == 0.00012345678
    assert (points[0].samples_per_second, points[0].batch_seconds) == (400, 0.25)
    assert points[0].logit_scale == 14.286


def test_going_on_from_the_checkpoint_before_the_last_drops_two_parts() -> None:
    log = [step(0, 1000, 4.0), step(1, 1000, 3.0), step(2, 100, 2.0), step(1, 100, 3.5)]
    assert [one.samples for one in points_of(log, 1000)] == [1000, 1100]


def test_times_are_utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "XXX-03")
    time.tzset()
    try:
        assert points_of([step(0, 100, 1.0)], 1000)[0].time == "2026-11-21T07:00:00Z"
    finally:
        monkeypatch.undo()
        time.tzset()


def test_written_and_read(tmp_path: Path) -> None:
    log, curve = tmp_path / "out.log", tmp_path / "curve.csv"
    assert write_curve(log, curve, 1000) == 0 and read_curve(curve) == []
    log.write_text("\n".join([step(0, 100, 5.0), step(0, 200, 4.0)]) + "\n")
    assert write_curve(log, curve, 1000) == 2
    assert curve.read_text().splitlines()[0] == (
        "epoch,samples,loss,learning_rate,samples_per_second,batch_seconds,time,logit_scale"
    )
    with log.open() as lines:
        assert read_curve(curve) == points_of(lines, 1000)
    curve.write_text(curve.read_text().replace("4.0", "four"))
    with pytest.raises(ValueError, match=r"curve\.csv: line 3: not a point of a curve: .*four"):
        read_curve(curve)
