"""Pools and test sets that make things difficult: duplicates, ties, odd shapes."""

from __future__ import annotations

from dataclasses import fields
from typing import NamedTuple

import numpy as np
import torch

import kernels
from kernels.exact import Floats, Ints, Rows

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


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
        if field.name not in ("rechecked", "backend"):
            assert_same_bits(getattr(found, field.name), getattr(expected, field.name), field.name)


def assert_same_bits(found: np.ndarray, expected: np.ndarray, name: str = "") -> None:
    assert found.dtype == expected.dtype, name
    assert found.shape == expected.shape, name
    np.testing.assert_array_equal(found, expected, err_msg=name)
    assert found.tobytes() == expected.tobytes(), f"{name}: another zero"
