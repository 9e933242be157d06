"""Deduplication against its definition: what is compared, what is found, what is refused."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kernels
from hpc.stage import Context, OutputError, Resources, Stage
from pipeline import artifacts
from pipeline.experiment.sections import Dedup, Pool, Similarity
from pipeline.layout import POOL, Layout
from pipeline.selection import deduplication
from pipeline.stages import assign, cluster, dedup

pytest.importorskip("faiss")

_TINY = 1e-6  # GB: less than the rows of any cluster, so that they go to the scratch file


@dataclass(frozen=True)
class SmallPool:
    """A pool of embeddings files that were written as they are."""

    run: Layout
    pool: Pool
    rows: list[Any]

    def stages(self, **settings: Any) -> list[Stage]:
        """Cluster, assign and dedup."""
        values = (self.run, self.pool, Dedup(**settings), Similarity(backend="cpu-float32"))
        return [cluster.Cluster(*values), assign.Assign(*values), dedup.Dedup(*values)]

    def run_stages(self, stages: Sequence[Stage], memory_gb: float = 1.0) -> list[dict[str, Any]]:
        """Run all tasks; returns the counts of the last stage."""
        counts: list[dict[str, Any]] = []
        for stage in stages:
            tasks = stage.tasks()
            counts = [_run(stage, task, memory_gb) for task in tasks]
            for task in tasks:
                assert stage.check(task, "d")
        return counts

    def assigned(self) -> Any:
        """The cluster of each row."""
        files = range(len(self.rows))
        return np.concatenate(
            [artifacts.read(self.run.assignment(i), artifacts.ASSIGNMENT)["cluster"] for i in files]
        )

    def found(self, files: int) -> list[tuple[Any, ...]]:
        """Every duplicate in the order of identities."""
        paths = [self.run.duplicates(index) for index in range(files)]
        names = list(artifacts.DUPLICATES.datasets)
        found: list[tuple[Any, ...]] = []
        for part in deduplication.read_duplicates(paths, sum(map(len, self.rows))):
            rows = list(zip(*(part[name].tolist() for name in names), strict=True))
            assert rows == sorted(rows)
            found += rows
        return sorted(found)

    def expected(self, threshold: float) -> list[tuple[Any, ...]]:
        """The definition, pair by pair in float64."""
        row_ND = np.concatenate(self.rows).astype(np.float64)
        identity = [(file, row) for file, rows in enumerate(self.rows) for row in range(len(rows))]
        clusters, similarity_NN = self.assigned(), row_ND @ row_ND.T + 0.0
        expected = []
        for later in range(len(row_ND)):
            for earlier in range(later):
                value = similarity_NN[later, earlier]
                if clusters[later] == clusters[earlier] and value > threshold:
                    expected.append((*identity[later], *identity[earlier], float(value)))
                    break
        return expected


def _run(stage: Stage, task: Any, memory_gb: float = 1.0) -> dict[str, Any]:
    context = Context(
        digest="d",
        inputs={},
        resources=Resources(memory_gb=memory_gb),
        progress=lambda done, total, unit: None,
    )
    counts = stage.run(task, context)
    assert isinstance(counts, dict)
    return counts


def write_pool(folder: Path, rows: list[Any]) -> SmallPool:
    """Embeddings files with these rows, each (n, D) float16."""
    run, shards = Layout(folder / "run"), folder / "shards"
    shards.mkdir()
    for index, part in enumerate(rows):
        (shards / f"{index:05d}.tar").touch()
        nothing = artifacts.encode_text([])
        artifacts.write(
            run.embeddings(POOL, index),
            artifacts.EMBEDDINGS,
            "e",
            {
                "embedding": part,
                "key": artifacts.encode_text([f"{index}-{row}" for row in range(len(part))]),
                "shard": np.zeros(len(part), dtype=np.int32),
                "skipped_key": nothing,
                "skipped_reason": nothing,
            },
            dict.fromkeys(artifacts.EMBEDDINGS.attributes, ""),
        )
    return SmallPool(run, Pool(shards=f"{shards}/*.tar"), rows)


def unit(rows: Any) -> Any:
    """Rows of length one as float16."""
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def crowd(count: int, dimensions: int = 24, seed: int = 0) -> Any:
    """Rows around a few places, some near to each other, some twice and some many times."""
    rng = np.random.default_rng(seed)
    places = rng.standard_normal((9, dimensions))[rng.integers(0, 9, count)]
    rows = unit(places + rng.choice([0.02, 0.2, 1.0], (count, 1)) * rng.standard_normal((count, 1)))
    rows = unit(rows + 0.1 * rng.standard_normal((count, dimensions)) * rng.random((count, 1)))
    rows[rng.integers(0, count, count // 6)] = rows[rng.integers(0, count, count // 6)]
    rows[rng.integers(0, count, count // 8)] = rows[5]
    return rows


def cut(rows: Any, *borders: int) -> list[Any]:
    """Into embeddings files."""
    return np.split(rows, borders)


@pytest.mark.parametrize(
    ("borders", "settings", "memory_gb"),
    [
        ((), {"clusters": 1, "threshold": 0.9}, 1.0),
        ((100, 200, 290), {"clusters": 7, "threshold": 0.95, "files": 3}, 1.0),
        ((100, 100, 101), {"clusters": 7, "threshold": 0.95, "files": 2}, _TINY),
        ((50, 150), {"clusters": 40, "threshold": 0.5, "files": 40}, 1.0),
        ((10,), {"clusters": 3, "threshold": -1.0}, 1e-5),
        ((10,), {"clusters": 3, "threshold": 1.0}, 1.0),
    ],
)
def test_duplicates_are_those_of_the_definition(
    tmp_path: Path, borders: tuple[int, ...], settings: dict[str, Any], memory_gb: float
) -> None:
    pool = write_pool(tmp_path, cut(crowd(320), *borders))
    counts = pool.run_stages(pool.stages(**settings), memory_gb)
    files = settings.get("files", 1)
    assert len(counts) == files
    assert sum(count["rows"] for count in counts) == 320
    found = pool.found(files)
    assert found == pool.expected(settings["threshold"])
    assert 0 < len(found) < 320
    assert sum(count["duplicates"] for count in counts) == len(found)
    folder = pool.run.duplicates(0).parent
    assert len(list(folder.iterdir())) == files  # and no scratch file


def test_a_similarity_equal_to_the_threshold_is_no_duplicate(tmp_path: Path) -> None:
    pool = write_pool(tmp_path, cut(crowd(200), 120))
    pool.run_stages(pool.stages(clusters=4, threshold=0.9))
    tau = min(found[-1] for found in pool.found(1))
    pool.run_stages(pool.stages(clusters=4, threshold=tau)[2:])
    found = pool.found(1)
    assert found == pool.expected(tau)
    assert all(similarity > tau for *_, similarity in found)


def test_every_backend_and_cut_gives_the_same_bits(tmp_path: Path) -> None:
    rows, results = crowd(250, 64), []
    for number, borders in enumerate([(), (1, 2, 60), (125,)]):
        folder = tmp_path / str(number)
        folder.mkdir()
        pool = write_pool(folder, cut(rows, *borders))
        stages = pool.stages(clusters=1, threshold=0.93)
        pool.run_stages(stages)
        starts = [0, *borders]
        results.append([(starts[f] + r, starts[kf] + kr, s) for f, r, kf, kr, s in pool.found(1)])
    assert results[0] == results[1] == results[2]
    for backend in ("reference", "cpu-float32", "auto"):
        found = kernels.duplicates(rows, threshold=0.93, backend=backend, device="cpu")
        row = np.flatnonzero(found.earlier_N >= 0)
        expected = list(
            zip(row.tolist(), found.earlier_N[row], found.similarity_N[row], strict=True)
        )
        assert results[0] == expected


def test_no_cluster_is_left_out_nor_an_empty_one_a_fault(tmp_path: Path) -> None:
    rows = unit(np.repeat(np.eye(6), [1, 4, 1, 3, 1, 1], axis=0))
    pool = write_pool(tmp_path, [rows[:0], rows[:6], rows[:0], rows[6:]])
    stages = pool.stages(clusters=9, threshold=0.5, files=4)
    centroids = np.zeros((9, 6), dtype=np.float32)
    centroids[[1, 3, 4, 6, 7, 8]] = np.eye(6)
    centroids[[0, 2, 5]] = -1.0  # nobody's
    attributes = dict.fromkeys(artifacts.CENTROIDS.attributes, 0)
    artifacts.write(
        pool.run.centroids, artifacts.CENTROIDS, "d", {"centroid": centroids}, attributes
    )
    counts = pool.run_stages(stages[1:])
    assert np.bincount(pool.assigned(), minlength=9).tolist() == [0, 1, 0, 4, 1, 0, 3, 1, 1]
    assert [count["rows"] for count in counts] == [1, 4, 1, 5]
    assert [count["empty_clusters"] for count in counts] == [1, 1, 1, 0]
    assert sum(count["clusters"] for count in counts) == 9
    assert pool.found(4) == [
        *((1, row, 1, 1, 1.0) for row in (2, 3, 4)),
        *((3, row, 3, 0, 1.0) for row in (1, 2)),
    ]


def test_planted_reposts_are_found(tmp_path: Path) -> None:
    """Every re-post of the miniature world, in an embedding by its pixels."""
    from PIL import Image

    from pipeline.data.world.items import pool_image

    images = [pool_image(0, index, 25) for index in range(400)]
    pixels = [
        np.asarray(Image.open(io.BytesIO(image.jpeg)).convert("RGB").resize((8, 8)), dtype=float)
        for image in images
    ]
    rows = unit(np.stack([(one - one.mean()).ravel() for one in pixels]))
    origins = {
        index: int(image.origin.partition("/")[2])
        for index, image in enumerate(images)
        if (image.origin or "").startswith(f"{POOL}/")
    }
    similarity = rows.astype(np.float64) @ rows.astype(np.float64).T
    threshold = 0.95
    planted = {row for row, origin in origins.items() if similarity[row, origin] > threshold}
    assert len(planted) > 5
    for clusters in (1, 8):
        folder = tmp_path / str(clusters)
        folder.mkdir()
        pool = write_pool(folder, cut(rows, 150, 300))
        pool.run_stages(pool.stages(clusters=clusters, threshold=threshold))
        starts = [0, 150, 300]
        found = {starts[file] + row for file, row, *_ in pool.found(1)}
        cluster_of = pool.assigned()
        reachable = {row for row in planted if cluster_of[row] == cluster_of[origins[row]]}
        assert reachable <= found
        assert len(reachable) > 5
        if clusters == 1:
            assert planted <= found
            assert len(found) < 0.2 * len(rows)


def test_a_range_that_was_cut_off_leaves_nothing_and_is_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = write_pool(tmp_path, cut(crowd(300), 150))
    stages = pool.stages(clusters=12, threshold=0.9, files=2)
    pool.run_stages(stages)
    whole = pool.found(2)
    pool.run.duplicates(1).unlink()
    calls: list[int] = []

    def cut_off(rows: Any, **words: Any) -> Any:
        calls.append(len(rows))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return found_in(rows, **words)

    found_in = kernels.duplicates
    monkeypatch.setattr(kernels, "duplicates", cut_off)
    task = stages[2].tasks()[1]
    with pytest.raises(KeyboardInterrupt):
        _run(stages[2], task, _TINY)
    assert [path.name for path in pool.run.duplicates(0).parent.iterdir()] == ["00000.h5"]
    with pytest.raises(OutputError, match=r"00001\.h5 is missing"):
        pool.found(2)
    monkeypatch.undo()
    _run(stages[2], task, _TINY)
    assert pool.found(2) == whole


def test_files_that_do_not_cover_the_pool_are_refused(tmp_path: Path) -> None:
    pool = write_pool(tmp_path, cut(crowd(100), 50))
    pool.run_stages(pool.stages(clusters=6, files=3))
    paths = [pool.run.duplicates(index) for index in range(3)]
    for wrong, rows, message in (
        ([paths[0], paths[2]], 100, "expected clusters from 2, found from 4"),
        (paths[:2], 100, r"cover 4 of 6 clusters and \d+ of 100 pool rows"),
        (paths, 101, "cover 6 of 6 clusters and 100 of 101 pool rows"),
    ):
        with pytest.raises(OutputError, match=message):
            list(deduplication.read_duplicates(wrong, rows))


def test_what_can_not_be_clustered_is_an_error_with_its_place(tmp_path: Path) -> None:
    rows = crowd(100)
    pool = write_pool(tmp_path, [np.repeat(rows[:3], 20, axis=0), rows[:2]])
    words = r"dedup\.clusters, on 62 rows drawn: 5 clusters of 62 rows, of which 3 are different"
    with pytest.raises(ValueError, match=words):
        pool.run_stages(pool.stages(clusters=5)[:1])
    pool.run_stages(pool.stages(clusters=3))  # as many as there are different rows

    (tmp_path / "bad").mkdir()
    rows[70] = 0
    bad = write_pool(tmp_path / "bad", cut(rows, 60))
    with pytest.raises(ValueError, match=r"pool/00001\.h5: rows_ND row 10 has length 0"):
        artifacts.write(
            bad.run.centroids,
            artifacts.CENTROIDS,
            "d",
            {"centroid": np.eye(24, dtype=np.float32)},
            dict.fromkeys(artifacts.CENTROIDS.attributes, 0),
        )
        bad.run_stages(bad.stages(clusters=24)[1:])


def test_more_files_than_clusters_are_refused() -> None:
    with pytest.raises(
        ValueError, match="expected no more files than clusters, found 7 files of 6"
    ):
        Dedup(clusters=6, files=7)


def test_an_assignment_to_no_cluster_is_refused(tmp_path: Path) -> None:
    pool = write_pool(tmp_path, [crowd(50)])
    stages = pool.stages(clusters=5)
    pool.run_stages(stages)
    path = pool.run.assignment(0)
    wrong = np.array(artifacts.read(path, artifacts.ASSIGNMENT)["cluster"])
    wrong[7] = 5
    attributes = {"clusters": 5, "device": "cpu"}
    artifacts.write(path, artifacts.ASSIGNMENT, "d", {"cluster": wrong}, attributes)
    with pytest.raises(ValueError, match=r"00000\.h5 row 7: cluster 5, expected 0 to 4"):
        _run(stages[2], stages[2].tasks()[0])


def test_rows_to_train_on_are_drawn_from_the_whole_pool() -> None:
    counts = [50, 0, 200, 1]
    drawn = list(deduplication.draw(counts, 60, 3))
    assert sum(len(rows) for _, rows in drawn) == 60
    for file, rows in drawn:
        assert len(set(rows.tolist())) == len(rows)
        assert rows.min() >= 0 and rows.max() < counts[file]
    again = list(deduplication.draw(counts, 60, 3))
    assert [rows.tolist() for _, rows in again] == [rows.tolist() for _, rows in drawn]
    assert sum(len(rows) for _, rows in deduplication.draw(counts, 1000, 3)) == 251
    shares = [
        sum(len(r) for f, r in deduplication.draw(counts, 60, s) if f == 2) for s in range(40)
    ]
    assert abs(np.mean(shares) - 60 * 200 / 251) < 3


def test_a_change_runs_only_what_depends_on_it(tmp_path: Path) -> None:
    pool = write_pool(tmp_path, cut(crowd(60), 30))

    def recipes(**settings: Any) -> list[Any]:
        stages = pool.stages(clusters=6, **settings)
        return [[task.recipe for task in stage.tasks()] for stage in stages]

    before = recipes()
    threshold, seed, files = recipes(threshold=0.5), recipes(seed=1), recipes(files=2)
    assert threshold[:2] == before[:2] and threshold[2] != before[2]
    assert seed[0] != before[0]
    assert files[:2] == before[:2] and len(files[2]) == 2
    assert "cluster/centroids" in before[1][0].inputs
    assert {"assign/00000", "assign/00001", "embed/pool/00001"} <= set(before[2][0].inputs)
    without = [
        kind(pool.run, pool.pool, None, Similarity())
        for kind in (cluster.Cluster, assign.Assign, dedup.Dedup)
    ]
    assert [stage.tasks() for stage in without] == [[], [], []]
