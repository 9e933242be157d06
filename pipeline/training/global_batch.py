"""How many samples make one step: nodes x processes x batch_size x accum-freq."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hpc.words import count
from pipeline.training.options import parse
from pipeline.training.schedule import Schedule

if TYPE_CHECKING:
    from hpc.stage import Resources
    from pipeline.experiment.sections import Training


def check_training(training: Training, resources: Resources, profile: str) -> None:
    """Check a training's numbers against the processes that a site profile gives it.

    Args:
        training: the experiment's section.
        resources: what the profile asks for the stage `train`.
        profile: the profile's name, for messages.

    Raises:
        ValueError: the batch of a step is not as declared or can't be shared out, or an epoch of
            `samples_per_epoch` can't be cut as `checkpoint_every` wants it.
    """
    nodes = count(resources.nodes, "node")
    each = count(resources.processes, "process", "processes")
    batch = batch_of(training, resources.world, f"profile {profile}: {nodes} x {each}")
    if training.checkpoint_every is None or training.samples_per_epoch is None:
        return
    Schedule(
        samples=training.samples_per_epoch,
        epochs=training.epochs,
        batch_size=batch,
        accumulated=_accumulated(training),
        processes=resources.world,
        workers=training.workers,
    ).cut(training.checkpoint_every)


def batch_of(training: Training, processes: int, where: str) -> int:
    """The batch of one process: as given, or its share of `global_batch`.

    Raises:
        ValueError: the batch of a step is not as declared, or can't be shared out equally.
    """
    accumulated = _accumulated(training)
    if training.global_batch is None:
        assert training.batch_size is not None, "one of the two is given"
        return training.batch_size
    if training.batch_size is None:
        return process_batch(
            global_batch=training.global_batch, accumulated=accumulated, processes=processes
        )
    check_global_batch(
        global_batch=training.global_batch,
        batch_size=training.batch_size,
        accumulated=accumulated,
        processes=processes,
        where=where,
    )
    return training.batch_size


def _accumulated(training: Training) -> int:
    return int(parse(training.options).accum_freq)


def process_batch(*, global_batch: int, accumulated: int, processes: int) -> int:
    """The batch of one process, so that all make `global_batch` samples a step.

    Raises:
        ValueError: it can't be shared out equally.
    """
    shares = accumulated * processes
    if global_batch % shares:
        lower = global_batch // shares * shares
        near = [str(number) for number in (lower, lower + shares) if number]
        raise ValueError(
            f"training.global_batch: {global_batch} samples a step can't be shared out equally to "
            f"{count(processes, 'process', 'processes')} x accum-freq {accumulated}: expected a "
            f"multiple of {shares}, such as {' or '.join(near)}, or another number of nodes or "
            "GPUs in the site profile"
        )
    return global_batch // shares


def check_global_batch(
    *, global_batch: int, batch_size: int, accumulated: int, processes: int, where: str
) -> None:
    """Compare a declared global batch with what nodes, GPUs, batch and accumulation make.

    Args:
        where: what says how many processes there are, "profile a100: 2 nodes x 4 processes".

    Raises:
        ValueError: they differ; the message has what to change.
    """
    found = batch_size * accumulated * processes
    if found == global_batch:
        return
    told = [f"training.global_batch: {found}"]
    if global_batch % (accumulated * processes) == 0:
        told.append(f"training.batch_size: {global_batch // (accumulated * processes)}")
    if global_batch % (batch_size * accumulated) == 0:
        told.append(f"{global_batch // (batch_size * accumulated)} processes in the site profile")
    if global_batch % (batch_size * processes) == 0:
        told.append(f"the option accum-freq: {global_batch // (batch_size * processes)}")
    raise ValueError(
        f"training.global_batch: {global_batch} samples a step are declared, but {where} x "
        f"batch_size {batch_size} x accum-freq {accumulated} make {found}: expected "
        f"{' or '.join(told)}"
    )
