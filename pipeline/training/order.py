"""The samples of a training, in an order that is a function of (seed, epoch) and nothing else."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

from pipeline.training.data import whole_samples
from pipeline.training.options import replaced
from pipeline.training.schedule import Schedule


class NoBatchError(Exception):
    """One pass over the shards of a worker gave not even one batch."""


@contextmanager
def reproducible_data(schedule: Schedule) -> Iterator[None]:
    """Make the order of the samples a function of (seed, epoch), and refuse an empty pool.

    open_clip_train shuffles samples by `wds.shuffle`, which seeds itself from the process id and
    the time, and webdataset would look for ever for a sample in shards that have none. To
    open_clip_train a part of an epoch is an epoch, which begins a new pass; here it goes on where
    the part before it ended.
    """
    from open_clip_train import data

    original = data.get_wds_dataset

    def get_wds_dataset(args: Any, preprocess: Any, is_train: bool, **rest: Any) -> Any:
        info = original(args, preprocess, is_train, **rest)
        if is_train:
            pipeline = info.dataloader.pipeline[0].dataset
            stages = pipeline.pipeline
            stages[_position(stages, "_shuffle")] = data.detshuffle2(
                bufsize=data._SAMPLE_SHUFFLE_SIZE,
                initial=data._SAMPLE_SHUFFLE_INITIAL,
                seed=10_000 * (args.seed + 1),  # another sequence than that of the shards
                epoch=info.shared_epoch,
            )
            stages[stages.index(data.tarfile_to_samples_nothrow)] = whole_samples
            stages.append(_refuse_empty)
            if schedule.parts > 1:
                batches = schedule.worker_batches // schedule.parts
                pipeline.pipeline = [
                    _Parts(stages, info.shared_epoch, schedule.parts, batches, args.batch_size)
                ]
        return info

    with replaced(data, "get_wds_dataset", get_wds_dataset):
        yield


def _position(stages: Sequence[Any], function: str) -> int:
    """Where one of webdataset's filters is among the stages of open_clip_train's pipeline."""
    from webdataset import filters

    wanted = getattr(filters, function)
    found = [at for at, stage in enumerate(stages) if getattr(stage, "f", None) is wanted]
    if len(found) != 1:
        raise RuntimeError(
            f"expected one wds.{function.strip('_')} in open_clip_train's pipeline, found "
            f"{len(found)}: this version of open_clip or webdataset reads data in another way"
        )
    return found[0]


def _refuse_empty(batches: Iterator[Any]) -> Iterator[Any]:
    empty = True
    for batch in batches:
        empty = False
        yield batch
    if empty:
        raise NoBatchError


class _Parts:
    """A worker's batches of an epoch, handed out in parts: the first stage of a pipeline.

    As long as the worker lives, the pass over the shards stays open from part to part. A training
    that is gone on with begins the pass anew and leaves out, undecoded, the samples that were seen.
    """

    def __init__(
        self, stages: Sequence[Any], part: Any, parts: int, batches: int, batch_size: int
    ) -> None:
        self._stages, self._part = list(stages), part
        self._parts, self._samples = parts, batches * batch_size
        self._open: Iterator[Any] | None = None
        self._next = -1

    def __call__(self) -> Iterator[Any]:
        """Batches from the beginning of the current part on, without end."""
        part = self._part.get_value()
        epoch, within = divmod(part, self._parts)
        if self._open is None or within == 0 or part != self._next:
            self._open = self._pass(epoch, within * self._samples)
        self._next = part + 1
        return chain(self._open)  # which, unlike a generator, is not closed at the part's end

    def _pass(self, epoch: int, seen: int) -> Iterator[Any]:
        from open_clip_train.data import SharedEpoch
        from webdataset import DataPipeline

        stages = list(self._stages)
        for stage in stages:
            if isinstance(getattr(stage, "epoch", None), SharedEpoch):
                stage.epoch = SharedEpoch(epoch)
        stages.insert(_position(stages, "_select") + 1, _LeaveOut(seen))
        whole = DataPipeline(*stages)
        whole.repetitions = sys.maxsize
        batches: Iterator[Any] = whole.iterator()
        return batches


class _LeaveOut:
    """Drops the first samples, once, however often the shards are passed over."""

    def __init__(self, count: int) -> None:
        self._left = count

    def __call__(self, samples: Iterator[Any]) -> Iterator[Any]:
        for sample in samples:
            if self._left:
                self._left -= 1
            else:
                yield sample
