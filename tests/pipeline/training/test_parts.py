"""Trainings with parts of an epoch, cut off and gone on with: the same schedule, the same samples."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from open_clip_train import data

from hpc.files import read_json
from pipeline.training.checkpoints import keep_one_before, take_newest_whole
from pipeline.training.curve import read_curve
from pipeline.training.options import parse
from pipeline.training.order import reproducible_data
from pipeline.training.schedule import Schedule
from tests.pipeline.small import sample, write_tar
from tests.pipeline.training.test_train import (
    assert_same_weights,
    finished,
    load,
    no_look_ups,
    run,
    world,
)

__all__ = ["finished", "no_look_ups", "world"]  # fixtures


def curve_of(checkpoint: Path) -> list[tuple[int, int, float, float]]:
    points = read_curve(checkpoint.parents[1] / "curve.csv")
    return [(one.epoch, one.samples, one.learning_rate, one.loss) for one in points]


def test_parts_change_neither_the_schedule_nor_the_samples_nor_the_weights(
    world: Path, finished: Path, tmp_path: Path
) -> None:
    in_parts = run(world, tmp_path / "parts", checkpoint_every=32)
    assert load(in_parts)["epoch"] == 4  # parts
    assert read_json(tmp_path / "parts" / "division.json") == {"parts": 2}
    assert curve_of(in_parts) == curve_of(finished)
    assert [samples for _, samples, _, _ in curve_of(finished)] == list(range(16, 129, 16))
    rates = [rate for _, _, rate, _ in curve_of(finished)]
    assert rates[:2] == [0.002, 0.004] and sorted(rates[1:], reverse=True) == rates[1:]
    assert_same_weights(in_parts, finished)


def test_a_curve_goes_on_over_kill_9_and_the_newest_checkpoint_counts(
    world: Path, finished: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "killed"
    code = (
        "import os, sys; from pathlib import Path\n"
        "from tests.pipeline.training.test_train import run\n"
        "def die(done, total):\n"
        "    if done == 128: os.kill(os.getpid(), 9)\n"
        "run(Path(sys.argv[1]), Path(sys.argv[2]), checkpoint_every=32, on_progress=die)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(world), str(folder)])
    assert done.returncode == -signal.SIGKILL
    checkpoints = folder / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == [
        "epoch_latest.pt", "kept_2.pt", "kept_3.pt",
    ]  # fmt: skip
    assert "[16/32" in (folder / "out.log").read_text().splitlines()[-1]  # of part 4, lost
    seen: list[int] = []
    # A division is kept: the setting is another, the training is the same.
    checkpoint = run(world, folder, checkpoint_every=None, on_progress=lambda n, _: seen.append(n))
    assert seen == [112, 128]
    log = (folder / "out.log").read_text()
    assert "2 epochs of 64 samples in 2 parts, 8 steps of 16 samples; goes on after 96" in log
    again, whole = curve_of(checkpoint), curve_of(finished)
    assert [row[:3] for row in again] == [row[:3] for row in whole]
    assert again[:6] == whole[:6]
    assert [path.name for path in checkpoints.iterdir()] == ["epoch_latest.pt"]


def stop_after(samples: int) -> Any:
    def act(done: int, total: int) -> None:
        if done > samples:
            raise KeyboardInterrupt

    return act


@pytest.fixture(scope="module")
def cut_off(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoints of a training of three epochs of a batch, stopped in the third."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("HF_HUB_OFFLINE", "1")
        folder = tmp_path_factory.mktemp("cut") / "run"
        with pytest.raises(KeyboardInterrupt):
            run(world, folder, **THREE, on_progress=stop_after(32))
        return folder


THREE: dict[str, Any] = {"epochs": 3, "train-num-samples": 16}


@pytest.fixture
def work(cut_off: Path, tmp_path: Path) -> Path:
    """A copy of a training that was cut off."""
    for path in cut_off.rglob("*"):
        if path.is_file():
            target = tmp_path / "run" / path.relative_to(cut_off)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return tmp_path / "run"


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def test_a_truncated_newest_checkpoint_is_set_aside_and_the_one_before_is_used(
    world: Path, work: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    checkpoints = work / "checkpoints"
    names = ["epoch_latest.pt", "kept_1.pt", "kept_2.pt"]
    assert sorted(path.name for path in checkpoints.iterdir()) == names
    for name in ("epoch_latest.pt", "kept_2.pt"):  # two names of one file
        truncate(checkpoints / name)
    seen: list[int] = []
    checkpoint = run(world, work, **THREE, on_progress=lambda done, _: seen.append(done))
    assert load(checkpoint)["epoch"] == 3
    assert seen == [32, 48]
    warnings = [line for line in capfd.readouterr().out.splitlines() if "warning" in line]
    assert len(warnings) == 2
    assert "epoch_latest.pt: cut off: " in warnings[0]
    assert "set aside as epoch_latest.damaged, going on from kept_1.pt, the one" in warnings[0]
    log = (work / "out.log").read_text()
    assert all(line in log for line in warnings)
    assert [row[1] for row in curve_of(checkpoint)] == [16, 32, 48]


def test_without_a_whole_checkpoint_nothing_trains_from_scratch(world: Path, work: Path) -> None:
    for path in (work / "checkpoints").iterdir():
        truncate(path)
    with pytest.raises(ValueError, match=r"no whole checkpoint.*To begin anew, remove .*run$"):
        run(world, work, **THREE)


def test_weights_that_are_no_numbers_are_not_gone_on_with(work: Path) -> None:
    import torch

    content = load(work / "checkpoints" / "epoch_latest.pt")
    next(iter(content["state_dict"].values())).fill_(float("nan"))
    torch.save(content, work / "checkpoints" / "epoch_latest.pt")
    told: list[str] = []
    (work / "checkpoints" / "kept_2.pt").unlink()
    assert take_newest_whole(work / "checkpoints", 3, told.append) == 1
    assert len(told) == 1 and "not finite" in told[0]


def test_what_was_being_written_at_a_kill_is_no_damage(work: Path) -> None:
    checkpoints, told = work / "checkpoints", list[str]()
    (checkpoints / "tmp.pt").write_bytes(b"cut off")
    (checkpoints / "epoch_3.pt").write_bytes(b"cut off")
    assert take_newest_whole(checkpoints, 3, told.append) == 2
    for path in checkpoints.glob("*.pt"):
        path.unlink()
    (checkpoints / "epoch_1.pt").write_bytes(b"cut off")
    assert take_newest_whole(checkpoints, 1, told.append) == 0
    assert told == []


def test_the_one_before_the_last_is_kept(tmp_path: Path) -> None:
    latest = tmp_path / "epoch_latest.pt"
    for epoch in range(1, 5):
        keep_one_before(tmp_path, epoch - 1)
        latest.unlink(missing_ok=True)
        latest.write_text(str(epoch))
    keep_one_before(tmp_path, 4)
    kept = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert kept == {"epoch_latest.pt": "4", "kept_3.pt": "3", "kept_4.pt": "4"}


@pytest.fixture(scope="module")
def captions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("captions")
    for tar in range(3):
        members = []
        for number in range(20):
            key = f"{tar}{number:03d}"
            members += sample(key, "photo", number % 3, 100 * tar + number, caption=key)
        write_tar(folder / f"{tar:05d}.tar", members)
    return folder


def batches(captions: Path, schedule: Schedule, workers: int, first: int) -> Iterator[list[str]]:
    """The captions of each part that open_clip_train would see from part `first` on."""
    shards = "::".join(map(str, sorted(captions.glob("*.tar"))))
    settings: dict[str, Any] = {
        "batch-size": schedule.batch_size, "workers": workers, "seed": 5,
        "train-num-samples": schedule.part_samples,
    }  # fmt: skip
    values: argparse.Namespace = parse(settings)
    values.train_data, values.world_size = shards, 1
    with reproducible_data(schedule):
        info = data.get_wds_dataset(
            values, lambda image: 0, True, epoch=first, tokenizer=lambda text: [text]
        )
    for part in range(first, schedule.checkpoints):
        info.set_epoch(part)
        yield [caption for _, texts in info.dataloader for caption in texts]


@pytest.mark.parametrize("workers", [0, 2])
def test_parts_continue_the_order_of_an_epoch_and_so_does_a_resume(
    captions: Path, workers: int
) -> None:
    whole = Schedule(samples=48, epochs=2, batch_size=4, workers=workers)
    epochs = list(batches(captions, whole, workers, 0))
    assert [len(epoch) for epoch in epochs] == [48, 48] and epochs[0] != epochs[1]
    in_parts = whole.cut(16)
    assert in_parts.parts == 3
    parts = list(batches(captions, in_parts, workers, 0))
    assert [len(part) for part in parts] == [16] * 6
    assert [list(chain(*parts[:3])), list(chain(*parts[3:]))] == epochs
    for first in (1, 2, 4):
        assert list(batches(captions, in_parts, workers, first)) == parts[first:]
