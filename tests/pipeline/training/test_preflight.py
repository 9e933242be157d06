"""What would stop a training is found before it starts, with numbers and what to do."""

from __future__ import annotations

import importlib.util
from collections import namedtuple
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch

from pipeline.training import preflight
from pipeline.training.preflight import (
    check_disk,
    check_precision,
    check_samples,
    check_shards,
    check_trackers,
    checkpoint_bytes,
)
from pipeline.training.schedule import Schedule
from tests.pipeline.training.test_train import finished, no_look_ups, run, world

__all__ = ["finished", "no_look_ups", "world"]  # fixtures
Usage = namedtuple("Usage", "total used free")


def schedule(**numbers: Any) -> Schedule:
    return Schedule(**{"samples": 100, "epochs": 1, "batch_size": 10, **numbers})


def test_fewer_shards_than_workers(tmp_path: Path) -> None:
    shards = [tmp_path / f"{number}.tar" for number in range(7)]
    for shard in shards:
        shard.touch()
    check_shards(shards, schedule(workers=7), resampled=False)
    check_shards(shards, schedule(workers=4, processes=2), resampled=True)
    with pytest.raises(ValueError, match="7 shards for 4 workers on each of 2 ranks: expected 8"):
        check_shards(shards, schedule(workers=4, processes=2), resampled=False)


def test_an_epoch_that_is_less_than_a_batch_for_each_worker() -> None:
    check_samples(schedule(workers=5, processes=2))
    with pytest.raises(
        ValueError, match=r"of 100 samples is less than one batch of 10 for each of 12 workers "
        r"\(2 ranks x 6\), 120 samples",
    ):  # fmt: skip
        check_samples(schedule(workers=6, processes=2))
    with pytest.raises(ValueError, match="10 batches has no whole step: accum-freq is 16"):
        check_samples(schedule(accumulated=16))


def test_a_precision_that_the_device_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    for precision in ("fp32", "amp_bf16", "bf16"):
        check_precision(precision, "cpu")
    with pytest.raises(ValueError, match=r"precision pure_fp16 is for GPUs, .* on the CPU"):
        check_precision("pure_fp16", "cpu")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla V100")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    check_precision("amp", "cuda")
    with pytest.raises(ValueError, match="precision amp_bf16: Tesla V100 has no bfloat16"):
        check_precision("amp_bf16", "cuda")


def test_room_for_the_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _: Usage(0, 0, 10**10))
    folder = tmp_path / "not" / "yet"
    check_disk(folder, 2_500_000_000)
    with pytest.raises(
        ValueError, match=r"10\.0 GB are free .* needs 12\.0 GB for its checkpoints \(4 of 3\.00 GB"
    ):
        check_disk(folder, 3_000_000_000)
    (folder / "checkpoints").mkdir(parents=True)
    for name in ("epoch_latest.pt", "kept_1.pt"):
        with (folder / "checkpoints" / name).open("wb") as file:
            file.truncate(1_500_000_000)
    check_disk(folder, 3_000_000_000)  # a resume has some of it


def test_the_size_of_a_checkpoint_is_known_before(finished: Path) -> None:
    estimated, real = checkpoint_bytes("mini-effnet-48"), finished.stat().st_size
    assert abs(estimated / real - 1) < 0.05
    model = open_clip.create_model("mini-effnet-48", load_weights=False)
    assert estimated == 12 * sum(one.numel() for one in model.state_dict().values())


def test_a_tracker_that_is_not_installed(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    check_trackers("")
    for report_to, package in (("tensorboard", "tensorboard"), ("wandb", "wandb"), ("all", "")):
        told = f"report-to: {report_to}: the package {package}.* is not installed here: pip install"
        with pytest.raises(ValueError, match=told):
            check_trackers(report_to)
    with pytest.raises(ValueError, match="the package tensorboard is not installed"):
        run(world, tmp_path / "run", **{"report-to": "tensorboard"})
    assert not (tmp_path / "run").exists()
