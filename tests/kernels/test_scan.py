"""Every engine gives the bits of the definition, however the work is cut."""

from __future__ import annotations

import warnings
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kernels
from kernels import grouped
from kernels.cpu_backend import ENGINES
from kernels.neighbours import Neighbours
from tests.kernels.cases import (
    ON_CPU,
    Case,
    assert_same,
    assert_same_bits,
    make_case,
    reference,
    scan_with,
    unit_rows,
)

SHAPES = [  # N, M, D, S, k, W, B, cuts: whole and ragged groups and blocks, parts in two ways
    (1, 1, 1, 1, 1, 1, 1, ()),
    (1, 7, 3, 2, 4, 4, 1, ()),
    (5, 3, 2, 3, 5, 8, 3, (2,)),
    (7, 5, 16, 1, 9, 2, 1, (1, 6)),
    (49, 14, 33, 1, 3, 32, 7, ()),
    (50, 29, 640, 6, 10, 4, 8, (13, 14)),
    (64, 64, 512, 2, 1, 64, 64, ()),
    (129, 65, 7, 5, 13, 16, 32, (100,)),
    (333, 41, 65, 3, 10, 32, 50, (1, 2, 300)),
    (700, 90, 24, 4, 5, 8, 101, ()),
    (700, 90, 24, 4, 5, 1, 4096, (350,)),
    (1500, 30, 8, 2, 20, 32, 4096, ()),
]


@pytest.mark.parametrize("engine", ON_CPU)
@pytest.mark.parametrize("ties", [True, False])
@pytest.mark.parametrize(
    ("rows", "queries", "dimensions", "tests", "k", "width", "block", "cuts"), SHAPES
)
def test_an_engine_is_the_reference_bit_for_bit(
    rows: int,
    queries: int,
    dimensions: int,
    tests: int,
    k: int,
    width: int,
    block: int,
    cuts: tuple[int, ...],
    ties: bool,
    engine: str,
) -> None:
    case = make_case(rows, queries, dimensions, tests, ties=ties)
    found = scan_with(ENGINES[engine], case, k, width=width, block_rows=block, cuts=cuts)
    assert_same(found, reference(case, k))
    assert found.effort.rows == rows
    assert found.effort.flop == 2 * rows * queries * dimensions


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 40),
    queries=st.integers(1, 20),
    dimensions=st.integers(1, 40),
    tests=st.integers(1, 4),
    k=st.integers(1, 12),
    width=st.integers(1, 9),
    block=st.integers(1, 20),
    cut=st.integers(0, 40),
    seed=st.integers(0, 2**32 - 1),
    ties=st.booleans(),
    engine=st.sampled_from(ON_CPU),
)
def test_an_engine_is_the_reference_for_any_shape_and_cut(
    rows: int,
    queries: int,
    dimensions: int,
    tests: int,
    k: int,
    width: int,
    block: int,
    cut: int,
    seed: int,
    ties: bool,
    engine: str,
) -> None:
    case = make_case(rows, queries, dimensions, min(tests, queries), seed, ties)
    cuts = (cut,) if 0 < cut < rows else ()
    found = scan_with(ENGINES[engine], case, k, width=width, block_rows=block, cuts=cuts)
    assert_same(found, reference(case, k))


@pytest.mark.parametrize("engine", ON_CPU)
def test_nothing_in_a_group_is_above_its_bound(engine: str) -> None:
    import torch

    rng = np.random.default_rng(0)
    rows_BD = torch.from_numpy(unit_rows(rng, 100, 640))
    for queries_MD in (unit_rows(rng, 96, 640), -rows_BD[:96].numpy()):
        queries_GWD = torch.from_numpy(queries_MD).view(-1, 8, 640)
        exact_BG = (
            (rows_BD.double() @ queries_GWD.view(-1, 640).double().T).view(100, 12, 8).amax(2)
        )
        excess_BG = ENGINES[engine](queries_GWD).upper_bounds(rows_BD).double() - exact_BG
        assert excess_BG.min() >= 0
        # bfloat16 says no more than 0 of a group that is below 0
        assert excess_BG[exact_BG > 0].max() < 0.07


