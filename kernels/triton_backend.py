"""Triton: a matrix product that keeps nothing but the largest value of each group of queries.

The N x M products stay in registers: one maximum for each of them, then 1 / W of them are written.
Two kernels do the same: `_largest_tma` feeds Hopper's tensor cores through TMA descriptors and
stays resident, `_largest` uses pointers and runs anywhere. TRITON_INTERPRET=1 runs both on a CPU.

Shapes: B the rows of a block, D dimensions, G groups of W queries, T queries in all.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from kernels.cuda_backend import TensorCores, gpu_places
from kernels.engine import Place
from kernels.exact import ROUNDING, tensor_core_bound
from kernels.quantised import Quantised


def places(name: str, device: str) -> list[Place]:
    """One for each GPU that "cuda" means."""
    return gpu_places({"triton": Float16, "triton-int8": Int8}[name], device)


class Tile(NamedTuple):
    """How a kernel is cut: rows, queries and dimensions at a time, warps, pipeline stages."""

    rows: int
    queries: int
    dimensions: int
    warps: int
    stages: int


_HOPPER, _OTHERS = Tile(128, 256, 64, 8, 3), Tile(128, 128, 64, 8, 3)
_TILES_TOGETHER = 8
"""Row tiles that are worked on together, so that they find the queries in the L2 cache."""


@triton.jit
def _place(tile, row_tiles, query_tiles, together: tl.constexpr):
    """Row tile and query tile of a tile's number; neighbours in number share queries and rows."""
    width = together * query_tiles
    first = tile // width * together
    height = min(row_tiles - first, together)
    return first + tile % width % height, tile % width // height


@triton.jit
def _keep(
    product,
    out,
    row_tile,
    query_tile,
    rows,
    out_stride,
    tile_rows: tl.constexpr,
    tile_groups: tl.constexpr,
    width: tl.constexpr,
):
    """Write the largest value of each group of a tile."""
    row = row_tile * tile_rows + tl.arange(0, tile_rows)
    group = query_tile * tile_groups + tl.arange(0, tile_groups)
    largest = tl.max(tl.reshape(product, [tile_rows, tile_groups, width]), 2)
    at = out + group[None, :].to(tl.int64) * out_stride + row[:, None]
    tl.store(at, largest, mask=(row < rows)[:, None])


@triton.jit
def _largest(
    x,
    q,
    out,
    rows,
    query_tiles,
    x_stride,
    q_stride,
    out_stride,
    dimensions: tl.constexpr,
    tile_rows: tl.constexpr,
    tile_queries: tl.constexpr,
    tile_dimensions: tl.constexpr,
    width: tl.constexpr,
    together: tl.constexpr,
    sum_type: tl.constexpr,
):
    row_tile, query_tile = _place(tl.program_id(0), tl.cdiv(rows, tile_rows), query_tiles, together)
    row = row_tile * tile_rows + tl.arange(0, tile_rows)
    row = tl.where(row < rows, row, 0)
    query = query_tile * tile_queries + tl.arange(0, tile_queries)
    dimension = tl.arange(0, tile_dimensions)
    x_at = x + row[:, None].to(tl.int64) * x_stride + dimension[None, :]
    q_at = q + query[:, None].to(tl.int64) * q_stride + dimension[None, :]
    product = tl.zeros([tile_rows, tile_queries], sum_type)
    for first in range(0, dimensions, tile_dimensions):
        inside = (dimension < dimensions - first)[None, :]
        x_tile = tl.load(x_at + first, mask=inside, other=0)
        q_tile = tl.load(q_at + first, mask=inside, other=0)
        product = tl.dot(x_tile, q_tile.T, product)
    _keep(
        product,
        out,
        row_tile,
        query_tile,
        rows,
        out_stride,
        tile_rows,
        tile_queries // width,
        width,
    )


@triton.jit
def _largest_tma(
    x,
    q,
    out,
    rows,
    query_tiles,
    out_stride,
    programs,
    dimensions: tl.constexpr,
    tile_rows: tl.constexpr,
    tile_queries: tl.constexpr,
    tile_dimensions: tl.constexpr,
    width: tl.constexpr,
    together: tl.constexpr,
    sum_type: tl.constexpr,
):
    row_tiles = tl.cdiv(rows, tile_rows)
    for tile in tl.range(tl.program_id(0), row_tiles * query_tiles, programs, flatten=True):
        row_tile, query_tile = _place(tile, row_tiles, query_tiles, together)
        product = tl.zeros([tile_rows, tile_queries], sum_type)
        for first in range(0, dimensions, tile_dimensions):
            x_tile = x.load([row_tile * tile_rows, first])
            q_tile = q.load([query_tile * tile_queries, first])
            product = tl.dot(x_tile, q_tile.T, product)
        _keep(
            product,
            out,
            row_tile,
            query_tile,
            rows,
            out_stride,
            tile_rows,
            tile_queries // width,
            width,
        )


