"""What the algorithm of `kernels.grouped` asks of a backend: an engine, and where it works."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Engine(Protocol):
    """A fast way to multiply. It holds the grouped queries as it likes them."""

    epsilon: float
    """The error bound of `products`."""

    def upper_bounds(self, rows_BD: Tensor) -> Tensor:
        """For float16 rows (B, D): (B, G) float32; nothing in a group is above its number."""

    def products(self, rows_XRD: Tensor, queries_XWD: Tensor) -> Tensor:
        """Multiply float16 (X, R, D) by (X, W, D): float32 (X, R, W), each within `epsilon`."""


class Place(NamedTuple):
    """Where work is done, and how it is cut. No result depends on it."""

    device: torch.device
    make_engine: Callable[[Tensor], Engine]
    """From the queries in their groups, float16 (G, W, D), on the device."""
    width: int
    """W."""
    workers: int
    """Threads; on a GPU they take turns, one reads and decides while another multiplies."""
    block_rows: int
    """B."""
