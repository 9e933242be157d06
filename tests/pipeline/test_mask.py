"""Masks and statistics from the files of the stages before: what is read, counted and refused."""

from __future__ import annotations

import os
import resource
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpc.files import read_json
from hpc.stage import Context, OutputError, Resources
from pipeline import artifacts
from pipeline.experiment.sections import Pool
from pipeline.experiment.splits import Split
from pipeline.layout import Layout
from pipeline.selection.pool_files import PoolFiles
from pipeline.selection.statistics import per_query
from pipeline.stages.mask import Mask

TESTS = ["a", "b", "c"]
SIZES = (70_000, 0, 1, 500)
SPLITS = {
    name: Split.model_validate(values)
    for name, values in {
        "full": "all",
        "near-b": {"near": ["b"], "plus_reference": "a drawing of a {}"},
        "dedup": {"deduplicated": True},
        "core": {"far": {"tests": ["c", "a"], "keep": 20_000}, "base": "dedup"},
        "control": {"random": {"like": "core"}, "base": "dedup"},
        "too-many": {"far": {"tests": ["a"], "keep": 70_000}, "base": "dedup"},
    }.items()
}


@dataclass(frozen=True)
class World:
    """A run with scans and duplicates, and all of it in whole arrays."""

    stage: Mask
    near: Any
    best: Any
    duplicate: Any
    above: Any

    def run(self, name: str) -> dict[str, Any]:
        task = next(task for task in self.stage.tasks() if task.name == name)
        context = Context(
            digest="d", inputs={}, resources=Resources(cpus=2), progress=lambda *_: None
        )
        counts = self.stage.run(task, context)
        assert set(self.stage.check(task, "d")) == {""}
        with pytest.raises(OutputError):
            self.stage.check(task, "of other settings")
        return counts

    def kept(self, split: str) -> Any:
        self.run(split)
        mask = artifacts.read(self.stage.run_layout.mask(split), artifacts.MASK)
        return np.concatenate([artifacts.keep_of(mask, index) for index in range(len(SIZES))])


def _scan(run: Layout, index: int, near: Any, best: Any, above: Any) -> None:
    arrays = {
        "near": near,
        "best_similarity": best,
        "best_query": np.zeros(near.shape, np.int32),
        "above_threshold": above,
        "neighbour_similarity": np.zeros((len(above), 1)),
        "neighbour_row": np.zeros((len(above), 1), np.int64),
    }
    facts = {"tests": TESTS, "offsets": [0, 2, 5, 9], "backend": "", "rechecked": 0, "epsilon": 0.0}
    artifacts.write(run.similarity(index), artifacts.SIMILARITY, "d", arrays, facts)


def _duplicates(run: Layout, index: int, rows: Any, looked_at: int) -> None:
    starts = np.cumsum([0, *SIZES])
    file = np.searchsorted(starts, rows, side="right") - 1
    arrays = {
        "file": file.astype(np.int32),
        "row": rows - starts[file],
        "kept_file": np.zeros(len(rows), np.int32),
        "kept_row": np.zeros(len(rows), np.int64),
        "similarity": np.ones(len(rows)),
    }
    facts = {
        "threshold": 0.9, "clusters": 2, "first_cluster": index, "last_cluster": index + 1,
        "rows": looked_at, "backend": "",
    }  # fmt: skip
    artifacts.write(run.duplicates(index), artifacts.DUPLICATES, "d", arrays, facts)


