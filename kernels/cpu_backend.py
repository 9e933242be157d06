"""Engines for processors: float32 anywhere, bfloat16 and int8 where there are instructions for it.

Shapes: B the rows of a block, R the rows of a tile, D dimensions, G groups of W queries, T the
queries of a tile.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from kernels.engine import Place
from kernels.exact import ROUNDING, float32_bound
from kernels.quantised import Quantised

_TILE_ROWS, _TILE_QUERIES = 2048, 4096


def places(name: str, device: str) -> list[Place]:
    """One place, with a worker for each thread that torch may use."""
    workers = torch.get_num_threads()
    return [Place(torch.device("cpu"), ENGINES[name], width=32, workers=workers, block_rows=4096)]


class _Tiled:
    """A block of rows times all queries, tile by tile; of a tile only group maxima are kept."""

    tile_type: torch.dtype

    def __init__(self, queries_GWD: Tensor) -> None:
        self._groups, self._width, self._dimensions = queries_GWD.shape
        self.epsilon = float32_bound(self._dimensions)

    def upper_bounds(self, rows_BD: Tensor) -> Tensor:
        """See `kernels.engine.Engine`."""
        upper_BG = _empty((len(rows_BD), self._groups), np.float32)
        groups = max(1, _TILE_QUERIES // self._width)
        space = _empty((_TILE_ROWS * groups * self._width,), np.float32).view(self.tile_type)
        for row in range(0, len(rows_BD), _TILE_ROWS):
            some_rows = slice(row, row + _TILE_ROWS)
            rows = self._load(rows_BD[some_rows])
            count = len(rows_BD[some_rows])
            for first in range(0, self._groups, groups):
                some = slice(first, min(first + groups, self._groups))
                queries = slice(some.start * self._width, some.stop * self._width)
                value_RT = space[: count * (queries.stop - queries.start)].view(count, -1)
                self._multiply(rows, queries, value_RT)
                largest_RG = self._largest(value_RT.view(count, -1, self._width))
                upper_BG[some_rows, some] = self._bound(rows, largest_RG, some)
        return upper_BG

    def products(self, rows_XRD: Tensor, queries_XWD: Tensor) -> Tensor:
        """See `kernels.engine.Engine`."""
        return torch.bmm(rows_XRD.float(), queries_XWD.float().mT)

    def _load(self, rows_RD: Tensor) -> Any:
        """Rows as `_multiply` wants them."""
        raise NotImplementedError

    def _multiply(self, rows: Any, queries: slice, value_RT: Tensor) -> None:
        raise NotImplementedError

    def _largest(self, value_RGW: Tensor) -> Tensor:
        return value_RGW.amax(2)

    def _bound(self, rows: Any, largest_RG: Tensor, groups: slice) -> Tensor:
        """(R, G) float32 above every similarity, from the largest values of groups."""
        raise NotImplementedError


class Float32(_Tiled):
    """Multiplies with numpy's BLAS: on AMD's processors it beats the one in torch."""

    tile_type = torch.float32

    def __init__(self, queries_GWD: Tensor) -> None:
        super().__init__(queries_GWD)
        self._queries_TD = queries_GWD.view(-1, self._dimensions).float().numpy()

    def _load(self, rows_RD: Tensor) -> Any:
        return rows_RD.float().numpy()

    def _multiply(self, rows: Any, queries: slice, value_RT: Tensor) -> None:
        np.matmul(rows, self._queries_TD[queries].T, out=value_RT.numpy())

    def _bound(self, rows: Any, largest_RG: Tensor, groups: slice) -> Tensor:
        return largest_RG.add_(self.epsilon + ROUNDING)


class BFloat16(_Tiled):
    """Rounds rows, queries and results to bfloat16; the sums in between are float32."""

    tile_type = torch.bfloat16

    def __init__(self, queries_GWD: Tensor) -> None:
        super().__init__(queries_GWD)
        rounded_GWD = queries_GWD.bfloat16()
        self._queries_DT = rounded_GWD.view(-1, self._dimensions).T
        self._lost_G = _lost(queries_GWD, rounded_GWD).amax(1)
        # Rows as bfloat16 are at most 1 + 2^-8 longer; sums may be cut off instead of rounded.
        self._sums = self._dimensions * 2.0**-23 * 1.02

    def _load(self, rows_RD: Tensor) -> Any:
        rounded_RD = rows_RD.bfloat16()
        return rounded_RD, _lost(rows_RD, rounded_RD) * 1.002 + self._sums

    def _multiply(self, rows: Any, queries: slice, value_RT: Tensor) -> None:
        torch.mm(rows[0], self._queries_DT[:, queries], out=value_RT)

    def _largest(self, value_RGW: Tensor) -> Tensor:
        """As int16, which is compared faster: for numbers >= 0 the order is the same.

        Where all are negative the largest int16 is too, and 0 is an upper bound.
        """
        return value_RGW.view(torch.int16).amax(2).clamp_min_(0).view(torch.bfloat16)

    def _bound(self, rows: Any, largest_RG: Tensor, groups: slice) -> Tensor:
        upper_RG = largest_RG.float()
        upper_RG += upper_RG.abs() * (2.0**-8 * 1.01)  # half a unit in its last place
        upper_RG += rows[1][:, None]
        upper_RG += self._lost_G[groups] * 1.006 + ROUNDING
        return upper_RG


class Int8(_Tiled):
    """Exact products of what int8 keeps of rows and queries; needs VNNI or AMX instructions."""

    tile_type = torch.int32

    def __init__(self, queries_GWD: Tensor) -> None:
        super().__init__(queries_GWD)
        _check_int8(self._dimensions)
        self._quantised = Quantised(queries_GWD)
        self._queries_DT = self._quantised.int8_GWD.view(-1, self._dimensions).T

    def _load(self, rows_RD: Tensor) -> Any:
        return self._quantised.rows(rows_RD)

    def _multiply(self, rows: Any, queries: slice, value_RT: Tensor) -> None:
        torch._int_mm(rows.int8_BD, self._queries_DT[:, queries], out=value_RT)

    def _bound(self, rows: Any, largest_RG: Tensor, groups: slice) -> Tensor:
        return self._quantised.upper_bounds(rows, largest_RG, groups)


ENGINES = {"cpu-float32": Float32, "cpu-bf16": BFloat16, "cpu-int8": Int8}


def _check_int8(dimensions: int) -> None:
    """Refuse a machine whose int8 products saturate: without VNNI they do, without a word.

    Raises:
        RuntimeError: a product of extremes is wrong.
    """
    extreme_RD = torch.full((64, dimensions), 127, dtype=torch.int8)
    extreme_RD[1::2] = -127
    found_RR = torch._int_mm(extreme_RD, extreme_RD.T)
    if not torch.equal(found_RR.double(), extreme_RD.double() @ extreme_RD.double().T):
        raise RuntimeError("int8 products saturate on this machine: they need VNNI or AMX")


def _empty(shape: tuple[int, ...], dtype: Any) -> Tensor:
    """Uninitialised, by numpy: it asks for huge pages, which makes new memory far cheaper."""
    return torch.from_numpy(np.empty(shape, dtype=dtype))


def _lost(rows: Tensor, rounded: Tensor) -> Tensor:
    """Length of what rounding to bfloat16 takes from rows, along the last dimension."""
    return (rows.float() - rounded.float()).norm(dim=-1) * 1.0001 + 1e-7