def test_a_bound_that_is_broken_is_an_error() -> None:
    class Rough(ENGINES["cpu-float32"]):  # type: ignore[misc]
        def products(self, rows_XRD, queries_XWD):  # type: ignore[no-untyped-def]
            return (rows_XRD.bfloat16() @ queries_XWD.bfloat16().mT).float()

    case = make_case(rows=50, queries=20, dimensions=64, tests=1)
    with pytest.raises(RuntimeError, match="multiplies in lower precision than asked"):
        scan_with(Rough, case, 3)


def test_a_group_bound_that_is_broken_is_an_error() -> None:
    class Low(ENGINES["cpu-float32"]):  # type: ignore[misc]
        def upper_bounds(self, rows_BD):  # type: ignore[no-untyped-def]
            return super().upper_bounds(rows_BD) - 1e-3

    case = make_case(rows=50, queries=20, dimensions=64, tests=1)
    with pytest.raises(RuntimeError, match=r"is 0\.000\d+ above the bound of its group"):
        scan_with(Low, case, 3)


@pytest.mark.parametrize("backend", ["reference", *ON_CPU])
@pytest.mark.parametrize("threshold", [-1.0, 0.3, 0.8, 0.999, 1.0])
def test_duplicates_are_the_later_of_similar_rows(backend: str, threshold: float) -> None:
    rows_ND = unit_rows(np.random.default_rng(0), 300, 48)
    exact_NN = rows_ND.astype(np.float64) @ rows_ND.T.astype(np.float64)
    before = [np.flatnonzero(exact_NN[row, :row] > threshold).tolist() for row in range(300)]
    found = kernels.duplicates(rows_ND, threshold=threshold, backend=backend)
    assert found.earlier_N.tolist() == [rows[0] if rows else -1 for rows in before]
    assert found.similarity_N.tolist() == [
        exact_NN[row, rows[0]] + 0.0 if rows else -np.inf for row, rows in enumerate(before)
    ]


@pytest.mark.parametrize("engine", ON_CPU)
def test_duplicates_over_many_spans(engine: str) -> None:
    import torch

    rows_ND = unit_rows(np.random.default_rng(1), 200, 24)
    place = grouped.Place(torch.device("cpu"), ENGINES[engine], 4, 2, 11)  # spans of 44 rows
    found = grouped.duplicates(rows_ND, threshold=0.9, place=place)
    expected = kernels.duplicates(rows_ND, threshold=0.9, backend="reference")
    assert 0 < (expected.earlier_N >= 0).sum() < 199
    assert_same_bits(found.earlier_N, expected.earlier_N)
    assert_same_bits(found.similarity_N, expected.similarity_N)


def test_the_reference_is_exact() -> None:
    case = make_case(rows=6, queries=5, dimensions=50, tests=2)
    found = reference(case, k=6)
    exact = [
        [
            sum(Fraction(float(a)) * Fraction(float(b)) for a, b in zip(x, q, strict=True))
            for q in case[1]
        ]
        for x in case.pool_ND
    ]
    for query, (tau, rows) in enumerate(zip(case.threshold_M, found.neighbour_row_MK, strict=True)):
        column = [row[query] for row in exact]
        assert rows.tolist() == sorted(range(6), key=lambda row: (-column[row], row))
        expected = [column[row] for row in rows]
        assert [Fraction(float(s)) for s in found.neighbour_similarity_MK[query]] == expected
        assert found.above_threshold_M[query] == sum(
            value > Fraction(float(tau)) for value in column
        )
    for s, (first, last) in enumerate([(0, case.offsets_S1[1]), (case.offsets_S1[1], 5)]):
        for row in range(6):
            part = exact[row][first:last]
            assert Fraction(float(found.best_similarity_NS[row, s])) == max(part)
            assert found.best_query_NS[row, s] == first + part.index(max(part))
            taus = case.threshold_M[first:last]
            assert found.near_NS[row, s] == any(
                value > Fraction(float(tau)) for value, tau in zip(part, taus, strict=True)
            )