@pytest.fixture
def world(tmp_path: Path) -> World:
    rng = np.random.default_rng(0)
    total, run = sum(SIZES), Layout(tmp_path / "run")
    near = rng.random((total, len(TESTS))) < (0.3, 0.01, 0.6)
    best = (rng.integers(-40, 41, (total, len(TESTS))) / 64).astype(np.float32)
    duplicate = rng.random(total) < 0.5
    above = rng.integers(0, 30, (len(SIZES), 9)) * np.array([0, 1, 0, 5, 900, 1, 1, 1, 2])
    starts = np.cumsum([0, *SIZES])
    (tmp_path / "pool").mkdir()
    for index in range(len(SIZES)):
        rows = slice(starts[index], starts[index + 1])
        (tmp_path / "pool" / f"{index}.tar").touch()
        _scan(run, index, near[rows], best[rows], above[index])
        arrays = {
            "embedding": np.zeros((SIZES[index], 1), np.float16),
            "key": np.zeros(SIZES[index], "S1"),
            "shard": np.zeros(SIZES[index], np.int32),
            "skipped_key": np.zeros(0, "S1"),
            "skipped_reason": np.zeros(0, "S1"),
        }
        facts = dict.fromkeys(artifacts.EMBEDDINGS.attributes)
        artifacts.write(run.embeddings("pool", index), artifacts.EMBEDDINGS, "d", arrays, facts)
    found = np.flatnonzero(duplicate)
    _duplicates(run, 0, found[::2], total // 2)
    _duplicates(run, 1, found[1::2], total - total // 2)
    pool = Pool(shards=str(tmp_path / "pool/*.tar"))
    return World(Mask(run, pool, SPLITS, TESTS, 2), near, best, duplicate, above.sum(axis=0))


def test_masks_are_read_from_scans_and_duplicates(world: World) -> None:
    assert world.kept("full").all()
    np.testing.assert_array_equal(world.kept("near-b"), ~world.near[:, 1])
    np.testing.assert_array_equal(world.kept("dedup"), ~world.duplicate)
    best, rows = world.best[:, [0, 2]].max(axis=1), np.flatnonzero(~world.duplicate)
    core = np.zeros(len(best), bool)
    core[rows[np.lexsort((rows, -best[rows]))[:20_000]]] = True
    np.testing.assert_array_equal(world.kept("core"), core)
    assert world.kept("control").sum() == 20_000
    assert not (world.kept("control") & world.duplicate).any()


def test_a_mask_says_whether_the_reference_is_trained_on(world: World) -> None:
    templates = {}
    for split in ("full", "near-b"):
        world.run(split)
        mask = artifacts.read(world.stage.run_layout.mask(split), artifacts.MASK)
        templates[split] = mask.attributes["plus_reference"]
    assert templates == {"full": None, "near-b": "a drawing of a {}"}


@pytest.mark.parametrize("split", ["near-b", "core", "control"])
def test_statistics_are_those_of_whole_arrays(world: World, split: str) -> None:
    counts = world.run(f"statistics/{split}")
    found = read_json(world.stage.run_layout.statistics(split))
    base = np.ones(len(world.near), bool) if split == "near-b" else ~world.duplicate
    near, keep = world.near, world.kept(split)
    assert found == {
        "digest": "d",
        "rows": len(near),
        "base": base.sum(),
        "kept": keep.sum(),
        "near": dict(zip(TESTS, near[base].sum(axis=0), strict=True)),
        "kept_near": dict(zip(TESTS, near[keep].sum(axis=0), strict=True)),
        "overlaps": {
            f"{TESTS[i]} & {TESTS[j]}": (near[:, i] & near[:, j] & base).sum()
            for i, j in ((0, 1), (0, 2), (1, 2))
        },
        "all": near[base].all(axis=1).sum(),
        "any": near[base].any(axis=1).sum(),
        "per_query": per_query({"a": world.above[:2], "b": world.above[2:5], "c": world.above[5:]}),
    }
    assert counts == {key: found[key] for key in counts}
    assert set(found) - set(counts) == {"digest", "per_query"}


def test_images_are_counted_by_how_many_pool_images_are_near() -> None:
    counts = {"a": np.array([0, 0, 1, 4, 5, 9, 100]), "b": np.zeros(0, np.int64)}
    edges = [0, 1, 2, 5, 10, 20, 50, 100, 200]
    assert per_query(counts) == {
        "a": {"edges": edges, "queries": [2, 1, 1, 2, 0, 0, 0, 1]},
        "b": {"edges": edges, "queries": [0] * 8},
    }
    assert per_query({"a": np.zeros(3, np.int64)}) == {"a": {"edges": [0, 1], "queries": [3]}}


def test_more_than_the_base_has_is_refused_and_leaves_nothing(world: World) -> None:
    kept = (~world.duplicate).sum()
    message = f"split too-many, within dedup: 70,000 rows are to be kept, but there are {kept:,}"
    with pytest.raises(ValueError, match=message):
        world.run("too-many")
    assert not world.stage.run_layout.mask("too-many").exists()


def test_duplicates_that_do_not_fit_the_pool_are_refused(world: World) -> None:
    run, total = world.stage.run_layout, sum(SIZES)
    _duplicates(run, 1, np.array([3]), 5)  # as if some clusters had been skipped
    with pytest.raises(OutputError, match=f"and {total // 2 + 5} of {total} pool rows"):
        world.run("dedup")
    _duplicates(run, 1, np.array([total + 7]), total - total // 2)
    with pytest.raises(OutputError, match=r"00001\.h5: names rows that the embeddings do not have"):
        world.run("dedup")


def test_a_mask_depends_on_what_its_definition_names_and_statistics_on_all_tests(
    world: World,
) -> None:
    tasks = {task.name: task.recipe for task in world.stage.tasks()}

    def uses(name: str) -> set[str]:
        return {
            one.replace("0000", "") for one in tasks[name].inputs if not one.startswith("embed")
        }

    assert uses("full") == set()
    assert uses("dedup") == {"dedup/0", "dedup/1"}
    assert uses("near-b") == {f"scan/{file}#b" for file in range(4)}
    assert {one.partition("#")[2] for one in uses("core")} == {"", "a", "c"}
    assert {one.partition("#")[2] for one in uses("statistics/full")} == {"a", "b", "c"}
    assert "plus_reference" in tasks["near-b"].settings
    assert "plus_reference" not in str(tasks["statistics/near-b"].settings)


def test_a_pool_may_have_more_files_than_a_process_may_hold_open(tmp_path: Path) -> None:
    run, files = Layout(tmp_path), 60
    for index in range(files):
        _scan(run, index, np.eye(3, dtype=bool), np.eye(3, dtype=np.float32), np.zeros(9, np.int64))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 40, hard))
    try:
        found = PoolFiles(run, files, TESTS).open()
        near = sum(int(file.near(["b"])[0].sum()) for file in found)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert (len(found), near) == (files, files)
