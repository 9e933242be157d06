"""Every backend gives the bits of the definition, however the work is cut."""

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
from kernels import torch_backend
from kernels.torch_backend import Tile
from tests.kernels.cases import DEVICES, Case, assert_same, assert_same_bits, make_case, unit_rows

SHAPES = [  # N, M, D, S, k, tile: one tile to several times seven, whole and ragged
    (1, 1, 1, 1, 1, None),
    (1, 7, 3, 2, 4, (1, 1)),
    (5, 3, 2, 3, 5, (5, 3)),
    (7, 5, 16, 1, 9, (3, 2)),
    (49, 14, 33, 1, 3, (7, 14)),
    (50, 29, 640, 6, 10, (8, 5)),
    (64, 64, 512, 2, 1, (64, 64)),
    (129, 65, 7, 5, 13, (32, 16)),
    (333, 41, 65, 3, 10, (50, 41)),
    (700, 90, 24, 4, 5, (101, 13)),
    (1500, 30, 8, 2, 20, None),
]


def scan(
    case: Case, k: int, device: str = "cpu", tile: tuple[int, int] | None = None
) -> kernels.Scan:
    return torch_backend.scan(*case, k=k, device=device, tile=tile and Tile(*tile))


def reference(case: Case, k: int) -> kernels.Scan:
    return kernels.scan(*case, k=k, backend="reference")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("ties", [True, False])
@pytest.mark.parametrize(("rows", "queries", "dimensions", "tests", "k", "tile"), SHAPES)
def test_torch_is_the_reference_bit_for_bit(
    rows: int,
    queries: int,
    dimensions: int,
    tests: int,
    k: int,
    tile: tuple[int, int] | None,
    ties: bool,
    device: str,
) -> None:
    case = make_case(rows, queries, dimensions, tests, ties=ties)
    expected = reference(case, k)
    assert_same(scan(case, k, device, tile), expected)
    similarity_MK, row_MK = torch_backend.nearest(
        *case[:2], k=k, device=device, tile=tile and Tile(*tile)
    )
    assert_same_bits(similarity_MK, expected.neighbour_similarity_MK)
    assert_same_bits(row_MK, expected.neighbour_row_MK)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 40),
    queries=st.integers(1, 20),
    dimensions=st.integers(1, 40),
    tests=st.integers(1, 4),
    k=st.integers(1, 12),
    tile=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    seed=st.integers(0, 2**32 - 1),
    ties=st.booleans(),
)
def test_torch_is_the_reference_for_any_shape_and_tile(
    rows: int,
    queries: int,
    dimensions: int,
    tests: int,
    k: int,
    tile: tuple[int, int],
    seed: int,
    ties: bool,
) -> None:
    case = make_case(rows, queries, dimensions, min(tests, queries), seed, ties)
    assert_same(scan(case, k, tile=tile), reference(case, k))


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


@pytest.mark.parametrize("backend", ["reference", "torch-cpu"])
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


@pytest.mark.parametrize("backend", ["reference", "torch-cpu"])
def test_equal_rows_go_to_the_lowest_row_and_query(backend: str) -> None:
    row = unit_rows(np.random.default_rng(0), 1, 20)
    pool_ND, queries_MD = np.repeat(row, 30, axis=0), np.repeat(row, 9, axis=0)
    case = Case(pool_ND, queries_MD, np.zeros(9), np.array([0, 4, 9]))
    found = kernels.scan(*case, k=3, backend=backend)
    assert (found.neighbour_row_MK == [0, 1, 2]).all()
    assert (found.best_query_NS == [0, 4]).all()
    assert (found.above_threshold_M == 30).all()


def test_a_small_pool_is_padded() -> None:
    case = make_case(rows=2, queries=3, dimensions=5, tests=1)
    found = scan(case, k=4)
    assert np.isfinite(found.neighbour_similarity_MK[:, :2]).all()
    assert (found.neighbour_similarity_MK[:, 2:] == -np.inf).all()
    assert (found.neighbour_row_MK[:, 2:] == -1).all()
    shifted = kernels.scan(*case, k=4, row_offset=100)
    assert (shifted.neighbour_row_MK[:, :2] == found.neighbour_row_MK[:, :2] + 100).all()
    assert (shifted.neighbour_row_MK[:, 2:] == -1).all()


