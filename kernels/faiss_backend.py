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
from kernels.results import Duplicates, Effort, PoolScan, QueryScan

Centres = npt.NDArray[np.float32]

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


def duplicates(rows_ND: Rows, *, threshold: float) -> Duplicates:
    """Refused: FAISS has no search that is exact at a threshold."""
    raise ValueError("backend 'faiss' finds neighbours only, not duplicates")


def train_clusters(
    rows_TD: Rows,
    clusters: int,
    *,
    iterations: int = 20,
    seed: int = 0,
    gpu: bool = False,
    progress: Progress = lambda done, iterations: None,
) -> Centres:
    """Find cluster centres by k-means: Euclidean, empty clusters are split off large ones.

    The same machine with the same number of threads gives the same centres; others may differ in
    the last bits, and so in some assignments. Store the centres.

    Args:
        rows_TD: float16 rows of length one, a sample of the pool; FAISS wants 39 or more a cluster.
        clusters: C.
        iterations: of Lloyd's algorithm, at most: it ends when no centre moves.
        seed: of the first centres.
        gpu: use all GPUs.
        progress: called as `progress(iterations_done, iterations)`.

    Returns:
        Centres (C, D) float32.

    Raises:
        ValueError: fewer different rows than clusters, rows that are not finite or not of length
            one.
        RuntimeError: FAISS is not installed, or has no GPU.
    """
    check_matrix("rows_TD", rows_TD)
    check_count("clusters", clusters, 1)
    check_count("iterations", iterations, 1)
    check_rows("rows_TD", rows_TD)
    different = _different(rows_TD)
    if clusters > different:
        raise ValueError(
            f"{clusters} clusters of {len(rows_TD)} rows, of which {different} are different; "
            "expected no more clusters than different rows"
        )
    row_TD, centre_CD = rows_TD.astype(np.float32), None
    for iteration in range(iterations):
        means = _faiss_on(gpu).Kmeans(
            row_TD.shape[1],
            clusters,
            niter=1,  # one at a time tells of progress; the result is that of all at once
            seed=seed,
            gpu=gpu,
            min_points_per_centroid=1,
            max_points_per_centroid=len(row_TD),  # the caller chose the sample
        )
        before = centre_CD
        means.train(row_TD, init_centroids=before)
        centre_CD = means.centroids
        progress(iteration + 1, iterations)
        if before is not None and np.array_equal(before, centre_CD):
            progress(iterations, iterations)
            break
    assert centre_CD is not None
    return np.array(centre_CD)


def assign_clusters(
    rows_ND: Rows,
    centres_CD: Centres,
    *,
    gpu: bool = False,
    progress: Progress = lambda done, rows: None,
) -> Ints:
    """The nearest centre of each row, by Euclidean distance: (N,); of equally near ones the lowest.

    FAISS lists the centres that may be nearest in float32, and the list is decided in float64:
    equal rows get equal centres, wherever they are and on whichever device.

    Args:
        rows_ND: float16 rows of length one.
        centres_CD: as `train_clusters` gives them.
        gpu: use all GPUs.
        progress: called as `progress(rows_done, rows)`.

    Raises:
        ValueError: rows that are not finite or not of length one, or of other dimensions.
        RuntimeError: FAISS is not installed, or has no GPU.
    """
    check_matrix("rows_ND", rows_ND, centres_CD.shape[1])
    check_rows("rows_ND", rows_ND)
    faiss = _faiss_on(gpu)
    index = faiss.IndexFlatL2(centres_CD.shape[1])
    if gpu:
        index = faiss.index_cpu_to_all_gpus(index)
    index.add(np.ascontiguousarray(centres_CD))
    nearest_N = np.empty(len(rows_ND), dtype=np.int64)
    for first in range(0, len(rows_ND), _ROWS_AT_ONCE):
        some = slice(first, first + _ROWS_AT_ONCE)
        nearest_N[some] = _nearest_centre(index, np.asarray(rows_ND[some]), centres_CD)
        progress(min(first + _ROWS_AT_ONCE, len(rows_ND)), len(rows_ND))
    return nearest_N


def _nearest_centre(index: Any, rows_BD: Rows, centres_CD: Centres) -> Ints:
    """Centres (B,); more are listed until the last is further than the first for certain."""
    square_C = np.einsum("cd,cd->c", centres_CD, centres_CD, dtype=np.float64)
    # Squared lengths and twice the product, each within float32_bound times a length.
    error = 4 * float32_bound(index.d) * max(1.0, float(square_C.max()))
    nearest_B = np.empty(len(rows_BD), dtype=np.int64)
    open_R, listed = np.arange(len(rows_BD)), 2
    while len(open_R):
        listed = min(listed, index.ntotal)
        distance_RL, centre_RL = index.search(rows_BD[open_R].astype(np.float32), listed)
        certain_R = distance_RL[:, -1] > distance_RL[:, 0] + 2 * error
        certain_R |= listed == index.ntotal
        some = open_R[certain_R]
        nearest_B[some] = _decide(
            rows_BD[some], distance_RL[certain_R], centre_RL[certain_R], centres_CD, error
        )
        open_R, listed = open_R[~certain_R], 4 * listed
    return nearest_B


def _decide(
    rows_RD: Rows, distance_RL: Any, centre_RL: Ints, centres_CD: Centres, error: float
) -> Ints:
    """The nearest of the listed centres of each row (R,), in float64 where float32 can't tell."""
    centre_RL = np.where(distance_RL > distance_RL[:, :1] + 2 * error, -1, centre_RL)
    found_R = centre_RL[:, 0].copy()
    for row in np.flatnonzero((centre_RL >= 0).sum(axis=1) > 1):
        listed = np.sort(centre_RL[row][centre_RL[row] >= 0])
        away_LD = centres_CD[listed].astype(np.float64) - rows_RD[row].astype(np.float64)
        found_R[row] = listed[(away_LD**2).sum(axis=1).argmin()]
    return found_R


def _different(rows_TD: Rows) -> int:
    """How many different rows there are, by 64-bit hashes of their bits; +0 and -0 differ."""
    dimensions = rows_TD.shape[1]
    odd_D = np.random.default_rng(0).integers(2**63, size=dimensions, dtype=np.uint64) * 2 + 1
    hash_T = np.empty(len(rows_TD), dtype=np.uint64)
    step = max(1, _NUMBERS_AT_ONCE // dimensions)
    for first in range(0, len(rows_TD), step):
        bits_SD = np.ascontiguousarray(rows_TD[first : first + step]).view(np.uint16)
        hash_T[first : first + step] = bits_SD.astype(np.uint64) @ odd_D  # modulo 2^64
    return len(np.unique(hash_T))


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


def gpus() -> int:
    """How many GPUs FAISS can use.

    Raises:
        RuntimeError: FAISS is not installed.
    """
    faiss = _faiss()
    return int(faiss.get_num_gpus()) if hasattr(faiss, "get_num_gpus") else 0


def _faiss_on(gpu: bool) -> Any:
    faiss = _faiss()
    if gpu and not gpus():
        raise RuntimeError("FAISS sees no GPU: install faiss-gpu, or compute on the CPU")
    return faiss
