"""CLIP training: open_clip_train, called in this process, and guarded.

open_clip_train trains; this module makes it reproducible and restartable, keeps its log in a file,
and turns what it would pass over in silence (a wrong option, an unreadable shard, an epoch without
samples, a loss that is no number) into errors. One training at a time in a process; one training
may be the work of many processes, which torch's environment variables (RANK, WORLD_SIZE, ...) join.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

from hpc.files import read_json, write_json
from pipeline.training import preflight
from pipeline.training.checkpoints import (
    LATEST,
    drop_redundant,
    keep_one_before,
    take_newest_whole,
)
from pipeline.training.curve import NAME as CURVE
from pipeline.training.curve import write_curve
from pipeline.training.data import StreamError
from pipeline.training.log import Progress, Watcher, own_log
from pipeline.training.options import arguments, parse
from pipeline.training.order import NoBatchError, reproducible_data
from pipeline.training.processes import check_device, joined, place
from pipeline.training.schedule import Schedule

_DIVISION = "division.json"
"""In a working folder: into how many parts its training cuts an epoch."""


def train(
    *,
    model: str,
    shards: Sequence[Path | str],
    folder: Path,
    options: Mapping[str, object],
    checkpoint_every: int | None = None,
    threads: int | None = None,
    on_progress: Progress | None = None,
    on_start: Callable[[], None] | None = None,
) -> Path:
    """Train a CLIP model from scratch, or go on from its last whole checkpoint.

    The same call with the same `folder` is the resume, after a kill at any instant; when the
    training had ended it returns at once. The order of the samples is a function of (seed, epoch),
    and on the CPU an uninterrupted training gives the same bits for the same number of threads.
    What open_clip says goes to `folder`/out.log and not to the caller's log handlers, and the
    course of the training to `folder`/curve.csv. The random generators of torch, numpy and Python
    are seeded anew.

    In a job of several processes rank 0 alone looks whether there is anything to do, writes the
    checkpoint and reports progress. The others must make the same call once `on_start` was called,
    and not if it wasn't; each has a log of its own, `folder`/out-<rank>.log. An epoch is
    `train-num-samples` rounded up to whole batches of all workers of all processes.

    Args:
        model: an open_clip model name, or the path of a JSON configuration.
        shards: WebDataset tars with a jpg, png or webp and a txt for each sample: paths, or `pipe:`
            URLs of commands that write a tar. A command that fails ends the training.
        folder: the working folder of this training and no other.
        options: open_clip_train's options (see `training_options`); `train-num-samples`, the
            samples of an epoch, is required.
        checkpoint_every: write a checkpoint after so many samples or somewhat fewer (see
            `Schedule.cut`), not only after each epoch. It changes neither the schedule nor the
            order of the samples; a training that has begun keeps the division it began with.
        threads: torch's threads while training; as they are if None.
        on_progress: called with (samples seen, samples in all) as often as open_clip_train logs.
        on_start: called on rank 0, once it is clear that there is something to train.

    Returns:
        The final checkpoint: a dict with epoch, name, state_dict, optimizer (and scaler). After a
        training in several processes the weights' names begin with "module.", as open_clip expects;
        of a training with parts, `epoch` counts those.

    Raises:
        ValueError: for a wrong option, missing or too few shards, what else
            `preflight.check` finds, or checkpoints in `folder` of which none is whole or
            that are not of this training.
        FloatingPointError: if the loss is no longer a number.
        RuntimeError: if the device is absent, an epoch ended early, open_clip_train gave up, the
            command of a `pipe:` URL failed, or another process of the job is gone.
    """
    values = parse(options)
    if values.train_num_samples is None:
        raise ValueError("train-num-samples, the samples of an epoch, is required")
    if "::" in str(folder.absolute()):
        raise ValueError(f"{folder}: open_clip_train can't write to a path with '::'")
    from pipeline.models import register_model, resolve_device

    name, device, rank = register_model(model), resolve_device(values.device), place()[0]
    check_device(device)
    folder = folder.absolute()
    schedule = schedule_in(folder, options, checkpoint_every)
    checkpoint, told = folder / "checkpoints" / LATEST, list[str]()
    if rank > 0 or (done := _finished(checkpoint, schedule, told)) < schedule.checkpoints:
        if rank == 0:
            preflight.check(
                schedule=schedule, shards=shards, folder=folder, model=name, device=device,
                values=values,
            )  # fmt: skip
            write_json(folder / _DIVISION, {"parts": schedule.parts})
            told.insert(0, _heading(schedule, done))
            if on_start:
                on_start()
        log = folder / (f"out-{rank}.log" if rank else "out.log")
        watcher = Watcher(schedule, on_progress, None if rank else _on_part(log, schedule))
        words = [*arguments(_in_parts(options, values, schedule)), *_own(name, shards, folder)]
        with (
            _curve_kept(log, schedule) if rank == 0 else nullcontext(),
            joined(device),
            _threads(threads),
            own_log(watcher, log, told),
            _own_trackers(folder),
            reproducible_data(schedule),
        ):
            _call(words, log)
        if rank == 0 and _finished(checkpoint, schedule, told) != schedule.checkpoints:
            raise RuntimeError(f"{folder}: open_clip_train ended early; see {log}")
    if rank == 0:
        drop_redundant(checkpoint)
    return checkpoint


def schedule_of(values: argparse.Namespace, processes: int) -> Schedule:
    """The numbers of a training by open_clip_train's options."""
    return Schedule(
        samples=values.train_num_samples,
        epochs=values.epochs,
        batch_size=values.batch_size,
        accumulated=values.accum_freq,
        processes=processes,
        workers=values.workers,
    )