def test_zero_similarity_has_no_sign() -> None:
    pool_ND = np.array([[1, -0.0, 0], [0, 1, -0.0], [-0.0, -0.0, -1]], dtype=np.float16)
    case = Case(pool_ND, pool_ND[::-1].copy(), np.array([0.0, -0.5, 0.5]), np.array([0, 1, 3]))
    for tile in [(1, 1), (2, 2), (3, 3)]:
        assert_same(scan(case, 3, tile=tile), reference(case, 3))
    assert not np.signbit(scan(case, 2).neighbour_similarity_MK).any()


def test_permuted_rows_give_permuted_results() -> None:
    case = make_case(rows=90, queries=21, dimensions=48, tests=3)
    order = np.random.default_rng(1).permutation(90)
    found, permuted = scan(case, 90), scan(case._replace(pool_ND=case.pool_ND[order]), 90)
    assert_same_bits(permuted.near_NS, found.near_NS[order])
    assert_same_bits(permuted.best_similarity_NS, found.best_similarity_NS[order])
    assert_same_bits(permuted.best_query_NS, found.best_query_NS[order])
    assert_same_bits(permuted.above_threshold_M, found.above_threshold_M)
    assert_same_bits(permuted.neighbour_similarity_MK, found.neighbour_similarity_MK)


@pytest.mark.parametrize("cuts", [[0, 1, 60, 100], [0, 33, 34, 35, 99, 100]])
def test_files_scanned_one_by_one_and_merged_are_the_whole(cuts: list[int]) -> None:
    case = make_case(rows=100, queries=17, dimensions=32, tests=2)
    whole = reference(case, 8)
    parts = [
        kernels.scan(*case._replace(pool_ND=case.pool_ND[first:last]), k=8, row_offset=first)
        for first, last in pairwise(cuts)
    ]
    neighbours = [(part.neighbour_similarity_MK, part.neighbour_row_MK) for part in parts]
    for some_order in (neighbours, neighbours[::-1]):
        similarity_MK, row_MK = kernels.merge_neighbours(some_order)
        assert_same_bits(similarity_MK, whole.neighbour_similarity_MK)
        assert_same_bits(row_MK, whole.neighbour_row_MK)
    assert_same_bits(np.concatenate([part.near_NS for part in parts]), whole.near_NS)
    above_PM = np.stack([part.above_threshold_M for part in parts])
    assert_same_bits(above_PM.sum(axis=0), whole.above_threshold_M)


def test_many_ties_need_no_more_memory_than_a_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_backend, "_PENDING", 100)
    waiting: list[int] = []
    sort_in = torch_backend._Neighbours._sort_in

    def spy(neighbours: torch_backend._Neighbours) -> None:
        waiting.append(neighbours._pending_pairs)
        sort_in(neighbours)

    monkeypatch.setattr(torch_backend._Neighbours, "_sort_in", spy)
    row = unit_rows(np.random.default_rng(0), 1, 8)
    pool_ND, queries_MD = np.repeat(row, 2000, axis=0), np.repeat(row, 50, axis=0)
    case = Case(pool_ND, queries_MD, np.full(50, -1.0), np.array([0, 50]))
    found = scan(case, k=4, tile=(40, 10))
    assert_same(found, reference(case, 4))
    assert max(waiting) <= 100 + 40 * 10


def test_a_pool_on_disk_is_read_without_a_warning(tmp_path: Path) -> None:
    case = make_case(rows=40, queries=6, dimensions=10, tests=1)
    np.save(tmp_path / "pool.npy", case.pool_ND)
    mapped = np.load(tmp_path / "pool.npy", mmap_mode="r")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = kernels.scan(mapped, *case[1:], k=3, backend="torch-cpu")
    assert_same(found, reference(case, 3))
    assert found.backend == "torch-cpu"
    assert found.rechecked >= 40  # at least the best query of each row
