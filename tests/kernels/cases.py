"""Pools and test sets that make things difficult: duplicates, ties, odd shapes."""

from __future__ import annotations

from dataclasses import fields
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch

import kernels
from kernels import cpu_backend, grouped
from kernels.choice import _fault
from kernels.engine import Place
from kernels.exact import Floats, Ints, Rows

ON_CPU = [name for name in cpu_backend.ENGINES if not _fault(name, "cpu")]
"""Those that this processor has the instructions for."""


class Case(NamedTuple):
    pool_ND: Rows
    queries_MD: Rows
    threshold_M: Floats
    offsets_S1: Ints


def unit_rows(rng: np.random.Generator, rows: int, dimensions: int) -> Rows:
    """Rows around a few centres, some of them stored twice, as float16."""
    centre = rng.standard_normal((4, dimensions))[rng.integers(0, 4, rows)]
    row_RD = centre + 0.5 * rng.standard_normal((rows, dimensions))
    row_RD /= np.linalg.norm(row_RD, axis=1, keepdims=True)
    row_RD[rng.integers(0, rows, rows // 3)] = row_RD[rng.integers(0, rows)]
    return row_RD.astype(np.float16)


def make_case(
    rows: int, queries: int, dimensions: int, tests: int, seed: int = 0, ties: bool = True
) -> Case:
    """A pool with rows equal to queries; with `ties`, thresholds equal to similarities."""
    rng = np.random.default_rng(seed)
    pool_ND = unit_rows(rng, rows, dimensions)
    queries_MD = unit_rows(rng, queries, dimensions)
    pool_ND[rng.integers(0, rows)] = queries_MD[0]
    similarity_NM = pool_ND.astype(np.float64) @ queries_MD.astype(np.float64).T
    threshold_M = similarity_NM[rng.integers(0, rows, queries), np.arange(queries)]
    if not ties:
        threshold_M = rng.uniform(-1, 1, queries)
    inner = np.sort(rng.permutation(np.arange(1, queries))[: tests - 1])
    return Case(pool_ND, queries_MD, threshold_M, np.array([0, *inner, queries], dtype=np.int64))


def assert_same(found: kernels.Scan, expected: kernels.Scan) -> None:
    """Every array has the same dtype, shape and bits."""
    for field in fields(kernels.Scan):
        if field.name not in ("effort", "backend"):
            assert_same_bits(getattr(found, field.name), getattr(expected, field.name), field.name)


def assert_same_bits(found: np.ndarray, expected: np.ndarray, name: str = "") -> None:
    assert found.dtype == expected.dtype, name
    assert found.shape == expected.shape, name
    np.testing.assert_array_equal(found, expected, err_msg=name)
    assert found.tobytes() == expected.tobytes(), f"{name}: another zero"


def scan_with(
    make_engine: Any,
    case: Case,
    k: int,
    *,
    width: int = 8,
    block_rows: int = 64,
    workers: int = 2,
    cuts: tuple[int, ...] = (),
) -> kernels.Scan:
    """Scan with an engine, cut as told; the parts of the pool are added last part first."""
    place = Place(torch.device("cpu"), make_engine, width, workers, block_rows)
    scanner = grouped.Scanner(*case[1:], k=k, places=[place])
    borders = [0, *cuts, len(case.pool_ND)]
    parts = [
        scanner.add(case.pool_ND[first:last], first, lambda done, rows: None)
        for first, last in list(pairwise(borders))[::-1]
    ][::-1]
    queries, effort = scanner.finish()
    pool = {
        field.name: np.concatenate([getattr(part, field.name) for part in parts])
        for field in fields(kernels.PoolScan)
    }
    return kernels.Scan(**pool, **vars(queries), backend="", effort=effort)


def reference(case: Case, k: int) -> kernels.Scan:
    """By the definition; K may exceed N."""
    scanner = kernels.Scanner(*case[1:], k=k, backend="reference")
    pool = scanner.add(case.pool_ND)
    queries, effort = scanner.finish()
    return kernels.Scan(**vars(pool), **vars(queries), backend="reference", effort=effort)
