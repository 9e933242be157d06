"""The K nearest pool rows of each query, so far.

Shapes: M queries, K neighbours, P pairs of a query and a pool row, T queries of a tile.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.exact import Floats, Ints

_WORTH_WAITING = 2**16
"""Candidates that are always waited for before they are sorted in."""


class Neighbours:
    """A table, and candidates that are not sorted into it yet; on one device, for one thread."""

    def __init__(self, queries: int, k: int, device: torch.device) -> None:
        shape = (queries, k)
        self.floor_M = torch.full((queries,), -torch.inf, dtype=torch.float64, device=device)
        """A pair below it is not among its query's K nearest."""
        self._similarity_MK = torch.full(shape, -torch.inf, dtype=torch.float64, device=device)
        self._row_MK = torch.full(shape, -1, dtype=torch.int64, device=device)
        self._waiting: list[tuple[Tensor, Tensor, Tensor]] = []
        self._waiting_pairs = 0

    def raise_floor(self, first: int, floor_T: Tensor) -> None:
        """Say that queries first:first + T have K rows of at least that similarity in the pool."""
        part_T = self.floor_M[first : first + len(floor_T)]
        torch.maximum(part_T, floor_T, out=part_T)

    def offer(self, query_P: Tensor, similarity_P: Tensor, row_P: Tensor) -> None:
        """Enter pairs, in any order; no pair twice."""
        kept = (similarity_P >= self.floor_M[query_P]).nonzero()[:, 0]
        self._waiting.append((query_P[kept], similarity_P[kept], row_P[kept]))
        self._waiting_pairs += len(kept)
        if self._waiting_pairs > max(self._row_MK.numel(), _WORTH_WAITING):
            self._sort_in()

    def _sort_in(self) -> None:
        """Merge what waits into the table, by (query, -similarity, row), and raise the floor."""
        queries, k = self._row_MK.shape
        query_MK = torch.arange(queries, device=self.floor_M.device).repeat_interleave(k)
        table = (query_MK, self._similarity_MK.view(-1), self._row_MK.view(-1))
        query_P, similarity_P, row_P = map(torch.cat, zip(table, *self._waiting, strict=True))
        order_P = row_P.argsort()
        order_P = order_P[similarity_P[order_P].argsort(descending=True, stable=True)]
        order_P = order_P[query_P[order_P].argsort(stable=True)]

        count_M = torch.bincount(query_P, minlength=queries)
        first_M = count_M.cumsum(0) - count_M
        rank_P = torch.arange(len(order_P), device=order_P.device) - first_M[query_P[order_P]]
        kept = order_P[rank_P < k]
        self._similarity_MK = similarity_P[kept].view(queries, k)
        self._row_MK = row_P[kept].view(queries, k)
        self.raise_floor(0, self._similarity_MK[:, -1])
        self._waiting = []
        self._waiting_pairs = 0

    def results(self) -> tuple[Floats, Ints]:
        """Similarity (M, K) and row (M, K)."""
        self._sort_in()
        return self._similarity_MK.cpu().numpy(), self._row_MK.cpu().numpy()