class GroupMaxima:
    """Queries in their groups, ready to be multiplied with rows of the same type."""

    def __init__(
        self, queries_GWD: Tensor, *, tma: bool | None = None, tile: Tile | None = None
    ) -> None:
        """Lay out the queries.

        Args:
            queries_GWD: float16 or int8; W is a power of two.
            tma: use the kernel for Hopper; by default where it can be used.
            tile: by default one that suits the device; its queries are a multiple of W.
        """
        self._groups, self._width, self._dimensions = queries_GWD.shape
        is_hopper = queries_GWD.is_cuda and torch.cuda.get_device_capability() >= (9, 0)
        aligned = self._dimensions * queries_GWD.element_size() % 16 == 0
        self._tma = (is_hopper and aligned) if tma is None else tma
        self._tile = tile or (_HOPPER if self._tma else _OTHERS)
        self._integer = queries_GWD.dtype == torch.int8
        queries_TD = queries_GWD.reshape(-1, self._dimensions)
        padding_TD = queries_TD[-1:].expand(-len(queries_TD) % self._tile.queries, -1)
        self._queries_TD = torch.cat([queries_TD, padding_TD])

    def __call__(self, rows_BD: Tensor) -> Tensor:
        """Multiply rows (B, D); the numbers of a row are contiguous.

        Returns:
            (B, G) float32, or int32 for int8; its columns are contiguous, not its rows.
        """
        tile, rows = self._tile, len(rows_BD)
        query_tiles = len(self._queries_TD) // tile.queries
        row_tiles = triton.cdiv(rows, tile.rows)
        out_GB = torch.empty(
            len(self._queries_TD) // self._width,
            rows,
            dtype=torch.int32 if self._integer else torch.float32,
            device=rows_BD.device,
        )
        common: dict[str, Any] = {
            "dimensions": self._dimensions,
            "tile_rows": tile.rows,
            "tile_queries": tile.queries,
            "tile_dimensions": tile.dimensions,
            "width": self._width,
            "together": _TILES_TOGETHER,
            "sum_type": tl.int32 if self._integer else tl.float32,
            "num_warps": tile.warps,
            "num_stages": tile.stages,
        }
        if self._tma:
            programs = min(_processors(rows_BD), row_tiles * query_tiles)
            _largest_tma[(programs,)](
                TensorDescriptor.from_tensor(rows_BD, [tile.rows, tile.dimensions]),
                TensorDescriptor.from_tensor(self._queries_TD, [tile.queries, tile.dimensions]),
                out_GB,
                rows,
                query_tiles,
                out_GB.stride(0),
                programs,
                **common,
            )
        else:
            _largest[(row_tiles * query_tiles,)](
                rows_BD,
                self._queries_TD,
                out_GB,
                rows,
                query_tiles,
                rows_BD.stride(0),
                self._queries_TD.stride(0),
                out_GB.stride(0),
                **common,
            )
        return out_GB[: self._groups].T


class Float16(TensorCores):
    """float16 products, summed in float32."""

    def __init__(self, queries_GWD: Tensor, **how: Any) -> None:
        super().__init__(queries_GWD)
        self._maxima = GroupMaxima(queries_GWD, **how)
        self._widening = tensor_core_bound(queries_GWD.shape[2]) + ROUNDING

    def upper_bounds(self, rows_BD: Tensor) -> Tensor:
        """See `kernels.engine.Engine`."""
        return self._maxima(rows_BD).add_(self._widening)


class Int8(TensorCores):
    """Exact products of what int8 keeps of rows and queries."""

    def __init__(self, queries_GWD: Tensor, **how: Any) -> None:
        super().__init__(queries_GWD)
        self._quantised = Quantised(queries_GWD)
        self._maxima = GroupMaxima(self._quantised.int8_GWD, **how)

    def upper_bounds(self, rows_BD: Tensor) -> Tensor:
        """See `kernels.engine.Engine`."""
        rows = self._quantised.rows(rows_BD)
        return self._quantised.upper_bounds(rows, self._maxima(rows.int8_BD), slice(None))


def _processors(tensor: Tensor) -> int:
    """How many programs stay resident; few where the kernel is interpreted."""
    if not tensor.is_cuda:
        return 3
    return torch.cuda.get_device_properties(tensor.device).multi_processor_count
