"""How large the parts of a study are: counted by its finished tasks, else declared, else unknown.

What has been counted comes first. A pool of which some files are embedded is taken to go on as
it began.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from hpc.plan import Assessment
from hpc.stage import reference
from pipeline.experiment.sections import Experiment, ImageSet
from pipeline.experiment.sources import classes_in, pool_groups
from pipeline.experiment.splits import Split
from pipeline.forecast.amounts import NOTHING, Amount, known, total, unknown
from pipeline.forecast.model_costs import ModelCosts, model_costs
from pipeline.layout import POOL, REFERENCE

_CHECKPOINT_BYTES = 12
"""Of a parameter: itself and the two moments of AdamW, 4 bytes each."""


@dataclass(frozen=True)
class Sizes:
    """How large the parts of a study are."""

    study: Experiment
    assessed: Mapping[str, Assessment]

    # the pool

    @cached_property
    def shards(self) -> list[int]:
        """Tars of each embeddings file of the pool."""
        return [len(group) for group in pool_groups(self.study.pool)]

    @cached_property
    def rows(self) -> Amount:
        """Images of the pool (N)."""
        tasks = [reference("embed", f"{POOL}/{index:05d}") for index in range(len(self.shards))]
        counted = {index: found for index, one in enumerate(tasks) if (found := self._used(one))}
        if counted:
            seen = sum(self.shards[index] for index in counted)
            return Amount(sum(counted.values()) * sum(self.shards) / seen)
        size = self.study.pool.size
        return known(size.samples if size else None, "pool.size.samples")

    def share(self, index: int) -> float:
        """The part of the pool that is in an embeddings file."""
        return self.shards[index] / sum(self.shards)

    @cached_property
    def tar_bytes(self) -> Amount:
        """Of all tars of the pool: as they lie there, or as declared."""
        pool = self.study.pool
        if pool.embeddings is not None:
            return Amount(sum(path.stat().st_size for path in pool.paths))
        if not pool.planned:
            files = range(len(self.shards))
            tasks = [self.assessed[reference("embed", f"{POOL}/{index:05d}")] for index in files]
            found = [shard[1] for one in tasks for shard in one.task.recipe.settings["shards"]]
            return Amount(sum(found))
        return known(pool.size.bytes if pool.size else None, "pool.size.bytes")

    def precomputed_bytes(self, index: int) -> Amount | None:
        """Of an embeddings file that was made elsewhere; None if the pool is embedded here."""
        given = self.study.pool.embeddings
        return None if given is None else Amount(given.sources[index].path.stat().st_size)

    # image sets

    def _set(self, name: str) -> tuple[ImageSet, str]:
        """An image set, and where it stands in the experiment."""
        if name == REFERENCE:
            return self.study.reference, REFERENCE
        return self.study.tests[name], f"tests.{name}"

    def images(self, name: str) -> Amount:
        """Images of the reference or of a test set."""
        counted = [self._used(one) for one in self._folders[reference("embed", name)]]
        if counted and all(counted):
            return Amount(sum(filter(None, counted)))
        images, where = self._set(name)
        return known(images.size.images if images.size else None, f"{where}.size.images")

    def set_bytes(self, name: str) -> Amount:
        """Of the images of the reference or of a test set."""
        images, where = self._set(name)
        return known(images.size.bytes if images.size else None, f"{where}.size.bytes")

    def classes(self, name: str) -> int:
        """Classes of the reference or of a test set."""
        return len(classes_in(self._set(name)[0]))

    @cached_property
    def queries(self) -> Amount:
        """Images of all test sets (M)."""
        return total(self.images(test) for test in self.study.tests)

    def _used(self, task: str) -> int | None:
        """Images that a finished task of embedding used."""
        item = self.assessed.get(task)
        return int(item.marker.counts["used"]) if item and item.marker else None

    # models

    @cached_property
    def embedder(self) -> ModelCosts:
        """Of the model that defines similarity."""
        return model_costs(self.study.embedder.model)

    @cached_property
    def trained(self) -> ModelCosts:
        """Of the model that is trained."""
        assert self.study.training is not None  # a study without it trains nothing
        return model_costs(self.study.training.model)

    @cached_property
    def checkpoint(self) -> Amount:
        """Bytes of a trained model: as one that is there, or as its parameters say."""
        for item in self.assessed.values():
            if item.stage == "train" and item.marker:
                return Amount(next(iter(item.marker.outputs.values()))[0])
        parameters = self.trained.parameters
        if parameters is None:
            return unknown("a first training: the model's config does not say how large it is")
        return Amount(parameters * _CHECKPOINT_BYTES)

    # splits

    def kept(self, name: str) -> Amount:
        """Images of the pool that a split keeps.

        As its mask counts; else as its definition says; else as declared; else at most as many as
        there are where it is taken from.
        """
        item = self.assessed.get(reference("mask", name))
        if item and item.marker:
            return Amount(int(item.marker.counts["kept"]))
        split = self.study.splits[name]
        within = self.kept(split.base) if split.base else self.rows
        if (by_definition := self._by_definition(split, within)) is not None:
            return by_definition
        if split.expect:
            return Amount(split.expect.kept)
        return Amount(self._bound(split, within), within.missing, at_most=True)

    def _by_definition(self, split: Split, within: Amount) -> Amount | None:
        """What a definition alone says."""
        if split.all:
            return within
        if split.cut:
            return Amount(split.cut.keep)
        if split.random and split.random.keep:
            return Amount(split.random.keep)
        return self.kept(split.random.like) if split.random and split.random.like else None

    def _bound(self, split: Split, within: Amount) -> float:
        """The most that a definition allows."""
        if split.union:
            return min(within.value, sum(self.kept(one).value for one in split.union))
        if split.intersection or split.difference:
            first = split.intersection or (split.difference or [])[:1]
            return min([within.value, *(self.kept(one).value for one in first)])
        if split.complement:
            other = self.kept(split.complement)
            return within.value if other.at_most else max(0, within.value - other.value)
        return within.value

    def trained_on(self, name: str) -> Amount:
        """Samples of a split, with the reference's if it is trained on, too."""
        plus = self.images(REFERENCE) if self.study.splits[name].caption else NOTHING
        return self.kept(name) + plus

    def split_bytes(self, name: str, *, whole: bool = False) -> Amount:
        """Bytes of a split's samples: those of the pool are taken to be of one size.

        Args:
            name: the split.
            whole: of all of the pool's samples, in place of those that it keeps.
        """
        plus = self.set_bytes(REFERENCE) if self.study.splits[name].caption else NOTHING
        return (self.tar_bytes if whole else self.pool_bytes(self.kept(name))) + plus

    def pool_bytes(self, rows: Amount) -> Amount:
        """Bytes of so many samples of the pool."""
        if not self.rows.value:
            return self.tar_bytes * 0 + unknown("pool.size.samples")
        return rows * (self.tar_bytes / self.rows.value)

    # tasks

    @cached_property
    def _folders(self) -> dict[str, list[str]]:
        """The tasks in each `stage/.../`."""
        folders: dict[str, list[str]] = defaultdict(list)
        for task in self.assessed:
            folders[task.rpartition("/")[0]].append(task)
        return folders

    def tasks_beside(self, stage: str, task: str) -> int:
        """Tasks of a stage in the same folder: those that share the work on a split."""
        return len(self._folders[reference(stage, task).rpartition("/")[0]])
