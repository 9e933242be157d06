"""Similarity of a pool's embeddings to test images: one signature, a table of backends.

Every backend, device, tile size and order of parts gives the same bits: README.md.

Shapes: N pool rows, M queries, D dimensions, S test sets (S1 = S + 1), K neighbours.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
from typing import Any, NamedTuple

import numpy as np

from kernels.exact import (
    Floats,
    Ints,
    Rows,
    check_count,
    check_matrices,
    check_rows,
    check_scan,
    merge_neighbours,
)
from kernels.reference import Scan

__all__ = ["BACKENDS", "Scan", "merge_neighbours", "nearest", "resolve_backend", "scan"]


class Backend(NamedTuple):
    """Where a backend is, and the kind of device that it runs on."""

    module: str
    device: str


BACKENDS = {
    "reference": Backend("kernels.reference", "cpu"),
    "torch-cpu": Backend("kernels.torch_backend", "cpu"),
    "torch-cuda": Backend("kernels.torch_backend", "cuda"),
}
"""Every backend by name. Its module has `scan` and `nearest` and is imported when it is chosen."""


def scan(
    pool_ND: Rows,
    queries_MD: Rows,
    threshold_M: Floats,
    offsets_S1: Ints,
    *,
    k: int,
    backend: str = "auto",
    device: str = "auto",
    row_offset: int = 0,
) -> Scan:
    """Compare every pool row with every query, in one pass and without an N x M matrix.

    Args:
        pool_ND: float16 rows of length one; may be a memory map, it is read block by block.
        queries_MD: float16 rows of length one, the test images of all sets, set by set.
        threshold_M: tau_j as float64, a cosine; above means strictly above.
        offsets_S1: int64; the queries of set s are offsets[s]:offsets[s + 1], at least one.
        k: neighbours kept for each query; the pool may be smaller, see `Scan`.
        backend: a name of `BACKENDS`, or "auto": see `resolve_backend`.
        device: "cpu", "cuda", "cuda:1", or "auto".
        row_offset: what the pool's first row counts as in `neighbour_row_MK`, so that scans of
            several files can be merged.

    Raises:
        TypeError: an array of another dtype, or a count that is not an integer.
        ValueError: shapes that do not fit, a row that is not finite or not of length one, a
            threshold beyond any similarity, an unknown backend or device.
        RuntimeError: CUDA is asked for and absent, or arithmetic broke its proven bound.
    """
    check_scan(pool_ND, queries_MD, threshold_M, offsets_S1)
    module, device = _chosen(queries_MD, k, backend, device, row_offset)
    result: Scan = module.scan(pool_ND, queries_MD, threshold_M, offsets_S1, k=k, device=device)
    return dataclasses.replace(
        result, neighbour_row_MK=_shifted(result.neighbour_row_MK, row_offset)
    )


def nearest(
    pool_ND: Rows,
    queries_MD: Rows,
    *,
    k: int,
    backend: str = "auto",
    device: str = "auto",
    row_offset: int = 0,
) -> tuple[Floats, Ints]:
    """Find the k nearest pool rows of each query: similarity (M, K) and row (M, K).

    The same numbers as `neighbour_similarity_MK` and `neighbour_row_MK` of a `scan`, for less
    work; arguments and errors as there.
    """
    check_matrices(pool_ND, queries_MD)
    module, device = _chosen(queries_MD, k, backend, device, row_offset)
    similarity_MK, row_MK = module.nearest(pool_ND, queries_MD, k=k, device=device)
    return similarity_MK, _shifted(row_MK, row_offset)


def resolve_backend(name: str = "auto", device: str = "auto") -> str:
    """Choose a backend, once and by rule, so that it can be printed and stored.

    A name stays what it is, if the device fits it. "auto" is torch on the device, and on a device
    that is "auto" too, torch on CUDA if there is a CUDA device, else on the CPU.

    Returns:
        A name of `BACKENDS`, which `scan` and `nearest` accept.

    Raises:
        ValueError: an unknown name or device, or a device that the backend does not run on.
        RuntimeError: CUDA is asked for and absent.
    """
    kind = device.partition(":")[0]
    if device not in ("auto", "cpu") and not _is_cuda(device):
        raise ValueError(f"unknown device {device!r}, expected auto, cpu, cuda or cuda:<number>")
    if name == "auto":
        on_cuda = kind == "cuda" or (kind == "auto" and _cuda_devices() > 0)
        name = "torch-cuda" if on_cuda else "torch-cpu"
    elif name not in BACKENDS:
        raise ValueError(_unknown(name))
    needed = BACKENDS[name].device
    if kind not in ("auto", needed):
        raise ValueError(f"backend {name!r} runs on {needed}, not on device {device!r}")
    if needed == "cuda" and _cuda_devices() <= int(device.partition(":")[2] or 0):
        raise RuntimeError(
            f"backend {name!r} needs CUDA device {device!r}, torch sees {_cuda_devices()}"
        )
    return name


def _is_cuda(device: str) -> bool:
    kind, colon, number = device.partition(":")
    return kind == "cuda" and (number.isdecimal() if colon else True)


def _cuda_devices() -> int:
    count: int = importlib.import_module("torch").cuda.device_count()
    return count


def _unknown(name: str) -> str:
    known = ["auto", *BACKENDS]
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    meant = f"; did you mean {close[0]!r}?" if close else ""
    return f"unknown backend {name!r}, expected one of {', '.join(known)}{meant}"


def _chosen(
    queries_MD: Rows, k: int, backend: str, device: str, row_offset: int
) -> tuple[Any, str]:
    """Check what `scan` and `nearest` share; the backend's module and its device."""
    check_count("k", k, 1)
    check_count("row_offset", row_offset, 0)
    check_rows("queries_MD", queries_MD)
    chosen = BACKENDS[resolve_backend(backend, device)]
    return importlib.import_module(chosen.module), (chosen.device if device == "auto" else device)


def _shifted(row_MK: Ints, row_offset: int) -> Ints:
    return np.where(row_MK < 0, row_MK, row_MK + row_offset)