@pytest.mark.parametrize("backend", ["reference", *ON_CPU])
def test_copies_of_the_nearest_reference_image_are_not_near(backend: str) -> None:
    rng = np.random.default_rng(3)
    references, queries_MD = unit_rows(rng, 200, 96), unit_rows(rng, 40, 96)
    tau, row = kernels.nearest(references, queries_MD, k=1, backend=backend)
    copies = references[row[:, 0]]
    offsets_S1 = np.array([0, 40])
    found = kernels.scan(copies, queries_MD, tau[:, 0], offsets_S1, k=3, backend=backend)
    assert not found.near_NS.any()
    assert not found.above_threshold_M.any()
    just_below = np.nextafter(tau[:, 0], -2)
    found = kernels.scan(copies, queries_MD, just_below, offsets_S1, k=3, backend=backend)
    assert found.near_NS.all()
    assert_same_bits(found.neighbour_similarity_MK[:, 0], tau[:, 0].copy())


@pytest.mark.parametrize("backend", ["reference", *ON_CPU])
def test_equal_rows_go_to_the_lowest_row_and_query(backend: str) -> None:
    row = unit_rows(np.random.default_rng(0), 1, 20)
    pool_ND, queries_MD = np.repeat(row, 30, axis=0), np.repeat(row, 9, axis=0)
    case = Case(pool_ND, queries_MD, np.zeros(9), np.array([0, 4, 9]))
    found = kernels.scan(*case, k=3, backend=backend)
    assert (found.neighbour_row_MK == [0, 1, 2]).all()
    assert (found.best_query_NS == [0, 4]).all()
    assert (found.above_threshold_M == 30).all()


def test_parts_may_be_smaller_than_k() -> None:
    case = make_case(rows=2, queries=3, dimensions=5, tests=1)
    found = scan_with(ENGINES["cpu-float32"], case, 4)
    assert np.isfinite(found.neighbour_similarity_MK[:, :2]).all()
    assert (found.neighbour_similarity_MK[:, 2:] == -np.inf).all()
    assert (found.neighbour_row_MK[:, 2:] == -1).all()


def test_zero_similarity_has_no_sign() -> None:
    pool_ND = np.array([[1, -0.0, 0], [0, 1, -0.0], [-0.0, -0.0, -1]], dtype=np.float16)
    case = Case(pool_ND, pool_ND[::-1].copy(), np.array([0.0, -0.5, 0.5]), np.array([0, 1, 3]))
    for engine in ON_CPU:
        found = scan_with(ENGINES[engine], case, 3, width=2, block_rows=2)
        assert_same(found, reference(case, 3))
        assert not np.signbit(found.neighbour_similarity_MK).any()


def test_permuted_rows_give_permuted_results() -> None:
    case = make_case(rows=90, queries=21, dimensions=48, tests=3)
    order = np.random.default_rng(1).permutation(90)
    found = kernels.scan(*case, k=90)
    permuted = kernels.scan(case.pool_ND[order], *case[1:], k=90)
    assert_same_bits(permuted.near_NS, found.near_NS[order])
    assert_same_bits(permuted.best_similarity_NS, found.best_similarity_NS[order])
    assert_same_bits(permuted.best_query_NS, found.best_query_NS[order])
    assert_same_bits(permuted.above_threshold_M, found.above_threshold_M)
    assert_same_bits(permuted.neighbour_similarity_MK, found.neighbour_similarity_MK)


@pytest.mark.parametrize("backend", ["reference", "cpu-float32"])
@pytest.mark.parametrize("cuts", [[0, 1, 60, 100], [0, 33, 34, 35, 99, 100]])
def test_parts_added_one_by_one_are_the_whole(cuts: list[int], backend: str) -> None:
    case = make_case(rows=100, queries=17, dimensions=32, tests=2)
    whole = reference(case, 8)
    scanner = kernels.Scanner(*case[1:], k=8, backend=backend)
    for _ in range(2):  # `finish` starts anew
        near = [scanner.add(case.pool_ND[first:last]).near_NS for first, last in pairwise(cuts)]
        queries, effort = scanner.finish()
        assert_same_bits(np.concatenate(near), whole.near_NS)
        assert_same_bits(queries.above_threshold_M, whole.above_threshold_M)
        assert_same_bits(queries.neighbour_similarity_MK, whole.neighbour_similarity_MK)
        assert_same_bits(queries.neighbour_row_MK, whole.neighbour_row_MK)
        assert effort.rows == 100
    scanner.add(case.pool_ND, row_offset=50)
    with pytest.raises(ValueError, match=r"rows 149:151 overlap 50:150, which were added before"):
        scanner.add(case.pool_ND[:2], row_offset=149)


