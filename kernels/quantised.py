"""Rows and queries as int8, with a proven bound on what that loses.

The mean of the queries is taken off them and a fixed random rotation spreads what is left evenly
over the dimensions. Then a pool row has a scale, and a group of queries has one. README.md has the
bound. Products of int8 are exact in int32, in any order, on any machine that can do them.

Shapes: B rows, D dimensions, G groups of W queries.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kernels.exact import float32_bound

_LARGEST = 127
_UP = 1.0001
"""Covers the rounding of norms that are computed in float32."""
_ROUNDING = 2.0**-20
"""Covers rounding to float32 of what is of the order of 1, a few times."""


class QuantisedRows(NamedTuple):
    """Pool rows, and what bounds their similarities."""

    int8_BD: Tensor
    scale_B: Tensor
    base_B: Tensor
    """Similarity to the mean query, and the row's part of the bound."""
    longest: float
    """The length of the longest row as int8 says it."""


class Quantised:
    """The queries in their groups."""

    def __init__(self, queries_GWD: Tensor) -> None:
        groups, _, dimensions = queries_GWD.shape
        device = queries_GWD.device
        generator = torch.Generator().manual_seed(0)
        random_DD = torch.randn(dimensions, dimensions, generator=generator, dtype=torch.float64)
        rotation_DD = torch.linalg.qr(random_DD).Q.to(device)
        mean_D = queries_GWD.view(-1, dimensions).mean(0, dtype=torch.float32)
        self._rotation_DD, self._mean_D = rotation_DD.float(), mean_D

        self.int8_GWD = torch.empty_like(queries_GWD, dtype=torch.int8)
        self.scale_G = torch.empty(groups, device=device)
        self._lost_G = torch.empty(groups, device=device)
        """Length of what the worst query of a group loses."""
        self._longest = 0.0
        for first in range(0, groups, 256):
            some = slice(first, first + 256)
            rest_GWD = (queries_GWD[some].double() - mean_D.double()) @ rotation_DD
            scale_G = (rest_GWD.abs().amax((1, 2)) / _LARGEST).float().clamp_min(1e-30)
            int8_GWD = (rest_GWD / scale_G[:, None, None].double()).round_()
            int8_GWD.clamp_(-_LARGEST, _LARGEST)
            self.int8_GWD[some] = int8_GWD.to(torch.int8)
            self.scale_G[some] = scale_G
            lost_GWD = rest_GWD - int8_GWD * scale_G[:, None, None].double()
            self._lost_G[some] = lost_GWD.norm(dim=2).amax(1).float() * _UP
            self._longest = max(self._longest, rest_GWD.norm(dim=2).max().item())
        self._longest = self._longest * _UP + 1e-6

        absolute = torch.linalg.matrix_norm(rotation_DD.abs(), 2).item()
        self._rotation_bound = (dimensions + 1) * 2.0**-24 * 1.02 * absolute
        """A row of length one, rotated in float32, is that far off."""
        self._slack = float32_bound(dimensions) + _ROUNDING

    def rows(self, rows_BD: Tensor) -> QuantisedRows:
        """Quantise float16 rows (B, D)."""
        x_BD = rows_BD.float()
        rotated_BD = x_BD @ self._rotation_DD
        scale_B = (rotated_BD.abs().amax(1) / _LARGEST).clamp_min_(1e-30)
        int8_BD = (rotated_BD / scale_B[:, None]).round_().clamp_(-_LARGEST, _LARGEST)
        kept_BD = int8_BD * scale_B[:, None]
        longest = kept_BD.norm(dim=1).max().item() * _UP
        lost_B = kept_BD.sub_(rotated_BD).norm(dim=1).mul_(_UP).add_(self._rotation_bound + 1e-6)
        base_B = x_BD @ self._mean_D + lost_B * self._longest + self._slack
        return QuantisedRows(int8_BD.to(torch.int8), scale_B, base_B, longest)

    def upper_bounds(self, rows: QuantisedRows, largest_BG: Tensor, groups: slice) -> Tensor:
        """From each group's largest int32 product (B, G) to an upper bound in float32."""
        upper_BG = largest_BG * self.scale_G[groups]
        upper_BG *= rows.scale_B[:, None]
        upper_BG += rows.base_B[:, None]
        upper_BG += self._lost_G[groups] * rows.longest
        return upper_BG
