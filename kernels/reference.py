"""The definition: all similarities in float64, then what a scan says of them.

Slow, and N x M x 8 bytes of memory; every other backend must give exactly what this page gives.

Shapes: N pool rows, M queries, D dimensions, S test sets (S1 = S + 1), K neighbours.
"""

from __future__ import annotations

import time
from itertools import pairwise

import numpy as np

from kernels.exact import Floats, Ints, Progress, Rows, check_rows, merge_neighbours, no_neighbours
from kernels.results import Duplicates, Effort, PoolScan, QueryScan


class Scanner:
    """See `kernels.Scanner`."""

    def __init__(self, queries_MD: Rows, threshold_M: Floats, offsets_S1: Ints, *, k: int) -> None:
        self._queries_MD, self._threshold_M, self._offsets_S1 = queries_MD, threshold_M, offsets_S1
        self._k = k
        self._start_anew()

    def _start_anew(self) -> None:
        self._above_M = np.zeros(len(self._queries_MD), dtype=np.int64)
        self._neighbours = [no_neighbours(len(self._queries_MD), self._k)]
        self._effort = Effort()

    def add(self, pool_ND: Rows, row_offset: int, progress: Progress) -> PoolScan:
        """See `kernels.Scanner.add`."""
        started = time.perf_counter()
        similarity_NM = similarity(pool_ND, self._queries_MD)
        above_NM = similarity_NM > self._threshold_M
        best_query_NS = np.empty((len(pool_ND), len(self._offsets_S1) - 1), dtype=np.int64)
        for test, (first, last) in enumerate(pairwise(self._offsets_S1)):
            # argmax gives the lowest of equals
            best_query_NS[:, test] = first + similarity_NM[:, first:last].argmax(axis=1)
        similarity_MK, row_MK = _neighbours(similarity_NM, self._k)
        row_MK[row_MK >= 0] += row_offset
        self._neighbours.append((similarity_MK, row_MK))
        self._above_M += above_NM.sum(axis=0)
        progress(len(pool_ND), len(pool_ND))
        seconds = time.perf_counter() - started
        self._effort += Effort(
            rows=len(pool_ND),
            flop=2 * similarity_NM.size * pool_ND.shape[1],
            seconds=seconds,
            multiplying=seconds,
        )
        return PoolScan(
            near_NS=np.logical_or.reduceat(above_NM, self._offsets_S1[:-1], axis=1),
            best_similarity_NS=np.take_along_axis(similarity_NM, best_query_NS, axis=1),
            best_query_NS=best_query_NS,
        )

    def finish(self) -> tuple[QueryScan, Effort]:
        """See `kernels.Scanner.finish`."""
        found = QueryScan(self._above_M, *merge_neighbours(self._neighbours)), self._effort
        self._start_anew()
        return found


def duplicates(rows_ND: Rows, *, threshold: float) -> Duplicates:
    """See `kernels.duplicates`."""
    similarity_NN = similarity(rows_ND, rows_ND)
    above_NN = np.tril(similarity_NN > threshold, -1)
    any_N, first_N = above_NN.any(axis=1), above_NN.argmax(axis=1)  # argmax: the lowest
    similarity_N = np.take_along_axis(similarity_NN, first_N[:, None], axis=1)[:, 0]
    return Duplicates(np.where(any_N, first_N, -1), np.where(any_N, similarity_N, -np.inf))


def similarity(pool_ND: Rows, queries_MD: Rows) -> Floats:
    """(N, M), exact; adding 0.0 leaves one zero, the sign of the other depends on the order."""
    check_rows("pool_ND", pool_ND)
    similarity_NM: Floats = pool_ND.astype(np.float64) @ queries_MD.astype(np.float64).T
    similarity_NM += 0.0
    return similarity_NM


def _neighbours(similarity_NM: Floats, k: int) -> tuple[Floats, Ints]:
    order_MK = np.argsort(-similarity_NM.T, axis=1, kind="stable")[:, :k]
    missing = ((0, 0), (0, k - order_MK.shape[1]))
    similarity_MK = np.take_along_axis(similarity_NM.T, order_MK, axis=1)
    return (
        np.pad(similarity_MK, missing, constant_values=-np.inf),
        np.pad(order_MK, missing, constant_values=-1),
    )
