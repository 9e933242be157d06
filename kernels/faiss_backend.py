"""FAISS: k-means for deduplication, and a flat search as a second opinion on neighbours.

Shapes: N pool rows, M queries, D dimensions, K neighbours, C clusters, T training rows, L listed
rows of a query.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import numpy.typing as npt

from kernels.exact import (
    Floats,
    Ints,
    Progress,
    Rows,
    check_count,
    check_matrix,
    check_rows,
    float32_bound,
    merge_neighbours,
    no_neighbours,
)
from kernels.results import Effort, PoolScan, QueryScan

_NUMBERS_AT_ONCE = 2**24
_ROWS_AT_ONCE = 65_536


class Scanner:
    """See `kernels.Scanner`; for neighbours only."""

    def __init__(self, queries_MD: Rows, threshold_M: Floats, offsets_S1: Ints, *, k: int) -> None:
        if len(offsets_S1) > 1:
            raise ValueError(
                "backend 'faiss' finds neighbours only: leave threshold_M and offsets_S1 out"
            )
        self._queries_MD, self._k = queries_MD, k
        self._start_anew()

    def _start_anew(self) -> None:
        self._neighbours = [no_neighbours(len(self._queries_MD), self._k)]
        self._effort = Effort()

    def add(self, pool_ND: Rows, row_offset: int, progress: Progress) -> PoolScan:
        """See `kernels.Scanner.add`."""
        started = time.perf_counter()
        check_rows("pool_ND", pool_ND)
        index = _faiss().IndexFlatIP(pool_ND.shape[1])
        index.add(pool_ND.astype(np.float32))
        row_ML = self._listed(index)
        multiplying = time.perf_counter() - started
        similarity_ML = _similarity(pool_ND, self._queries_MD, row_ML)
        order_MK = np.lexsort((row_ML, -similarity_ML), axis=1)[:, : self._k]
        missing = ((0, 0), (0, self._k - order_MK.shape[1]))
        similarity_MK = np.take_along_axis(similarity_ML, order_MK, axis=1)
        row_MK = np.take_along_axis(row_ML, order_MK, axis=1) + row_offset
        self._neighbours.append(
            (
                np.pad(similarity_MK, missing, constant_values=-np.inf),
                np.pad(row_MK, missing, constant_values=-1),
            )
        )
        seconds = time.perf_counter() - started
        self._effort += Effort(
            rows=len(pool_ND),
            flop=2 * pool_ND.size * len(self._queries_MD),
            seconds=seconds,
            multiplying=multiplying,
            deciding=seconds - multiplying,
            rechecked=row_ML.size,
            epsilon=float32_bound(pool_ND.shape[1]),
        )
        progress(len(pool_ND), len(pool_ND))
        nothing = np.empty((len(pool_ND), 0))
        return PoolScan(nothing.astype(np.bool_), nothing, nothing.astype(np.int64))

    def finish(self) -> tuple[QueryScan, Effort]:
        """See `kernels.Scanner.finish`."""
        none_above_M = np.zeros(len(self._queries_MD), dtype=np.int64)
        found = QueryScan(none_above_M, *merge_neighbours(self._neighbours)), self._effort
        self._start_anew()
        return found

    def _listed(self, index: Any) -> Ints:
        """Rows (M, L) that hold the K nearest for certain.

        What is not listed is at most as near as the last of the list in float32. L is doubled
        until that is below the K-th by more than both can be wrong.
        """
        epsilon = float32_bound(index.d)
        queries_MD = self._queries_MD.astype(np.float32)
        listed = 2 * self._k + 8
        while True:
            listed = min(listed, index.ntotal)
            value_ML, row_ML = index.search(queries_MD, listed)
            kth_M = value_ML[:, min(self._k, listed) - 1]
            if listed == index.ntotal or (value_ML[:, -1] < kth_M - 2.01 * epsilon).all():
                found: Ints = row_ML
                return found
            listed *= 2


def duplicates(rows_ND: Rows, *, threshold: float) -> npt.NDArray[np.bool_]:
    """Refused: FAISS has no search that is exact at a threshold."""
    raise ValueError("backend 'faiss' finds neighbours only, not duplicates")


def train_clusters(
    rows_TD: Rows, clusters: int, *, iterations: int = 20, seed: int = 0, gpu: bool = False
) -> npt.NDArray[np.float32]:
    """Find cluster centres by k-means: Euclidean, empty clusters are split off large ones.

    The same machine with the same number of threads gives the same centres; others may differ in
    the last bits, and so in some assignments. Store the centres.

    Args:
        rows_TD: float16 rows of length one, a sample of the pool; FAISS wants 39 or more a cluster.
        clusters: C.
        iterations: of Lloyd's algorithm.
        seed: of the first centres.
        gpu: use all GPUs.

    Returns:
        Centres (C, D) float32.

    Raises:
        ValueError: fewer rows than clusters, rows that are not finite or not of length one.
        RuntimeError: FAISS is not installed, or has no GPU.
    """
    check_matrix("rows_TD", rows_TD)
    check_count("clusters", clusters, 1)
    check_rows("rows_TD", rows_TD)
    if clusters > len(rows_TD):
        raise ValueError(f"{clusters} clusters of {len(rows_TD)} rows, expected no more than rows")
    faiss = _faiss()
    if gpu and not (hasattr(faiss, "get_num_gpus") and faiss.get_num_gpus()):
        raise RuntimeError("FAISS sees no GPU: install faiss-gpu, or train on the CPU")
    means = faiss.Kmeans(
        rows_TD.shape[1],
        clusters,
        niter=iterations,
        seed=seed,
        gpu=gpu,
        min_points_per_centroid=1,
        max_points_per_centroid=len(rows_TD),  # the caller chose the sample
    )
    means.train(rows_TD.astype(np.float32))
    centres_CD: npt.NDArray[np.float32] = means.centroids
    return centres_CD


def assign_clusters(rows_ND: Rows, centres_CD: npt.NDArray[np.float32]) -> Ints:
    """The nearest centre of each row, by Euclidean distance: (N,).

    Raises:
        ValueError: rows that are not finite or not of length one, or of other dimensions.
        RuntimeError: FAISS is not installed.
    """
    check_matrix("rows_ND", rows_ND, centres_CD.shape[1])
    check_rows("rows_ND", rows_ND)
    index = _faiss().IndexFlatL2(centres_CD.shape[1])
    index.add(centres_CD)
    found = [
        index.search(rows_ND[first : first + _ROWS_AT_ONCE].astype(np.float32), 1)[1][:, 0]
        for first in range(0, len(rows_ND), _ROWS_AT_ONCE)
    ]
    return np.concatenate(found)


def _similarity(pool_ND: Rows, queries_MD: Rows, row_ML: Ints) -> Floats:
    """(M, L), exact."""
    similarity_ML = np.empty(row_ML.shape)
    step = max(1, _NUMBERS_AT_ONCE // (row_ML.shape[1] * pool_ND.shape[1]))
    for first in range(0, len(queries_MD), step):
        some = slice(first, first + step)
        rows_SLD = pool_ND[row_ML[some]].astype(np.float64)
        similarity_ML[some] = np.einsum("sld,sd->sl", rows_SLD, queries_MD[some].astype(np.float64))
    similarity_ML += 0.0  # one zero, whatever the order of the sum
    return similarity_ML


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise RuntimeError(
            "FAISS is not installed: pip install 'simgap[gpu]' where there are GPUs, else "
            "pip install 'simgap[cpu]'"
        ) from error
    return faiss