def test_neighbours_by_faiss_are_the_same() -> None:
    pytest.importorskip("faiss")
    case = make_case(rows=300, queries=40, dimensions=32, tests=2)
    whole = reference(case, 6)
    similarity_MK, row_MK = kernels.nearest(*case[:2], k=6, backend="faiss")
    assert_same_bits(similarity_MK, whole.neighbour_similarity_MK)
    assert_same_bits(row_MK, whole.neighbour_row_MK)
    with pytest.raises(ValueError, match="finds neighbours only: leave threshold_M"):
        kernels.scan(*case, k=6, backend="faiss")
    with pytest.raises(ValueError, match="not duplicates"):
        kernels.duplicates(case.pool_ND, threshold=0.5, backend="faiss")


def test_clusters_are_those_that_were_planted() -> None:
    pytest.importorskip("faiss")
    from kernels.faiss_backend import assign_clusters, train_clusters

    rng = np.random.default_rng(0)
    planted = rng.integers(0, 4, 400)
    row_RD = np.eye(16)[planted] + 0.05 * rng.standard_normal((400, 16))
    rows_ND = (row_RD / np.linalg.norm(row_RD, axis=1, keepdims=True)).astype(np.float16)
    centres_CD = train_clusters(rows_ND, 12, seed=1)  # enough for each of the four to have some
    found = assign_clusters(rows_ND, centres_CD)
    assert centres_CD.shape == (12, 16)
    assert len(set(zip(planted.tolist(), found.tolist(), strict=True))) == 12
    distance_NC = ((rows_ND[:, None].astype(np.float32) - centres_CD) ** 2).sum(axis=2)
    assert (distance_NC.argmin(axis=1) == found).all()
    with pytest.raises(ValueError, match="401 clusters of 400 rows, of which 400 are different"):
        train_clusters(rows_ND, 401)
    with pytest.raises(RuntimeError, match="FAISS sees no GPU"):
        train_clusters(rows_ND, 4, gpu=True)


def test_many_ties_wait_for_no_more_than_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kernels.neighbours._WORTH_WAITING", 100)
    monkeypatch.setitem(grouped._PAIRS_AT_ONCE, "cpu", 40)
    waiting: list[int] = []
    sort_in = Neighbours._sort_in

    def spy(neighbours: Neighbours) -> None:
        waiting.append(neighbours._waiting_pairs)
        sort_in(neighbours)

    monkeypatch.setattr(Neighbours, "_sort_in", spy)
    row = unit_rows(np.random.default_rng(0), 1, 8)
    pool_ND, queries_MD = np.repeat(row, 2000, axis=0), np.repeat(row, 50, axis=0)
    case = Case(pool_ND, queries_MD, np.full(50, -1.0), np.array([0, 50]))
    found = scan_with(ENGINES["cpu-float32"], case, 4, width=10, block_rows=40)
    assert_same(found, reference(case, 4))
    assert max(waiting) <= 50 * 4 + 40 * 10


def test_a_pool_on_disk_is_read_without_a_warning(tmp_path: Path) -> None:
    case = make_case(rows=40, queries=6, dimensions=10, tests=1)
    np.save(tmp_path / "pool.npy", case.pool_ND)
    mapped = np.load(tmp_path / "pool.npy", mmap_mode="r")
    told: list[tuple[int, int]] = []
    scanner = kernels.Scanner(*case[1:], k=3, backend="cpu-float32")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scanner.add(mapped, progress=lambda done, rows: told.append((done, rows)))
    assert_same_bits(scanner.finish()[0].neighbour_row_MK, reference(case, 3).neighbour_row_MK)
    assert told[-1] == (40, 40)
    found = kernels.scan(*case, k=3, backend="cpu-float32")
    assert found.backend == "cpu-float32"
    assert found.effort.rechecked >= 40  # at least the best query of each row
    assert "rows/s" in str(found.effort)
    assert found.effort.bound_by in str(found.effort)
