"""The definition: all similarities in float64, then what a scan says of them.

Slow, and N x M x 8 bytes of memory; every other backend must give exactly what this page gives.

Shapes: N pool rows, M queries, D dimensions, S test sets (S1 = S + 1), K neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from kernels.exact import Floats, Ints, Rows, check_rows


@dataclass(frozen=True)
class Scan:
    """What one pass over a pool says of it, and of the queries of S test sets."""

    near_NS: npt.NDArray[np.bool_]
    """Some query j of set s has similarity(x_i, q_j) > threshold_j, strictly."""
    best_similarity_NS: Floats
    """The largest similarity to a query of set s."""
    best_query_NS: Ints
    """The query that has it, counted over all M queries; of equal ones the lowest."""
    above_threshold_M: Ints
    """How many pool rows are above the query's threshold."""
    neighbour_similarity_MK: Floats
    """Similarity of the K nearest pool rows, falling; -inf where the pool has fewer than K."""
    neighbour_row_MK: Ints
    """Their rows, counted from `row_offset`; of equal ones the lowest; -1 where there is none."""
    rechecked: int
    """Pairs that a fast backend compared again in float64."""
    backend: str
    """What computed it: a name of `kernels.BACKENDS`."""


def scan(
    pool_ND: Rows, queries_MD: Rows, threshold_M: Floats, offsets_S1: Ints, *, k: int, device: str
) -> Scan:
    """See `kernels.scan`; `device` is "cpu"."""
    similarity_NM = _similarity(pool_ND, queries_MD)
    above_NM = similarity_NM > threshold_M
    best_query_NS = np.stack(
        [
            first + similarity_NM[:, first:last].argmax(axis=1)  # argmax gives the lowest of equals
            for first, last in pairwise(offsets_S1)
        ],
        axis=1,
    )
    neighbour_similarity_MK, neighbour_row_MK = _neighbours(similarity_NM, k)
    return Scan(
        near_NS=np.logical_or.reduceat(above_NM, offsets_S1[:-1], axis=1),
        best_similarity_NS=np.take_along_axis(similarity_NM, best_query_NS, axis=1),
        best_query_NS=best_query_NS,
        above_threshold_M=above_NM.sum(axis=0),
        neighbour_similarity_MK=neighbour_similarity_MK,
        neighbour_row_MK=neighbour_row_MK,
        rechecked=0,
        backend="reference",
    )


def nearest(pool_ND: Rows, queries_MD: Rows, *, k: int, device: str) -> tuple[Floats, Ints]:
    """See `kernels.nearest`; `device` is "cpu"."""
    return _neighbours(_similarity(pool_ND, queries_MD), k)


def _similarity(pool_ND: Rows, queries_MD: Rows) -> Floats:
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
