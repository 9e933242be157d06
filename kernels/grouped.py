"""The one fast algorithm, for any engine: bound groups of queries, open those that could matter.

Queries are sorted into groups of W of one test set. For a block of pool rows an engine computes, in
whatever arithmetic is fast, an upper bound of each row's largest similarity to each group. Most
groups cannot change any result; those that could are opened: their similarities are computed to
within `epsilon`, and pairs that this leaves undecided again, in float64. README.md has the proof.

Shapes: N pool rows, M queries, D dimensions, S test sets (S1 = S + 1), K neighbours; B the rows of
a block, G groups, W queries of a group, P listed pairs, X stacks of R rows and one group.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kernels.blocks import Watch, in_blocks
from kernels.engine import Place
from kernels.exact import (
    ROUNDING,
    Floats,
    Ints,
    Progress,
    Rows,
    float32_bound,
    merge_neighbours,
)
from kernels.neighbours import Neighbours
from kernels.precision import full_precision
from kernels.results import Duplicates, Effort, PoolScan, QueryScan

_FIRST_ROWS = 4096
"""Pool rows that say, before all others, how near the K-th neighbour is at least."""
_PAIRS_AT_ONCE = {"cpu": 2**15, "cuda": 2**21}
"""Pairs of a row and a group that are opened at a time."""
_NUMBERS_AT_ONCE = {"cpu": 2**20, "cuda": 2**27}
"""Numbers that are gathered at a time to multiply them; on a CPU they fit its cache."""
_NO_QUERY = torch.iinfo(torch.int64).max


class Groups(NamedTuple):
    """Queries in groups of W of one test set."""

    query_GW: Tensor
    """Which query; the last group of a set is padded with its last one."""
    real_GW: Tensor
    """Whether it is not padding."""
    test_G: Tensor
    spans: list[slice]
    """The groups of each test set."""


def group(lowest_M: Tensor, offsets: Sequence[int], width: int) -> Groups:
    """Sort the queries of each set by what they ask for (M,): equally hard ones are together."""
    query, real, spans, groups = [], [], [], 0
    for start, end in pairwise(offsets):
        sorted_T = start + lowest_M[start:end].argsort(stable=True)
        padding = -len(sorted_T) % width
        query.append(torch.cat([sorted_T, sorted_T[-1:].expand(padding)]))
        real.append(torch.arange(len(query[-1]), device=sorted_T.device) < len(sorted_T))
        spans.append(slice(groups, groups + len(query[-1]) // width))
        groups = spans[-1].stop
    test_G = torch.empty(groups, dtype=torch.int64, device=lowest_M.device)
    for test, span in enumerate(spans):
        test_G[span] = test
    return Groups(torch.cat(query).view(-1, width), torch.cat(real).view(-1, width), test_G, spans)


class Scanner:
    """See `kernels.Scanner`; block by block, on one device or several."""

    def __init__(
        self,
        queries_MD: Rows,
        threshold_M: Floats,
        offsets_S1: Ints,
        *,
        k: int,
        places: Sequence[Place],
    ) -> None:
        self._sides = [_Side(place, queries_MD, threshold_M, offsets_S1, k) for place in places]
        self._effort = Effort()

    def add(self, pool_ND: Rows, row_offset: int, progress: Progress) -> PoolScan:
        """See `kernels.Scanner.add`."""
        started = time.perf_counter()
        shape = (len(pool_ND), self._sides[0].tests)
        near_NS = np.empty(shape, dtype=np.bool_)
        best_similarity_NS = np.empty(shape, dtype=np.float64)
        best_query_NS = np.empty(shape, dtype=np.int64)

        def work(side: _Side, first: int, rows_BD: Tensor) -> Effort:
            block = _Block(row_offset + first, rows_BD, side.tests)
            effort = side.scan(block)
            rows = slice(first, first + len(rows_BD))
            near_NS[rows] = block.near_BS.cpu().numpy()
            best_similarity_NS[rows] = block.best_similarity_BS.cpu().numpy()
            best_query_NS[rows] = block.best_query_BS.cpu().numpy()
            return effort

        with full_precision():
            for side in self._sides:
                side.prepare(pool_ND)
            effort = in_blocks(pool_ND, self._sides, work, progress)
        self._effort += replace(
            effort,
            rows=len(pool_ND),
            flop=2 * pool_ND.size * len(self._sides[0].queries_MD),
            seconds=time.perf_counter() - started,
        )
        return PoolScan(near_NS, best_similarity_NS, best_query_NS)

    def finish(self) -> tuple[QueryScan, Effort]:
        """See `kernels.Scanner.finish`."""
        above_M = np.stack([side.above_M.cpu().numpy() for side in self._sides]).sum(axis=0)
        neighbours = merge_neighbours(side.neighbours.results() for side in self._sides)
        found = QueryScan(above_M, *neighbours), self._effort
        for side in self._sides:
            side.forget_pool()
        self._effort = Effort()
        return found


def duplicates(rows_ND: Rows, *, threshold: float, place: Place) -> Duplicates:
    """See `kernels.duplicates`: spans of rows are queries for themselves and rows after.

    Spans come in order, so the first that holds a row's duplicate holds the lowest.
    """
    earlier_N = np.full(len(rows_ND), -1, dtype=np.int64)
    similarity_N = np.full(len(rows_ND), -np.inf)
    no_tests = np.zeros(1, dtype=np.int64)
    with full_precision():
        for start in range(0, len(rows_ND), 4 * place.block_rows):
            queries_MD = rows_ND[start : start + 4 * place.block_rows]
            side = _Side(place, queries_MD, np.full(len(queries_MD), threshold), no_tests, 1)
            side.arrange()

            def work(side: _Side, first: int, rows_BD: Tensor, start: int = start) -> Effort:
                rows = slice(start + first, start + first + len(rows_BD))
                is_new_B = torch.from_numpy(earlier_N[rows] < 0).to(rows_BD.device)
                row_A, query_A, similarity_A = side.repeated(first, rows_BD, is_new_B)
                row = rows.start + row_A.cpu().numpy()
                earlier_N[row] = start + query_A.cpu().numpy()
                similarity_N[row] = similarity_A.cpu().numpy()
                return Effort()

            in_blocks(rows_ND[start:], [side], work, lambda done, rows: None)
    return Duplicates(earlier_N, similarity_N)


class _Side:
    """What one device holds of the queries, and knows of them so far."""

    def __init__(
        self, place: Place, queries_MD: Rows, threshold_M: Floats, offsets_S1: Ints, k: int
    ) -> None:
        self.place = place
        self.queries_MD = torch.from_numpy(np.array(queries_MD)).to(place.device)
        self.tests = len(offsets_S1) - 1
        self._threshold_M = torch.from_numpy(np.array(threshold_M)).to(place.device)
        self._offsets = offsets_S1.tolist() if self.tests else [0, len(queries_MD)]
        self._k = k
        self._is_arranged = False
        self._lock = threading.Lock()
        self.forget_pool()

    def forget_pool(self) -> None:
        """Start anew with the same queries."""
        self.above_M = torch.zeros_like(self._threshold_M, dtype=torch.int64)
        self.neighbours = Neighbours(len(self.queries_MD), self._k, self.place.device)
        self._seen_pool = False

    def prepare(self, pool_ND: Rows) -> None:
        """Look at the first rows of a new pool, and arrange the queries if they are not yet."""
        if not self._seen_pool:
            self._raise_floor(pool_ND)
            self._seen_pool = True
        if not self._is_arranged:
            self.arrange()

    def arrange(self) -> None:
        """Sort the queries into groups, for good: no result depends on them."""
        self._groups = group(self._lowest(), self._offsets, self.place.width)
        self._grouped_GWD = self.queries_MD[self._groups.query_GW]
        self._engine = self.place.make_engine(self._grouped_GWD)
        self._is_arranged = True

    def _raise_floor(self, pool_ND: Rows) -> None:
        """Bound each K-th neighbour: K parts of the first rows hold a row that near, or nearer."""
        parts = min(len(pool_ND), 16 * self._k)
        size = min(len(pool_ND), max(_FIRST_ROWS, parts)) // parts
        if parts < self._k:
            return
        first_RD = torch.from_numpy(np.array(pool_ND[: parts * size])).to(self.place.device).float()
        queries = max(1, 4 * _NUMBERS_AT_ONCE[self.place.device.type] // len(first_RD))
        epsilon = float32_bound(first_RD.shape[1])
        for first in range(0, len(self.queries_MD), queries):
            value_TR = self.queries_MD[first : first + queries].float() @ first_RD.T
            largest_TP = value_TR.view(-1, parts, size).amax(2)
            kth_T = largest_TP.topk(self._k, dim=1).values[:, -1]
            self.neighbours.raise_floor(first, kth_T.double() - epsilon)

    def _lowest(self) -> Tensor:
        """(M,) float64: a pair below it changes no count and no neighbour of its query."""
        return torch.minimum(self._threshold_M, self.neighbours.floor_M)

    def scan(self, block: _Block) -> Effort:
        """Find the pairs of a block that matter and enter them everywhere."""
        watch = Watch(self.place.device)
        upper_BG = self._engine.upper_bounds(block.rows_BD)
        multiplying = watch.lap()

        epsilon, groups, tests = self._engine.epsilon, self._groups, range(self.tests)
        lowest_M = self._lowest()
        reach_GW = (lowest_M - epsilon - ROUNDING).float()[groups.query_GW]
        # First each row's most promising group of each set: it tells how near the best is at least.
        first_BG = torch.zeros_like(upper_BG, dtype=torch.bool)
        for test in tests:
            part_BG = upper_BG[:, groups.spans[test]]
            first_BG[:, groups.spans[test]] = part_BG >= part_BG.amax(1, keepdim=True)
        effort = self._open(block, first_BG, upper_BG, reach_GW)
        wanted_BG = upper_BG >= (lowest_M - ROUNDING).float()[groups.query_GW].amin(1)
        for test in tests:
            least_B = block.largest_BS[:, test] - epsilon - ROUNDING
            span = groups.spans[test]
            wanted_BG[:, span] |= upper_BG[:, span] >= least_B[:, None]
        effort += self._open(block, wanted_BG & ~first_BG, upper_BG, reach_GW)
        return replace(effort, multiplying=multiplying, deciding=watch.lap())

    def repeated(
        self, first_row: int, rows_BD: Tensor, is_new_B: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Find the rows that are above the threshold to a query before them, counted alike.

        Args:
            first_row: of the block.
            rows_BD: the block.
            is_new_B: which rows to look at.

        Returns:
            Rows of the block (A,), the lowest such query of each (A,), their similarity (A,).
        """
        epsilon, query_GW = self._engine.epsilon, self._groups.query_GW
        lowest = float(self._threshold_M[0])
        upper_BG = self._engine.upper_bounds(rows_BD)
        row_B = torch.arange(first_row, first_row + len(rows_BD), device=rows_BD.device)
        wanted_BG = (upper_BG >= lowest - ROUNDING) & (query_GW[:, 0] < row_B[:, None])
        wanted_BG &= is_new_B[:, None]
        first_B = torch.full_like(row_B, _NO_QUERY)
        for row_P, group_P, value_PW in self._values(rows_BD, wanted_BG):
            self._check_upper(value_PW.amax(1) - upper_BG[row_P, group_P])
            query_PW = query_GW[group_P]
            margin_PW = value_PW.double() - lowest
            margin_PW[query_PW >= row_B[row_P, None]] = -torch.inf
            above_PW = margin_PW > epsilon
            pair, slot = (margin_PW.abs() <= epsilon).nonzero(as_tuple=True)
            value_A = value_PW[pair, slot]
            similarity_A = self._exact(rows_BD, row_P[pair], query_PW[pair, slot], value_A)
            above_PW[pair, slot] = similarity_A > lowest
            lowest_P = query_PW.masked_fill(~above_PW, _NO_QUERY).amin(1)
            first_B.scatter_reduce_(0, row_P, lowest_P, "amin")
        row_A = (first_B != _NO_QUERY).nonzero()[:, 0]
        query_A = first_B[row_A]
        return row_A, query_A, self._similarity(rows_BD, row_A, query_A)

    def _open(self, block: _Block, wanted_BG: Tensor, upper_BG: Tensor, reach_GW: Tensor) -> Effort:
        """Look into groups, and enter the pairs that matter.

        Args:
            block: the rows.
            wanted_BG: which groups.
            upper_BG: what the engine says of them.
            reach_GW: float32 value from which on a pair may be above, or a neighbour.
        """
        opened = rechecked = 0
        groups, epsilon = self._groups, self._engine.epsilon
        for row_P, group_P, value_PW in self._values(block.rows_BD, wanted_BG):
            opened += len(row_P)
            self._check_upper(value_PW.amax(1) - upper_BG[row_P, group_P])
            contends_PW = block.contends(row_P, groups.test_G[group_P], value_PW, epsilon)
            listed_PW = contends_PW | (value_PW >= reach_GW[group_P])
            listed_PW &= groups.real_GW[group_P]
            pair, slot = listed_PW.nonzero(as_tuple=True)
            row_L, query_L = row_P[pair], groups.query_GW[group_P[pair], slot]
            value_L = value_PW[pair, slot].double()
            test_L = groups.test_G[group_P[pair]]

            margin_L = value_L - self._threshold_M[query_L]
            above_L = margin_L > epsilon
            again_L = margin_L.abs() <= epsilon
            again_L |= value_L >= self.neighbours.floor_M[query_L] - epsilon
            again_L |= contends_PW[pair, slot]
            again = again_L.nonzero()[:, 0]
            row_A, query_A = row_L[again], query_L[again]
            similarity_A = self._exact(block.rows_BD, row_A, query_A, value_L[again])
            rechecked += len(again)
            above_L[again] = similarity_A > self._threshold_M[query_A]

            block.enter(row_L[above_L], test_L[above_L])
            block.improve(row_A, test_L[again], query_A, similarity_A)
            above_M = torch.bincount(query_L[above_L], minlength=len(self.above_M))
            with self._alone():
                self.above_M += above_M
                self.neighbours.offer(query_A, similarity_A, row_A + block.first_row)
        return Effort(opened=opened, rechecked=rechecked, epsilon=epsilon)

    def _values(
        self, rows_BD: Tensor, wanted_BG: Tensor
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Rows (P,), groups (P,) and values (P, W) within epsilon, some pairs at a time.

        Pairs of the same group are stacked, so that a group is multiplied with several rows.
        """
        kind, dimensions, width = self.place.device.type, rows_BD.shape[1], self.place.width
        row_P, group_P = wanted_BG.nonzero(as_tuple=True)
        group_P, order_P = group_P.sort(stable=True)
        row_P = row_P[order_P]
        for first in range(0, len(row_P), _PAIRS_AT_ONCE[kind]):
            row_C = row_P[first : first + _PAIRS_AT_ONCE[kind]]
            group_C = group_P[first : first + _PAIRS_AT_ONCE[kind]]
            group_U, count_U = group_C.unique_consecutive(return_counts=True)
            together = _rows_in_stack(kind, len(group_C) / len(group_U))
            stacks_at_once = max(1, _NUMBERS_AT_ONCE[kind] // (dimensions * (together + width)))
            stacks_U = (count_U + together - 1) // together
            nth_C = _count_within(count_U)
            stack_C = (stacks_U.cumsum(0) - stacks_U).repeat_interleave(count_U) + nth_C // together
            group_X = group_U.repeat_interleave(stacks_U)
            row_XR = torch.zeros(len(group_X), together, dtype=torch.int64, device=row_C.device)
            row_XR[stack_C, nth_C % together] = row_C
            value_XRW = torch.empty(len(group_X), together, width, device=row_C.device)
            for stack in range(0, len(group_X), stacks_at_once):
                some = slice(stack, stack + stacks_at_once)
                rows_XRD = rows_BD.index_select(0, row_XR[some].view(-1))
                value_XRW[some] = self._engine.products(
                    rows_XRD.view(-1, together, dimensions), self._grouped_GWD[group_X[some]]
                )
            yield row_C, group_C, value_XRW[stack_C, nth_C % together]

    def _exact(self, rows_BD: Tensor, row_P: Tensor, query_P: Tensor, value_P: Tensor) -> Tensor:
        """Similarity (P,) of pairs whose values are known to within epsilon.

        Raises:
            RuntimeError: a value is further away than the bound.
        """
        similarity_P = self._similarity(rows_BD, row_P, query_P)
        error = (similarity_P - value_P).abs().max().item() if len(value_P) else 0.0
        if not error <= self._engine.epsilon:
            raise RuntimeError(
                f"a product is {error:.3g} from the exact one, its bound is "
                f"{self._engine.epsilon:.3g}: this machine multiplies in lower precision than asked"
            )
        return similarity_P

    def _similarity(self, rows_BD: Tensor, row_P: Tensor, query_P: Tensor) -> Tensor:
        """(P,): float16 products are exact in float32, their sum in float64."""
        chunk = max(1, _NUMBERS_AT_ONCE[self.place.device.type] // 4 // rows_BD.shape[1])
        similarity_P = torch.empty(len(row_P), dtype=torch.float64, device=row_P.device)
        for first in range(0, len(row_P), chunk):
            pairs = slice(first, first + chunk)
            product = rows_BD.index_select(0, row_P[pairs]).float()
            product *= self.queries_MD.index_select(0, query_P[pairs])
            similarity_P[pairs] = product.sum(1, dtype=torch.float64)
        similarity_P += 0.0  # one zero, whatever the order of the sum
        return similarity_P

    def _check_upper(self, excess_P: Tensor) -> None:
        """Notice an engine whose upper bounds are none.

        Raises:
            RuntimeError: a value is above its group's bound.
        """
        excess = excess_P.max().item() if len(excess_P) else 0.0
        if not excess <= self._engine.epsilon + ROUNDING:
            raise RuntimeError(
                f"a similarity is {excess:.3g} above the bound of its group: this machine "
                "multiplies in lower precision than asked"
            )

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Let one thread at a time, and on a GPU one stream, change what all of them share."""
        with self._lock:
            if self.place.device.type == "cpu":
                yield
                return
            torch.cuda.current_stream().synchronize()
            with torch.cuda.stream(torch.cuda.default_stream(self.place.device)):
                yield
                torch.cuda.current_stream().synchronize()


class _Block:
    """A block of pool rows, and what is known of them so far."""

    def __init__(self, first_row: int, rows_BD: Tensor, tests: int) -> None:
        shape, device = (len(rows_BD), tests), rows_BD.device
        self.first_row = first_row
        self.rows_BD = rows_BD
        self.near_BS = torch.zeros(shape, dtype=torch.bool, device=device)
        self.best_similarity_BS = torch.full(shape, -torch.inf, dtype=torch.float64, device=device)
        self.best_query_BS = torch.full(shape, _NO_QUERY, device=device)
        self.largest_BS = torch.full(shape, -torch.inf, device=device)
        """The largest value seen, to within epsilon."""

    def contends(self, row_P: Tensor, test_P: Tensor, value_PW: Tensor, epsilon: float) -> Tensor:
        """Whether a pair may be its row's best: (P, W) bool."""
        if not self.near_BS.numel():
            return torch.zeros_like(value_PW, dtype=torch.bool)
        place_P = self._place(row_P, test_P)
        largest = self.largest_BS.view(-1)
        largest.scatter_reduce_(0, place_P, value_PW.amax(1), "amax")
        return value_PW >= (largest[place_P] - 2 * epsilon - ROUNDING)[:, None]

    def enter(self, row_P: Tensor, test_P: Tensor) -> None:
        """Enter pairs that are above."""
        if self.near_BS.numel():
            self.near_BS[row_P, test_P] = True

    def improve(self, row_P: Tensor, test_P: Tensor, query_P: Tensor, similarity_P: Tensor) -> None:
        """Enter pairs that may be best: the largest, then the lowest query."""
        if not self.near_BS.numel():
            return
        place_P = self._place(row_P, test_P)
        similarity, query = self.best_similarity_BS.view(-1), self.best_query_BS.view(-1)
        before = similarity.clone()
        similarity.scatter_reduce_(0, place_P, similarity_P, "amax")
        query[similarity > before] = _NO_QUERY
        best = (similarity_P == similarity[place_P]).nonzero()[:, 0]
        query.scatter_reduce_(0, place_P[best], query_P[best], "amin")

    def _place(self, row_P: Tensor, test_P: Tensor) -> Tensor:
        return row_P * self.near_BS.shape[1] + test_P


def _rows_in_stack(kind: str, rows_in_group: float) -> int:
    """A power of two near the usual number of rows that open a group: less is left empty."""
    fewest = {"cpu": 8, "cuda": 32}[kind]
    return max(fewest, min(128, 1 << round(math.log2(max(rows_in_group, 1)))))


def _count_within(count_U: Tensor) -> Tensor:
    """For counts 2, 3: 0 1 0 1 2."""
    first_U = count_U.cumsum(0) - count_U
    return torch.arange(int(count_U.sum()), device=count_U.device) - first_U.repeat_interleave(
        count_U
    )
