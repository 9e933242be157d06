"""What would stop a training, found before it starts: shards, samples, precision, disk, ..."""

from __future__ import annotations

import argparse
import importlib.util
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

from hpc.words import count
from pipeline.training.data import PIPE
from pipeline.training.options import trackers_in
from pipeline.training.schedule import Schedule

_STATES = 3
"""Numbers a weight in a checkpoint: itself, and AdamW's two moments."""
_BYTES = 4
_AT_ONCE = 4
"""Checkpoints on disk at the end: the last but one, the last, and two that are being written."""


def check_trackers(report_to: str) -> None:
    """Check that what `report-to` names is installed.

    Raises:
        ValueError: a package is absent, or as `trackers_in`.
    """
    for package in trackers_in(report_to):
        if importlib.util.find_spec(package) is None:
            raise ValueError(
                f"report-to: {report_to}: the package {package} is not installed here: "
                f"pip install {package}, or leave report-to out (curve.csv is always kept)"
            )


def check_shards(shards: Sequence[Path | str], schedule: Schedule, *, resampled: bool) -> None:
    """webdataset would skip a missing shard, and ranks without a shard would wait for ever.

    Raises:
        ValueError: there are fewer shards than workers, or one is missing.
    """
    if len(shards) < schedule.readers and not resampled:
        raise ValueError(
            f"{len(shards)} shards for {schedule.workers} workers on each of "
            f"{schedule.processes} ranks: expected {schedule.readers} shards or more (a lower "
            "training.samples_per_shard), or fewer workers (training.workers)"
        )
    for shard in shards:
        if isinstance(shard, str):
            if not shard.startswith(PIPE):
                raise ValueError(f"{shard}: expected a path, or a URL that begins with {PIPE!r}")
        elif not shard.is_file():
            raise ValueError(f"{shard}: no such shard")


def check_samples(schedule: Schedule) -> None:
    """Compare an epoch with the least that all workers read.

    Raises:
        ValueError: an epoch has fewer samples than one batch for each worker, which open_clip_train
            would round up, or fewer batches than one step accumulates.
    """
    least = schedule.batch_size * schedule.readers
    if schedule.samples < least:
        raise ValueError(
            f"an epoch of {schedule.samples:,} samples is less than one batch of "
            f"{schedule.batch_size} for each of {count(schedule.readers, 'worker')} "
            f"({schedule.processes} ranks x {max(1, schedule.workers)}), {least:,} samples: "
            "expected training.samples_per_epoch to be that or more, a smaller batch, or fewer "
            "workers"
        )
    if schedule.batches < schedule.accumulated:
        raise ValueError(
            f"an epoch of {count(schedule.batches, 'batch', 'batches')} has no whole step: "
            f"accum-freq is {schedule.accumulated}; expected {schedule.batches} or less, or a "
            "larger training.samples_per_epoch"
        )


def check_precision(precision: str, device: str) -> None:
    """Whether a device computes in a precision.

    Raises:
        ValueError: it does not, or would emulate it.
    """
    if device == "cpu":
        if precision in ("fp16", "pure_fp16"):
            raise ValueError(
                f"precision {precision} is for GPUs, and this training runs on the CPU: expected "
                "fp32, amp_bf16 or bf16"
            )
        return
    import torch

    if "bf16" not in precision and "bfloat16" not in precision:
        return
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        name = torch.cuda.get_device_name()
        raise ValueError(
            f"precision {precision}: {name} has no bfloat16 (from Ampere on, such as A100): "
            "expected amp or fp32"
        )


def checkpoint_bytes(model: str) -> int:
    """About how large a checkpoint is: every weight, with AdamW's state, in float32.

    Args:
        model: a name that open_clip knows. Nothing is allocated for it.
    """
    import open_clip
    import torch

    logging.disable(logging.WARNING)  # of weights that are not loaded
    try:
        with torch.device("meta"):
            made = open_clip.create_model(
                model, load_weights=False, pretrained_hf=False, device="meta"
            )
    finally:
        logging.disable(logging.NOTSET)
    return _STATES * _BYTES * sum(weight.numel() for weight in made.state_dict().values())


def check_disk(folder: Path, checkpoint: int) -> None:
    """Compare the room in a file system with the checkpoints of a training.

    Args:
        folder: of the training; it may be absent.
        checkpoint: bytes of one checkpoint.

    Raises:
        ValueError: there is too little room. A quota is not seen.
    """
    there = next(one for one in (folder, *folder.parents) if one.exists())
    own = {path.stat().st_ino: path.stat().st_size for path in folder.glob("checkpoints/*.pt")}
    needed = max(0, _AT_ONCE * checkpoint - sum(own.values()))
    free = shutil.disk_usage(there).free
    if free < needed:
        raise ValueError(
            f"{there}: {free / 1e9:.1f} GB are free in this file system, but a training needs "
            f"{needed / 1e9:.1f} GB for its checkpoints ({_AT_ONCE} of {checkpoint / 1e9:.2f} GB "
            "at once): make room, or set `runs` to another file system"
        )


def check(
    *, schedule: Schedule, shards: Sequence[Path | str], folder: Path, model: str, device: str,
    values: argparse.Namespace,
) -> None:  # fmt: skip
    """Check all of it; the errors are of the functions above.

    Args:
        schedule: the training's numbers.
        shards: its tars.
        folder: its working folder.
        model: its model, by the name that open_clip knows.
        device: "cpu", "cuda" or "cuda:N".
        values: open_clip_train's options.
    """
    check_trackers(values.report_to)
    check_shards(shards, schedule, resampled=values.dataset_resampled)
    check_samples(schedule)
    check_precision(values.precision, device)
    check_disk(folder, checkpoint_bytes(model))
