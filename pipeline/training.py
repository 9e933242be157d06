"""CLIP training: open_clip_train, called in this process, and guarded.

open_clip_train trains; this module makes it reproducible and restartable, keeps its log in a file,
and turns what it would pass over in silence (a wrong option, an unreadable shard, an epoch without
samples, a loss that is no number) into errors. One training at a time in a process; one training
may be the work of many processes, which torch's environment variables (RANK, WORLD_SIZE, ...) join.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.training_data import PIPE, StreamError, whole_samples
from pipeline.training_options import arguments, parse, replaced
from pipeline.training_processes import check_device, joined, place

if TYPE_CHECKING:
    import torch

Progress = Callable[[int, int], None]


def train(
    *,
    model: str,
    shards: Sequence[Path | str],
    folder: Path,
    options: Mapping[str, object],
    threads: int | None = None,
    on_progress: Progress | None = None,
    on_start: Callable[[], None] | None = None,
) -> Path:
    """Train a CLIP model from scratch, or go on from its last whole epoch.

    The same call with the same `folder` is the resume, after a kill at any instant; when the
    training had ended it returns at once. The order of the samples is a function of (seed, epoch),
    and on the CPU an uninterrupted training gives the same bits for the same number of threads.
    What open_clip says goes to `folder`/out.log and not to the caller's log handlers. The random
    generators of torch, numpy and Python are seeded anew.

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
        threads: torch's threads while training; as they are if None.
        on_progress: called with (samples seen, samples in all) as often as open_clip_train logs.
        on_start: called on rank 0, once it is clear that there is something to train.

    Returns:
        The final checkpoint: a dict with epoch, name, state_dict, optimizer (and scaler). After a
        training in several processes the weights' names begin with "module.", as open_clip expects.

    Raises:
        ValueError: for a wrong option, missing or too few shards, or a checkpoint in `folder` that
            is unreadable or not of this training.
        FloatingPointError: if the loss is no longer a number.
        RuntimeError: if the device is absent, an epoch ended early, open_clip_train gave up, the
            command of a `pipe:` URL failed, or another process of the job is gone.
    """
    values = parse(options)
    if values.train_num_samples is None:
        raise ValueError("train-num-samples, the samples of an epoch, is required")
    from pipeline.models import register_model, resolve_device

    name, rank = register_model(model), place()[0]
    check_device(resolve_device(values.device))
    _check_shards(shards, values.workers)
    folder = folder.absolute()
    if "::" in str(folder):
        raise ValueError(f"{folder}: open_clip_train can't write to a path with '::'")
    checkpoint = folder / "checkpoints" / "epoch_latest.pt"
    if rank > 0 or _finished_epochs(checkpoint, values.epochs) < values.epochs:
        if rank == 0 and on_start:
            on_start()
        log = folder / (f"out-{rank}.log" if rank else "out.log")
        words = [*arguments(options), *_own_arguments(name, shards, folder)]
        watcher = _Watcher(values.epochs, on_progress)
        with joined(values.device), _threads(threads), _own_log(watcher, log), _reproducible_data():
            _call(words, log)
        if rank == 0 and _finished_epochs(checkpoint, values.epochs) != values.epochs:
            raise RuntimeError(f"{folder}: open_clip_train ended early; see {log}")
    if rank == 0:
        _drop_redundant(checkpoint)
    return checkpoint


def _own_arguments(model: str, shards: Sequence[Path | str], folder: Path) -> list[str]:
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


def _check_shards(shards: Sequence[Path | str], workers: int) -> None:
    """webdataset would skip a missing shard, and ranks without a shard would wait for ever."""
    world = place()[1]
    readers = max(1, workers) * world
    if len(shards) < readers:
        raise ValueError(
            f"{len(shards)} shards for {workers} workers on each of {world} ranks: "
            f"expected {readers} shards or more, or fewer workers"
        )
    for shard in shards:
        if isinstance(shard, str):
            if not shard.startswith(PIPE):
                raise ValueError(f"{shard}: expected a path, or a URL that begins with {PIPE!r}")
        elif not shard.is_file():
            raise ValueError(f"{shard}: no such shard")


def _call(arguments: list[str], log: Path) -> None:
    from open_clip_train.main import main

    folder = log.parent
    try:
        status = main(arguments)
    except SystemExit as exit_:
        raise ValueError(f"{folder}: open_clip_train exited ({exit_.code}); see {log}") from exit_
    except StreamError as error:
        raise RuntimeError(f"{folder}: a shard could not be read: {error}") from error
    except _NoBatchError as error:
        raise ValueError(
            f"{folder}: the shards of a worker hold fewer usable samples than one batch; "
            f"{log} names the samples it could not read"
        ) from error
    if status == -1:
        lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
        raise RuntimeError(
            f"{folder}: open_clip_train gave up; its last words: {lines[-1] if lines else 'none'}"
        )


def _finished_epochs(checkpoint: Path, epochs: int) -> int:
    """Read and verify a checkpoint; 0 if there is none."""
    if not checkpoint.exists():
        return 0
    import torch

    try:
        content = torch.load(checkpoint, map_location="cpu", mmap=True, weights_only=True)
        finished, weights = int(content["epoch"]), content["state_dict"]
        broken = [name for name, one in weights.items() if not _is_finite(one)]
    except Exception as error:  # torch has no one error for a file that it can't read
        raise ValueError(f"{checkpoint}: not a readable checkpoint: {error!r}") from error
    if broken:
        raise ValueError(f"{checkpoint}: {broken[0]} and {len(broken) - 1} others are not finite")
    if finished > epochs:
        raise ValueError(
            f"{checkpoint}: of epoch {finished}, but this training has {epochs}; is it another's?"
        )
    return finished


def _is_finite(weights: torch.Tensor) -> bool:
    return bool(weights.isfinite().all())


def _drop_redundant(checkpoint: Path) -> None:
    """Remove the second, not atomically written copy of the last epoch, and a cut-off write."""
    for path in checkpoint.parent.glob("*.pt"):
        if path != checkpoint:
            path.unlink()


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(before if count is None else count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _own_log(watcher: _Watcher, log: Path) -> Iterator[None]:
    """Send what open_clip logs to `log` and to `watcher` alone, then leave no trace.

    open_clip logs to the root logger, and its own set-up changes the level of every logger there
    is and adds handlers that it never removes.
    """
    import open_clip_train.main

    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    own: list[logging.Handler] = [watcher]

    def set_up(log_file: str | None, level: int, include_host: bool = False) -> None:
        root.setLevel(level)
        log.parent.mkdir(parents=True, exist_ok=True)  # rank 0 may not have come to it yet
        own.append(logging.FileHandler(log, encoding="utf-8"))
        line = "%(asctime)s | %(levelname)s | %(message)s"
        own[-1].setFormatter(logging.Formatter(line, datefmt="%Y-%m-%d,%H:%M:%S"))
        root.addHandler(own[-1])

    def of_caller(record: logging.LogRecord) -> bool:
        return record.name != root.name and record.levelno >= level

    root.addHandler(watcher)
    for handler in handlers:
        handler.addFilter(of_caller)
    try:
        with replaced(open_clip_train.main, "setup_logging", set_up):
            yield
    finally:
        for handler in handlers:
            handler.removeFilter(of_caller)
        for handler in own:
            root.removeHandler(handler)
            handler.close()
        root.setLevel(level)


@contextmanager
def _reproducible_data() -> Iterator[None]:
    """Make the order of the samples a function of (seed, epoch), and refuse an empty pool.

    open_clip_train shuffles samples by `wds.shuffle`, which seeds itself from the process id and
    the time, and webdataset would look for ever for a sample in shards that have none.
    """
    from open_clip_train import data

    original = data.get_wds_dataset

    def get_wds_dataset(args: Any, preprocess: Any, is_train: bool, **rest: Any) -> Any:
        info = original(args, preprocess, is_train, **rest)
        if is_train:
            stages = info.dataloader.pipeline[0].dataset.pipeline
            stages[_shuffle_position(stages)] = data.detshuffle2(
                bufsize=data._SAMPLE_SHUFFLE_SIZE,
                initial=data._SAMPLE_SHUFFLE_INITIAL,
                seed=10_000 * (args.seed + 1),  # another sequence than that of the shards
                epoch=info.shared_epoch,
            )
            stages[stages.index(data.tarfile_to_samples_nothrow)] = whole_samples
            stages.append(_refuse_empty)
        return info

    with replaced(data, "get_wds_dataset", get_wds_dataset):
        yield


def _shuffle_position(stages: Sequence[Any]) -> int:
    from webdataset.filters import _shuffle

    found = [at for at, stage in enumerate(stages) if getattr(stage, "f", None) is _shuffle]
    if len(found) != 1:
        raise RuntimeError(
            f"expected one wds.shuffle in open_clip_train's pipeline, found {len(found)}: this "
            "version of open_clip or webdataset reads data in another way"
        )
    return found[0]


class _NoBatchError(Exception):
    """One pass over the shards of a worker gave not even one batch."""


def _refuse_empty(batches: Iterator[Any]) -> Iterator[Any]:
    empty = True
    for batch in batches:
        empty = False
        yield batch
    if empty:
        raise _NoBatchError


class _Watcher(logging.Handler):
    """Follows a training by its log records, and stops it when the loss is no longer a number."""

    _STEP = re.compile(r"Train Epoch: (\d+) \[ *(\d+)/(\d+) .* Loss: (\S+)")

    def __init__(self, epochs: int, on_progress: Progress | None) -> None:
        super().__init__()
        self._epochs = epochs
        self._on_progress = on_progress

    def emit(self, record: logging.LogRecord) -> None:
        """Take one record; what is raised here ends the training."""
        found = self._STEP.match(record.getMessage())
        if not found:
            return
        epoch, seen, per_epoch = (int(number) for number in found.groups()[:3])
        if math.isnan(float(found[4])):
            raise FloatingPointError(
                f"the loss is not a number in epoch {epoch + 1} of {self._epochs}, after {seen:,} "
                f"of {per_epoch:,} samples: try a lower learning rate or a higher precision"
            )
        if self._on_progress:
            self._on_progress(epoch * per_epoch + seen, self._epochs * per_epoch)
