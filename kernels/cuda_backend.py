"""torch on NVIDIA GPUs: float16 products on tensor cores, summed in float32; group maxima after.

The portable way; where Triton is installed its kernel keeps the products in registers instead.

Shapes: B the rows of a block, D dimensions, G groups of W queries.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from kernels.engine import Engine, Place
from kernels.exact import ROUNDING, float32_bound, tensor_core_bound

_TILE_NUMBERS = 2**28
"""float32 numbers of a tile: 1 GiB."""


def places(name: str, device: str) -> list[Place]:
    """One for each GPU that "cuda" means."""
    return gpu_places(TensorCores, device)


def gpu_places(make_engine: Callable[[Tensor], Engine], device: str) -> list[Place]:
    """All GPUs for "cuda", one for "cuda:1"; two workers each take turns."""
    count = torch.cuda.device_count()
    names = [f"cuda:{number}" for number in range(count)] if device == "cuda" else [device]
    return [
        Place(torch.device(name), make_engine, width=64, workers=2, block_rows=32_768)
        for name in names
    ]


class TensorCores:
    """Tiles of products in the GPU's memory, reduced by a second kernel."""

    def __init__(self, queries_GWD: Tensor) -> None:
        self._queries_GWD = queries_GWD
        dimensions = queries_GWD.shape[2]
        narrow = queries_GWD.is_cuda and _sums_in_float32()
        self.epsilon = (tensor_core_bound if narrow else float32_bound)(dimensions)

    def upper_bounds(self, rows_BD: Tensor) -> Tensor:
        """See `kernels.engine.Engine`."""
        groups, width, dimensions = self._queries_GWD.shape
        upper_BG = torch.empty(len(rows_BD), groups, device=rows_BD.device)
        step = max(1, _TILE_NUMBERS // (len(rows_BD) * width))
        for first in range(0, groups, step):
            queries_GWD = self._queries_GWD[first : first + step]
            value_BT = self._product(rows_BD, queries_GWD.reshape(-1, dimensions))
            upper_BG[:, first : first + step] = value_BT.view(len(rows_BD), -1, width).amax(2)
        return upper_BG.add_(self.epsilon + ROUNDING)

    def products(self, rows_XRD: Tensor, queries_XWD: Tensor) -> Tensor:
        """See `kernels.engine.Engine`."""
        return self._product(rows_XRD, queries_XWD)

    def _product(self, a: Tensor, b: Tensor) -> Tensor:
        if not (a.is_cuda and _sums_in_float32()):
            return a.float() @ b.float().mT
        multiply = torch.mm if a.ndim == 2 else torch.bmm
        return multiply(a, b.mT, out_dtype=torch.float32)


@cache
def _sums_in_float32() -> bool:
    """Whether this torch can give float32 products of float16 matrices; releases since 2.8 can."""
    one = torch.ones(8, 8, dtype=torch.float16, device="cuda")
    try:
        torch.mm(one, one, out_dtype=torch.float32)
    except (TypeError, RuntimeError):
        return False
    return True
