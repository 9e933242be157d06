"""How a training is divided: samples into batches, steps, epochs, and parts of an epoch.

The numbers are open_clip_train's own, which rounds an epoch up to whole batches of all workers of
all processes. No torch in here: an experiment's numbers are checked on login nodes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from hpc.words import count


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The numbers of one training."""

    samples: int
    """Of an epoch, as asked for."""
    epochs: int
    batch_size: int
    """Of one process in one forward pass."""
    accumulated: int = 1
    """Batches that make one step (accum-freq)."""
    processes: int = 1
    workers: int = 1
    """Data loading processes of each process; none counts as one."""
    parts: int = 1
    """Into which an epoch is cut, with a checkpoint after each."""

    @property
    def readers(self) -> int:
        """Workers of all processes: each needs a shard of its own."""
        return max(1, self.workers) * self.processes

    @property
    def global_batch(self) -> int:
        """Samples in one step."""
        return self.batch_size * self.accumulated * self.processes

    @property
    def worker_batches(self) -> int:
        """Batches that each worker reads in an epoch."""
        batches = -(-self.samples // (self.batch_size * self.processes))
        return -(-batches // max(1, self.workers))

    @property
    def batches(self) -> int:
        """Batches of each process in an epoch."""
        return self.worker_batches * max(1, self.workers)

    @property
    def epoch_samples(self) -> int:
        """Samples seen in an epoch, by all processes."""
        return self.batches * self.batch_size * self.processes

    @property
    def part_samples(self) -> int:
        """Samples seen between two checkpoints."""
        return self.epoch_samples // self.parts

    @property
    def steps(self) -> int:
        """Steps of the whole training: the length of a learning-rate schedule."""
        return self.batches // self.accumulated * self.epochs

    @property
    def checkpoints(self) -> int:
        """How many parts, each with its checkpoint, the whole training has."""
        return self.epochs * self.parts

    def possible_parts(self) -> list[int]:
        """Into how many parts an epoch can be cut without a change of steps or samples."""
        return [
            parts
            for parts in range(1, self.worker_batches + 1)
            if self.worker_batches % parts == 0
            and (parts == 1 or self.batches // parts % self.accumulated == 0)
        ]

    def cut(self, every: int) -> Schedule:
        """Cut an epoch into the fewest equal parts of at most `every` samples.

        Steps and samples stay what they are, so parts are whole batches of all workers.

        Raises:
            ValueError: no division comes near: the largest part that fits is less than half of
                `every`; the message has the numbers that are possible.
        """
        possible = {self.epoch_samples // parts: parts for parts in self.possible_parts()}
        fitting = [samples for samples in possible if samples <= every]
        if fitting and (2 * max(fitting) >= every or max(fitting) == self.epoch_samples):
            return replace(self, parts=possible[max(fitting)])
        raise ValueError(
            f"checkpoint_every: {every:,} samples: an epoch of {self.epoch_samples:,} samples is "
            f"{count(self.worker_batches, 'batch', 'batches')} of {self.batch_size} for each of "
            f"{count(self.readers, 'worker')}, which can be cut into equal parts of "
            f"{_some(sorted(possible))} samples: expected one of these, or up to twice as many. "
            f"With samples_per_epoch: {self._divisible(every):,} parts of "
            f"{self._divisible(every) // self._pieces(every):,} samples are possible, too"
        )

    def divided(self, parts: int) -> Schedule:
        """Cut an epoch into as many equal parts as a training began with.

        Raises:
            ValueError: the batches of an epoch don't divide so, with other processes or workers.
        """
        if parts not in self.possible_parts():
            raise ValueError(
                f"this training began with epochs in {parts} parts; with "
                f"{count(self.processes, 'process', 'processes')} x {max(1, self.workers)} workers "
                f"an epoch is {count(self.worker_batches, 'batch', 'batches')} for each, which "
                "can't be cut so: expected as many processes, workers and samples as before"
            )
        return replace(self, parts=parts)

    def _pieces(self, every: int) -> int:
        return -(-self.epoch_samples // max(every, self._unit))

    def _divisible(self, every: int) -> int:
        """The next larger epoch that can be cut into parts of about `every` samples."""
        piece = self._unit * self._pieces(every)
        return -(-self.epoch_samples // piece) * piece

    @property
    def _unit(self) -> int:
        """The smallest part: whole steps of all workers."""
        return self.batch_size * self.accumulated * self.readers


def _some(numbers: list[int]) -> str:
    told = [f"{number:,}" for number in numbers]
    return ", ".join(told if len(told) <= 8 else [*told[:3], "...", *told[-4:]])
