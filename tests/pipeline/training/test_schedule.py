"""Samples, batches, steps and parts: open_clip_train's numbers, and what a user is told of wrong ones."""

from __future__ import annotations

from typing import Any

import pytest

from hpc.stage import Resources
from pipeline.experiment.sections import Training
from pipeline.training.global_batch import batch_of, check_training
from pipeline.training.schedule import Schedule


def schedule(**numbers: Any) -> Schedule:
    return Schedule(**{"samples": 8000, "epochs": 4, "batch_size": 64, **numbers})


@pytest.mark.parametrize(
    ("numbers", "batches", "epoch_samples", "steps"),
    [
        ({}, 125, 8000, 500),
        ({"samples": 8001}, 126, 8064, 504),
        ({"workers": 4}, 128, 8192, 512),
        ({"workers": 0}, 125, 8000, 500),
        ({"processes": 2, "workers": 3}, 63, 8064, 252),
        ({"accumulated": 2}, 125, 8000, 248),
    ],
)
def test_an_epoch_is_whole_batches_of_all_workers(
    numbers: dict[str, int], batches: int, epoch_samples: int, steps: int
) -> None:
    made = schedule(**numbers)
    assert (made.batches, made.epoch_samples, made.steps) == (batches, epoch_samples, steps)


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("workers", [0, 1, 2, 5])
@pytest.mark.parametrize("accumulated", [1, 2, 3])
@pytest.mark.parametrize("samples", [100, 960, 961, 5000])
def test_parts_change_neither_samples_nor_steps(
    processes: int, workers: int, accumulated: int, samples: int
) -> None:
    whole = schedule(
        samples=samples, batch_size=4, processes=processes, workers=workers, accumulated=accumulated
    )
    for parts in whole.possible_parts():
        cut = whole.divided(parts)
        # What open_clip_train makes of a part that it takes for an epoch.
        epoch = schedule(
            samples=cut.part_samples,
            epochs=cut.checkpoints,
            batch_size=4,
            processes=processes,
            workers=workers,
            accumulated=accumulated,
        )
        assert epoch.epoch_samples * parts == whole.epoch_samples
        assert epoch.steps == whole.steps


def test_the_fewest_parts_that_are_small_enough() -> None:
    assert [schedule().cut(every).parts for every in (10**9, 8000, 2000, 1600, 640, 512)] == [
        1, 1, 5, 5, 25, 25,
    ]  # fmt: skip


def test_a_division_that_comes_nowhere_near_is_refused_with_those_that_are_possible() -> None:
    with pytest.raises(ValueError) as told:
        schedule().cut(1500)
    assert str(told.value) == (
        "checkpoint_every: 1,500 samples: an epoch of 8,000 samples is 125 batches of 64 for each "
        "of 1 worker, which can be cut into equal parts of 64, 320, 1,600, 8,000 samples: expected "
        "one of these, or up to twice as many. With samples_per_epoch: 8,064 parts of 1,344 samples "
        "are possible, too"
    )
    assert schedule(samples=8064).cut(1500).part_samples == 1344
    with pytest.raises(ValueError, match="into equal parts of 8,000 samples"):
        schedule(accumulated=2).cut(4000)  # 125 batches are no whole steps of two


def training(**values: Any) -> Training:
    return Training(model="ViT-B-32", epochs=2, **values)


ON_8 = Resources(nodes=2, processes=4)


def test_a_share_of_the_global_batch() -> None:
    assert batch_of(training(global_batch=4096), 8, "") == 512
    assert batch_of(training(global_batch=4096, options={"accum-freq": 4}), 8, "") == 128
    assert batch_of(training(global_batch=4096, batch_size=512), 8, "") == 512
    assert batch_of(training(batch_size=7), 8, "") == 7
    check_training(training(global_batch=4096), ON_8, "a100")


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (
            {"global_batch": 4096, "batch_size": 256},
            r"4096 samples a step are declared, but profile a100: 2 nodes x 4 processes x batch_size "
            r"256 x accum-freq 1 make 2048: expected training\.global_batch: 2048 or "
            r"training\.batch_size: 512 or 16 processes in the site profile or the option "
            "accum-freq: 2",
        ),
        (
            {"global_batch": 4096, "batch_size": 100},
            r"make 800: expected training\.global_batch: 800 or training\.batch_size: 512$",
        ),
        (
            {"global_batch": 100},
            r"100 samples a step can't be shared out equally to 8 processes x accum-freq 1: expected "
            "a multiple of 8, such as 96 or 104",
        ),
        (
            {"batch_size": 64, "samples_per_epoch": 64 * 8 * 13, "checkpoint_every": 2000},
            "checkpoint_every: 2,000 samples: an epoch of 6,656 samples is 13 batches of 64 for each "
            "of 8 workers",
        ),
    ],
)
def test_numbers_that_do_not_fit_the_profile(values: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        check_training(training(**values), ON_8, "a100")


def test_a_batch_is_needed() -> None:
    with pytest.raises(
        ValueError, match=r"expected batch_size \(of one process\), or global_batch"
    ):
        training()
