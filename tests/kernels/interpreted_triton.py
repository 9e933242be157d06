"""Run by `test_triton` with TRITON_INTERPRET=1, which must be set before Triton is imported."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kernels.triton_backend import Float16, GroupMaxima, Int8, Tile
from tests.kernels.cases import assert_same, make_case, reference, scan_with, unit_rows

SMALL = Tile(rows=32, queries=32, dimensions=16, warps=4, stages=2)


@pytest.mark.parametrize("engine", [Float16, Int8])
@pytest.mark.parametrize("tma", [False, True])
@pytest.mark.parametrize(
    ("rows", "queries", "dimensions", "tests", "k", "width"),
    [
        (1, 1, 16, 1, 1, 16),
        (70, 45, 48, 3, 5, 16),
        (90, 200, 64, 6, 10, 8),
        (33, 31, 640, 2, 3, 32),
    ],
)
def test_the_kernels_are_the_reference_bit_for_bit(
    rows: int,
    queries: int,
    dimensions: int,
    tests: int,
    k: int,
    width: int,
    tma: bool,
    engine: type,
) -> None:
    case = make_case(rows, queries, dimensions, tests)
    found = scan_with(
        lambda queries_GWD: engine(queries_GWD, tma=tma, tile=SMALL),
        case,
        k,
        width=width,
        workers=1,
    )
    assert_same(found, reference(case, k))


@pytest.mark.parametrize("dimensions", [1, 7, 17, 33])
def test_dimensions_that_fill_no_tile(dimensions: int) -> None:
    case = make_case(20, 15, dimensions, 2)
    found = scan_with(lambda q: Float16(q, tile=SMALL), case, 3, width=4, workers=1)
    assert_same(found, reference(case, 3))


@pytest.mark.parametrize("tma", [False, True])
def test_nothing_beyond_the_arrays_is_used(tma: bool) -> None:
    """Memory around the rows is NaN, and so is what the result is written into."""
    rng = np.random.default_rng(0)
    around = torch.full((60, 32), torch.nan, dtype=torch.float16)
    around[7:52] = torch.from_numpy(unit_rows(rng, 45, 32))
    queries_GWD = torch.from_numpy(unit_rows(rng, 5 * 8, 32)).view(5, 8, 32)
    exact = (around[7:52].double() @ queries_GWD.view(-1, 32).double().T).view(45, 5, 8).amax(2)
    real = torch.empty

    def poisoned(*shape: int, **options: object) -> torch.Tensor:
        return real(*shape, **options).fill_(torch.nan)  # type: ignore[call-overload,no-any-return]

    maxima = GroupMaxima(queries_GWD, tma=tma, tile=SMALL)
    torch.empty = poisoned  # type: ignore[assignment]
    try:
        found = maxima(around[7:52])
    finally:
        torch.empty = real
    assert (found.double() - exact).abs().max() < 1e-6


def test_addresses_beyond_2_to_the_31() -> None:
    """Rows that lie 2^29 numbers apart: untouched memory costs nothing."""
    stride = 2**29
    everything = torch.empty(6 * stride, dtype=torch.float16)
    rows_BD = everything.as_strided((6, 16), (stride, 1))
    rows_BD.copy_(torch.from_numpy(unit_rows(np.random.default_rng(0), 6, 16)))
    queries_GWD = torch.from_numpy(unit_rows(np.random.default_rng(1), 8, 16)).view(2, 4, 16)
    exact = (rows_BD.double() @ queries_GWD.view(-1, 16).double().T).view(6, 2, 4).amax(2)
    found = GroupMaxima(queries_GWD, tma=False, tile=SMALL)(rows_BD)
    assert (found.double() - exact).abs().max() < 1e-6
