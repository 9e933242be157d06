"""Similarity of a pool's embeddings to test images: one interface, a table of backends.

Every backend, device, tile size and order of parts gives the same bits: README.md.

Shapes: N pool rows, M queries, D dimensions, S test sets (S1 = S + 1), K neighbours.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.choice import (
    BACKENDS,
    Backend,
    Choice,
    find_duplicates,
    make_scanner,
    resolve_backend,
)
from kernels.exact import (
    Floats,
    Ints,
    Progress,
    Rows,
    check_count,
    check_matrix,
    check_rows,
    check_threshold,
    check_thresholds,
    merge_neighbours,
)
from kernels.results import Duplicates, Effort, PoolScan, QueryScan, Scan

__all__ = [
    "BACKENDS",
    "Backend",
    "Choice",
    "Duplicates",
    "Effort",
    "PoolScan",
    "QueryScan",
    "Scan",
    "Scanner",
    "duplicates",
    "merge_neighbours",
    "nearest",
    "resolve_backend",
    "scan",
]


class Scanner:
    """Compares the rows of a pool, part by part, with queries that stay on the device.

    Parts may come in any order and size: no result depends on either.
    """

    def __init__(
        self,
        queries_MD: Rows,
        threshold_M: Floats | None = None,
        offsets_S1: Ints | None = None,
        *,
        k: int,
        backend: str = "auto",
        device: str = "auto",
    ) -> None:
        """Prepare the queries.

        Args:
            queries_MD: float16 rows of length one, the test images of all sets, set by set.
            threshold_M: tau_j as float64, a cosine; above means strictly above. None to look for
                neighbours only.
            offsets_S1: int64; the queries of set s are offsets[s]:offsets[s + 1], at least one.
            k: neighbours kept for each query.
            backend: a name of `BACKENDS`, or "auto": see `resolve_backend`.
            device: "cpu", "cuda" for all GPUs that this process sees, "cuda:1", or "auto".

        Raises:
            TypeError: an array of another dtype, or a count that is not an integer.
            ValueError: shapes that do not fit, a row that is not finite or not of length one, a
                threshold beyond any similarity, an unknown backend or device.
            RuntimeError: CUDA is asked for and absent.
        """
        check_matrix("queries_MD", queries_MD)
        check_count("k", k, 1)
        if threshold_M is None or offsets_S1 is None:
            if threshold_M is not None or offsets_S1 is not None:
                raise ValueError("threshold_M and offsets_S1 go together, one of them is None")
            threshold_M = np.full(len(queries_MD), np.inf)
            offsets_S1 = np.zeros(1, dtype=np.int64)
        else:
            check_thresholds(queries_MD, threshold_M, offsets_S1)
        check_rows("queries_MD", queries_MD)
        self.choice = resolve_backend(backend, device)
        """The backend and device, and why."""
        self._dimensions = queries_MD.shape[1]
        self._parts: list[tuple[int, int]] = []
        self._scanner = make_scanner(
            self.choice.backend, self.choice.device, queries_MD, threshold_M, offsets_S1, k=k
        )

    def add(
        self,
        pool_ND: Rows,
        *,
        row_offset: int | None = None,
        progress: Progress = lambda done, rows: None,
    ) -> PoolScan:
        """Compare another part of the pool with all queries, in one pass.

        Args:
            pool_ND: float16 rows of length one; may be a memory map, it is read block by block.
            row_offset: what its first row counts as; by default parts follow each other.
            progress: called as `progress(rows_done, rows)`, in the calling thread.

        Returns:
            What is said of its rows; of the neighbours and counts, `finish` tells.

        Raises:
            TypeError: not float16, or an offset that is not an integer.
            ValueError: a row that is not finite or not of length one, other dimensions than those
                of the queries, or rows that were added before.
            RuntimeError: arithmetic broke its bound.
        """
        check_matrix("pool_ND", pool_ND, self._dimensions)
        if row_offset is None:
            row_offset = max((last for _, last in self._parts), default=0)
        check_count("row_offset", row_offset, 0)
        part = (int(row_offset), int(row_offset) + len(pool_ND))
        for first, last in self._parts:
            if part[0] < last and first < part[1]:
                raise ValueError(
                    f"rows {part[0]}:{part[1]} overlap {first}:{last}, which were added before: "
                    "row_offset counts over the whole pool"
                )
        self._parts.append(part)
        result: PoolScan = self._scanner.add(pool_ND, part[0], progress)
        return result

    def finish(self) -> tuple[QueryScan, Effort]:
        """Tell of the queries, over all rows added, and start anew with the same queries."""
        self._parts = []
        result: tuple[QueryScan, Effort] = self._scanner.finish()
        return result


def scan(
    pool_ND: Rows,
    queries_MD: Rows,
    threshold_M: Floats,
    offsets_S1: Ints,
    *,
    k: int,
    backend: str = "auto",
    device: str = "auto",
) -> Scan:
    """Compare every pool row with every query, in one pass and without an N x M matrix.

    Arguments and errors are those of `Scanner`; in addition, k must not exceed N.
    """
    check_matrix("queries_MD", queries_MD)
    _check_pool(pool_ND, queries_MD, k)
    scanner = Scanner(queries_MD, threshold_M, offsets_S1, k=k, backend=backend, device=device)
    pool = scanner.add(pool_ND)
    queries, effort = scanner.finish()
    return Scan(**vars(queries), **vars(pool), backend=scanner.choice.backend, effort=effort)


def nearest(
    pool_ND: Rows, queries_MD: Rows, *, k: int, backend: str = "auto", device: str = "auto"
) -> tuple[Floats, Ints]:
    """Find the k nearest pool rows of each query: similarity (M, K) and row (M, K).

    The same numbers as `neighbour_similarity_MK` and `neighbour_row_MK` of a `scan`, for less
    work; arguments and errors as there.
    """
    check_matrix("queries_MD", queries_MD)
    _check_pool(pool_ND, queries_MD, k)
    scanner = Scanner(queries_MD, k=k, backend=backend, device=device)
    scanner.add(pool_ND)
    queries, _ = scanner.finish()
    return queries.neighbour_similarity_MK, queries.neighbour_row_MK


def duplicates(
    rows_ND: Rows, *, threshold: float, backend: str = "auto", device: str = "auto"
) -> Duplicates:
    """Find the rows that have similarity strictly above `threshold` to a row before them.

    Beside 16 bytes a row, memory does not grow with N: a memory map is read block by block.

    Args:
        rows_ND: float16 rows of length one, as a rule those of one cluster, by rising identity.
        threshold: a cosine.
        backend: as for `Scanner`.
        device: as for `Scanner`.

    Returns:
        For each row the lowest such row before it, whether or not that one has one, too.

    Raises:
        TypeError: not float16.
        ValueError: a row that is not finite or not of length one, or a threshold that no
            similarity can reach.
    """
    check_matrix("rows_ND", rows_ND)
    check_threshold("threshold", threshold)
    check_rows("rows_ND", rows_ND)
    choice = resolve_backend(backend, device)
    found: Duplicates = find_duplicates(choice.backend, choice.device, rows_ND, float(threshold))
    return found


def _check_pool(pool_ND: Any, queries_MD: Rows, k: int) -> None:
    check_matrix("pool_ND", pool_ND, queries_MD.shape[1])
    check_count("k", k, 1)
    if k > len(pool_ND):
        raise ValueError(f"k is {k}, expected at most the number of pool rows, {len(pool_ND)}")
