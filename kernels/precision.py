"""Float32 that is multiplied as float32, on any device and with any version of torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_ON_CPU: Any = torch.backends.mkldnn  # its stubs lack `matmul`


@contextmanager
def full_precision() -> Iterator[None]:
    """Switch TF32, bfloat16 and float16 sums off, and switch back."""
    before, on_cuda = _precision(), torch.backends.cuda.matmul
    reduced = on_cuda.allow_fp16_reduced_precision_reduction
    try:
        on_cuda.allow_fp16_reduced_precision_reduction = False
        _set_precision(("ieee", "ieee") if isinstance(before, tuple) else "highest")
        with torch.inference_mode():
            yield
    finally:
        on_cuda.allow_fp16_reduced_precision_reduction = reduced
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
