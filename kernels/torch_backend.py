"""The portable fast backend: float32 tiles as a prefilter, borderline pairs again in float64.

A tile is the product of a block of pool rows and a span of queries of one test set. The pairs in it
that could change a result (a hit list, usually short) are picked out by comparing with thresholds
lowered by the error bound; those that float32 cannot decide are computed again, exactly. Memory is
bounded by the tile, whatever N and M. README.md has the argument.

Shapes: N pool rows, M queries, D dimensions, S test sets (S1 = S + 1), K neighbours; B the rows of
a block, T the queries of a span, P listed pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kernels.exact import Floats, Ints, Rows, check_squares, float32_bound
from kernels.reference import Scan


class Tile(NamedTuple):
    """Size of a tile: pool rows and queries."""

    rows: int
    queries: int


class Span(NamedTuple):
    """Queries first:last, all of test set `test`; or of none, to look for neighbours only."""

    first: int
    last: int
    test: int | None


_TILES = {"cpu": Tile(1024, 2048), "cuda": Tile(4096, 8192)}  # on a CPU, 8 MB: it stays in cache
_NUMBERS_AT_ONCE = {"cpu": 2**18, "cuda": 2**25}  # gathered at a time to compute pairs again
_ON_CPU: Any = torch.backends.mkldnn  # its stubs lack `matmul`
_PENDING = 2**16  # candidates that are always worth waiting for before sorting them in


def scan(
    pool_ND: Rows,
    queries_MD: Rows,
    threshold_M: Floats,
    offsets_S1: Ints,
    *,
    k: int,
    device: str,
    tile: Tile | None = None,
) -> Scan:
    """See `kernels.scan`; `tile` is for tests and measurements, no result depends on it."""
    with _full_precision():
        work = _Pass(queries_MD, threshold_M, offsets_S1, k, device, tile)
        blocks = [block.results() for block in work.blocks(pool_ND)]
        neighbour_similarity_MK, neighbour_row_MK = work.neighbours.results()
    near_NS, best_similarity_NS, best_query_NS = map(np.concatenate, zip(*blocks, strict=True))
    return Scan(
        near_NS=near_NS,
        best_similarity_NS=best_similarity_NS,
        best_query_NS=best_query_NS,
        above_threshold_M=work.above_M.cpu().numpy(),
        neighbour_similarity_MK=neighbour_similarity_MK,
        neighbour_row_MK=neighbour_row_MK,
        rechecked=work.rechecked,
        backend=f"torch-{work.device.type}",
    )


def nearest(
    pool_ND: Rows, queries_MD: Rows, *, k: int, device: str, tile: Tile | None = None
) -> tuple[Floats, Ints]:
    """See `kernels.nearest`; `tile` as in `scan`."""
    nothing_above_M = np.full(len(queries_MD), np.inf)
    with _full_precision():
        work = _Pass(queries_MD, nothing_above_M, None, k, device, tile)
        for _ in work.blocks(pool_ND):
            pass
        return work.neighbours.results()


class _Pass:
    """One pass over a pool: what is known of the queries so far, on the device."""

    def __init__(
        self,
        queries_MD: Rows,
        threshold_M: Floats,
        offsets_S1: Ints | None,
        k: int,
        device: str,
        tile: Tile | None,
    ) -> None:
        self.device = torch.device(device)
        rows, queries = _TILES[self.device.type]
        # The first block must hold several times k rows, or it does not bound the k-th nearest.
        self.tile = tile or Tile(max(rows, 4 * k), queries)
        self.epsilon = float32_bound(queries_MD.shape[1])
        self.queries_MD = _on_device(queries_MD, self.device)
        self.threshold_M = torch.from_numpy(threshold_M.copy()).to(self.device)
        self.above_M = torch.zeros(len(threshold_M), dtype=torch.int64, device=self.device)
        self.neighbours = _Neighbours(len(queries_MD), k, self.device)
        self.tests = 0 if offsets_S1 is None else len(offsets_S1) - 1
        self.spans = list(_spans(len(queries_MD), offsets_S1, self.tile.queries))
        self.rechecked = 0

    def blocks(self, pool_ND: Rows) -> Iterator[_Block]:
        """Compare the pool with all queries, block by block; each block when it is finished."""
        size = min(self.tile.rows, len(pool_ND)) * max(
            last - first for first, last, _ in self.spans
        )
        buffer = torch.empty(size, device=self.device, dtype=torch.float32)
        for first_row in range(0, len(pool_ND), self.tile.rows):
            rows_BD = _on_device(pool_ND[first_row : first_row + self.tile.rows], self.device)
            squares_B = (rows_BD * rows_BD).sum(1, dtype=torch.float64)
            check_squares("pool_ND", squares_B.cpu().numpy(), first_row)
            block = _Block(first_row, rows_BD, self.tests)
            for span in self.spans:
                self._tile(block, span, buffer)
            yield block

    def _tile(self, block: _Block, span: Span, buffer: Tensor) -> None:
        """Find the pairs of a tile that matter and enter them everywhere."""
        rows, columns = len(block.rows_BD), span.last - span.first
        approximate_BT = buffer[: rows * columns].view(rows, columns)
        torch.mm(block.rows_BD, self.queries_MD[span.first : span.last].T, out=approximate_BT)
        if block.first_row == 0:
            self.neighbours.seed(span, approximate_BT, self.epsilon)

        contends_B = block.contends(span, approximate_BT, self.epsilon)
        row_P, column_P = self._listed(span, approximate_BT, contends_B)
        value_P = approximate_BT[row_P, column_P].double()
        query_P = column_P + span.first

        margin_P = value_P - self.threshold_M[query_P]
        above_P = margin_P > self.epsilon
        again_P = margin_P.abs() <= self.epsilon
        again_P |= value_P >= self.neighbours.floor_M[query_P] - self.epsilon
        if contends_B is not None:
            again_P |= value_P >= contends_B[row_P]

        again = again_P.nonzero()[:, 0]
        row_A, query_A = row_P[again], query_P[again]
        similarity_A = self._exact(block, row_A, query_A, value_P[again])
        above_P[again] = similarity_A > self.threshold_M[query_A]

        above_T = torch.bincount(column_P[above_P], minlength=columns)
        self.above_M[span.first : span.last] += above_T
        self.neighbours.offer(query_A, similarity_A, row_A + block.first_row)
        if span.test is not None:
            block.near_BS[row_P[above_P], span.test] = True
            block.improve(span.test, row_A, query_A, similarity_A)

    def _listed(
        self, span: Span, approximate_BT: Tensor, contends_B: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Row and column of the pairs that may be above, a neighbour, or a row's best."""
        queries = slice(span.first, span.last)
        lowest_T = torch.minimum(self.threshold_M[queries], self.neighbours.floor_M[queries])
        listed_BT = approximate_BT >= _float32_below(lowest_T - self.epsilon)
        if contends_B is not None:
            listed_BT |= approximate_BT >= _float32_below(contends_B)[:, None]
        row_P, column_P = listed_BT.nonzero(as_tuple=True)
        return row_P, column_P

    def _exact(self, block: _Block, row_P: Tensor, query_P: Tensor, value_P: Tensor) -> Tensor:
        """Similarity (P,) of pairs: float16 products are exact in float32, their sum in float64.

        Raises:
            RuntimeError: a float32 value is further away than the bound.
        """
        chunk = max(1, _NUMBERS_AT_ONCE[self.device.type] // self.queries_MD.shape[1])
        similarity_P = torch.empty_like(value_P)
        for first in range(0, len(row_P), chunk):
            pairs = slice(first, first + chunk)
            product = block.rows_BD.index_select(0, row_P[pairs])
            product *= self.queries_MD.index_select(0, query_P[pairs])
            similarity_P[pairs] = product.sum(1, dtype=torch.float64)
        similarity_P += 0.0  # one zero, whatever the order of the sum
        _check_bound(similarity_P, value_P, self.epsilon)
        self.rechecked += len(row_P)
        return similarity_P


class _Block:
    """A block of pool rows, and what is known of them so far."""

    def __init__(self, first_row: int, rows_BD: Tensor, tests: int) -> None:
        shape, device = (len(rows_BD), tests), rows_BD.device
        self.first_row = first_row
        self.rows_BD = rows_BD
        self.near_BS = torch.zeros(shape, dtype=torch.bool, device=device)
        self.best_similarity_BS = torch.full(shape, -torch.inf, dtype=torch.float64, device=device)
        self.best_query_BS = torch.full(shape, -1, dtype=torch.int64, device=device)

    def contends(self, span: Span, approximate_BT: Tensor, epsilon: float) -> Tensor | None:
        """Float32 value (B,) from which on a pair of the tile may be its row's best."""
        if span.test is None:
            return None
        in_tile_B = approximate_BT.amax(1).double() - 2 * epsilon
        return torch.maximum(in_tile_B, self.best_similarity_BS[:, span.test] - epsilon)

    def improve(self, test: int, row_P: Tensor, query_P: Tensor, similarity_P: Tensor) -> None:
        """Enter pairs with queries above those entered before: the largest, then the lowest."""
        best_B = self.best_similarity_BS[:, test]
        largest_B = torch.full_like(best_B, -torch.inf)
        largest_B.scatter_reduce_(0, row_P, similarity_P, "amax")
        query_B = torch.full_like(self.best_query_BS[:, test], torch.iinfo(torch.int64).max)
        winner_P = similarity_P == largest_B[row_P]
        query_B.scatter_reduce_(0, row_P[winner_P], query_P[winner_P], "amin")
        better_B = largest_B > best_B
        self.best_similarity_BS[:, test] = torch.where(better_B, largest_B, best_B)
        self.best_query_BS[:, test] = torch.where(better_B, query_B, self.best_query_BS[:, test])

    def results(self) -> tuple[npt.NDArray[np.bool_], Floats, Ints]:
        """near, best similarity and best query, each (B, S)."""
        found = (self.near_BS, self.best_similarity_BS, self.best_query_BS)
        near_BS, similarity_BS, query_BS = (tensor.cpu().numpy() for tensor in found)
        return near_BS, similarity_BS, query_BS


class _Neighbours:
    """The k nearest pool rows of each query so far, and candidates that are not sorted in yet."""

    def __init__(self, queries: int, k: int, device: torch.device) -> None:
        self.floor_M = torch.full((queries,), -torch.inf, dtype=torch.float64, device=device)
        """A pair below it is not among its query's k nearest."""
        shape = (queries, k)
        self._similarity_MK = torch.full(shape, -torch.inf, dtype=torch.float64, device=device)
        self._row_MK = torch.full(shape, -1, dtype=torch.int64, device=device)
        self._pending: list[tuple[Tensor, Tensor, Tensor]] = []
        self._pending_pairs = 0
        self._most_pending = max(queries * k // 2, _PENDING)

    def seed(self, span: Span, approximate_BT: Tensor, epsilon: float) -> None:
        """Raise the floor by the first block: k groups of rows have a row at least that near."""
        rows, columns = approximate_BT.shape
        k = self._row_MK.shape[1]
        if rows < k:
            return
        groups = min(rows, 8 * k)
        size = rows // groups
        largest_GT = approximate_BT[: groups * size].view(groups, size, columns).amax(1)
        kth_T = largest_GT.topk(k, dim=0).values[-1].double()
        self.floor_M[span.first : span.last] = kth_T - epsilon

    def offer(self, query_P: Tensor, similarity_P: Tensor, row_P: Tensor) -> None:
        """Enter pairs; of one query, in rising order of the rows over all calls."""
        kept = (similarity_P >= self.floor_M[query_P]).nonzero()[:, 0]
        self._pending.append((query_P[kept], similarity_P[kept], row_P[kept]))
        self._pending_pairs += len(kept)
        if self._pending_pairs > self._most_pending:
            self._sort_in()

    def _sort_in(self) -> None:
        """Merge what is pending into the k nearest and raise the floor.

        Stable sorts of rows that are in rising order for each query leave the lowest of equally
        similar rows in front.
        """
        queries, k = self._row_MK.shape
        query_MK = torch.arange(queries, device=self.floor_M.device).repeat_interleave(k)
        table = (query_MK, self._similarity_MK.view(-1), self._row_MK.view(-1))
        query_P, similarity_P, row_P = map(torch.cat, zip(table, *self._pending, strict=True))
        order_P = similarity_P.sort(descending=True, stable=True).indices
        order_P = order_P[query_P[order_P].sort(stable=True).indices]

        count_M = torch.bincount(query_P, minlength=queries)
        first_M = count_M.cumsum(0) - count_M
        rank_P = torch.arange(len(order_P), device=order_P.device) - first_M[query_P[order_P]]
        kept = order_P[rank_P < k]
        self._similarity_MK = similarity_P[kept].view(queries, k)
        self._row_MK = row_P[kept].view(queries, k)
        self.floor_M = torch.maximum(self.floor_M, self._similarity_MK[:, -1])
        self._pending = []
        self._pending_pairs = 0

    def results(self) -> tuple[Floats, Ints]:
        """Similarity (M, K) and row (M, K)."""
        self._sort_in()
        return self._similarity_MK.cpu().numpy(), self._row_MK.cpu().numpy()


def _spans(queries: int, offsets_S1: Ints | None, size: int) -> Iterator[Span]:
    """Cut the queries at the borders of the test sets, and further into at most `size`."""
    borders = [0, queries] if offsets_S1 is None else offsets_S1.tolist()
    for test, (start, end) in enumerate(pairwise(borders)):
        for first in range(start, end, size):
            yield Span(first, min(first + size, end), None if offsets_S1 is None else test)


def _on_device(rows_RD: Rows, device: torch.device) -> Tensor:
    """Rows (R, D) as float32, which holds every float16 number."""
    return torch.from_numpy(np.array(rows_RD)).to(device).float()


def _float32_below(limit: Tensor) -> Tensor:
    """A float32 number that is at most the limit, so that comparing with it loses no pair."""
    rounded = limit.float()
    return torch.nextafter(rounded, torch.full_like(rounded, -torch.inf))


def _check_bound(similarity_P: Tensor, value_P: Tensor, epsilon: float) -> None:
    error = (similarity_P - value_P).abs().max().item() if len(value_P) else 0.0
    if not error <= epsilon:
        raise RuntimeError(
            f"a float32 product is {error:.3g} from the exact one, the proven bound is "
            f"{epsilon:.3g}: this machine's matrix product is not float32"
        )


@contextmanager
def _full_precision() -> Iterator[None]:
    """Switch TF32 and bfloat16 products off, and switch back."""
    before = _precision()
    try:
        _set_precision(("ieee", "ieee") if isinstance(before, tuple) else "highest")
        with torch.inference_mode():
            yield
    finally:
        _set_precision(before)


def _precision() -> tuple[str, str] | str:
    """How float32 matrices are multiplied on CUDA and on the CPU; one word before torch 2.9.

    From 2.9 on the one word must not be read once the two were set: torch raises.
    """
    if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        return torch.get_float32_matmul_precision()
    return torch.backends.cuda.matmul.fp32_precision, _ON_CPU.matmul.fp32_precision


def _set_precision(precision: tuple[str, str] | str) -> None:
    if isinstance(precision, str):
        torch.set_float32_matmul_precision(precision)
    else:
        on_cuda, on_cpu = precision
        torch.backends.cuda.matmul.fp32_precision = on_cuda
        _ON_CPU.matmul.fp32_precision = on_cpu