def schedule_in(
    folder: Path, options: Mapping[str, object], checkpoint_every: int | None
) -> Schedule:
    """The numbers of the training of a folder, in this job of so many processes.

    Raises:
        ValueError: as `train`, of options and of `checkpoint_every`.
    """
    return _divided(schedule_of(parse(options), place()[1]), checkpoint_every, folder)


def _divided(schedule: Schedule, checkpoint_every: int | None, folder: Path) -> Schedule:
    """In the parts with which the training began, or else is to begin."""
    if (folder / _DIVISION).exists():
        return schedule.divided(int(read_json(folder / _DIVISION)["parts"]))
    if checkpoint_every is None or (folder / "checkpoints" / LATEST).exists():
        return schedule
    return schedule.cut(checkpoint_every)


def _finished(checkpoint: Path, schedule: Schedule, told: list[str]) -> int:
    """Parts that are done, by the newest whole checkpoint; what is set aside is told."""
    before = len(told)
    done = take_newest_whole(checkpoint.parent, schedule.checkpoints, told.append)
    for words in told[before:]:
        print(words, flush=True)  # into the job's log
    return done


def _heading(schedule: Schedule, done: int) -> str:
    parts = f" in {schedule.parts} parts" if schedule.parts > 1 else ""
    seen = f"goes on after {done * schedule.part_samples:,}" if done else "begins"
    return (
        f"simgap: {schedule.epochs} epochs of {schedule.epoch_samples:,} samples{parts}, "
        f"{schedule.steps:,} steps of {schedule.global_batch:,} samples; {seen}"
    )


def _in_parts(
    options: Mapping[str, object], values: argparse.Namespace, schedule: Schedule
) -> dict[str, object]:
    """Options by which open_clip_train takes each part for an epoch."""
    if schedule.parts == 1:
        return dict(options)
    counted = {"epochs": values.epochs, "val-frequency": values.val_frequency}
    if values.epochs_cooldown is not None:
        counted["epochs-cooldown"] = values.epochs_cooldown
    in_parts = {name: epochs * schedule.parts for name, epochs in counted.items()}
    return {**options, **in_parts, "train-num-samples": schedule.part_samples}


def _on_part(log: Path, schedule: Schedule) -> Callable[[int], None]:
    """What rank 0 does when a part begins, after the checkpoint of the part before."""

    def act(part: int) -> None:
        keep_one_before(log.parent / "checkpoints", part)
        write_curve(log, log.with_name(CURVE), schedule.epoch_samples)

    return act


@contextmanager
def _curve_kept(log: Path, schedule: Schedule) -> Iterator[None]:
    """Write the curve when the training ends, however it does; after a kill the next one will."""
    try:
        yield
    finally:
        write_curve(log, log.with_name(CURVE), schedule.epoch_samples)


@contextmanager
def _own_trackers(folder: Path) -> Iterator[None]:
    """Let W&B keep its files in the folder, and go on with its run; the user's wishes go first."""
    own = {"WANDB_DIR": str(folder), "WANDB_RESUME": "allow"}
    added = {name: value for name, value in own.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def _own(model: str, shards: Sequence[Path | str], folder: Path) -> list[str]:
    return [
        f"--model={model}",
        f"--train-data={_shard_list(shards)}",
        "--dataset-type=webdataset",
        f"--logs={folder.parent}",
        f"--name={folder.name}",
        "--resume=latest",
        "--save-most-recent",
        "--save-frequency=0",
        "--zeroshot-frequency=0",
    ]


def _shard_list(shards: Sequence[Path | str]) -> str:
    """Join paths and URLs so that webdataset reads them literally.

    It splits at `::`, replaces `${name}` and expands braces, in that order; a backslash before
    each of the characters concerned stops all three.
    """
    given = (str(shard.absolute()) if isinstance(shard, Path) else shard for shard in shards)
    return "::".join(re.sub(r"([\\{},:])", r"\\\1", shard) for shard in given)


def _call(arguments: list[str], log: Path) -> None:
    from open_clip_train.main import main

    folder = log.parent
    try:
        status = main(arguments)
    except SystemExit as exit_:
        raise ValueError(f"{folder}: open_clip_train exited ({exit_.code}); see {log}") from exit_
    except StreamError as error:
        raise RuntimeError(f"{folder}: a shard could not be read: {error}") from error
    except NoBatchError as error:
        raise ValueError(
            f"{folder}: the shards of a worker hold fewer usable samples than one batch; "
            f"{log} names the samples it could not read"
        ) from error
    if status == -1:
        lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
        raise RuntimeError(
            f"{folder}: open_clip_train gave up; its last words: {lines[-1] if lines else 'none'}"
        )


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(before if count is None else count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
