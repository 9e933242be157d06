"""Which backend: the table of them, and how one is chosen when none is named."""

from __future__ import annotations

import difflib
import importlib
import time
from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from kernels.exact import Floats, Ints, Rows


class Backend(NamedTuple):
    """Where a backend is, the kind of device it runs on, and what the machine must have."""

    module: str
    device: str
    instructions: tuple[str, ...] = ()
    """Processor flags of Linux, one of which is needed."""
    package: str = ""
    """A Python package that is needed."""
    automatic: bool = False
    """Whether "auto" may choose it."""


BACKENDS: Mapping[str, Backend] = {
    "reference": Backend("kernels.reference", "cpu"),
    "cpu-float32": Backend("kernels.cpu_backend", "cpu", automatic=True),
    "cpu-bf16": Backend("kernels.cpu_backend", "cpu", ("avx512_bf16", "amx_bf16"), automatic=True),
    "cpu-int8": Backend(
        "kernels.cpu_backend", "cpu", ("avx512_vnni", "avx_vnni", "amx_int8"), automatic=True
    ),
    "cuda": Backend("kernels.cuda_backend", "cuda", automatic=True),
    "triton": Backend("kernels.triton_backend", "cuda", package="triton", automatic=True),
    "triton-int8": Backend("kernels.triton_backend", "cuda", package="triton", automatic=True),
    "faiss": Backend("kernels.faiss_backend", "cpu", package="faiss"),
}
"""Every backend by name; its module is imported when it is chosen.

A module has `places`, the engines of `kernels.grouped`, or a `Scanner` and `duplicates` of its own.
"""

_OPENS_MORE = 1.3
"""How much faster a coarse engine must multiply to be chosen: it looks into more groups."""


class Choice(NamedTuple):
    """A backend and where it runs."""

    backend: str
    device: str
    why: str
    """For the log: "asked for", or what was measured."""


def resolve_backend(name: str = "auto", device: str = "auto") -> Choice:
    """Choose a backend, once for a process, so that it can be printed and stored.

    A name stays what it is, if the machine can run it. "auto" takes the backends of the device that
    the machine has the instructions and packages for, drops those that do not reproduce the
    reference on a small case, and of the others takes the one that multiplies fastest in a short
    measurement. A device that is "auto" is CUDA if there is a GPU, else the CPU.

    Raises:
        ValueError: an unknown name or device, or a device that the backend does not run on.
        RuntimeError: CUDA, a processor's instructions or a package is asked for and absent, or
            the backend does not reproduce the reference here.
    """
    kind = device.partition(":")[0]
    if device not in ("auto", "cpu") and not _is_cuda(device):
        raise ValueError(f"unknown device {device!r}, expected auto, cpu, cuda or cuda:<number>")
    if name == "auto":
        on_cuda = kind == "cuda" or (kind == "auto" and _cuda_devices() > 0)
        return _fastest((device if kind == "cuda" else "cuda") if on_cuda else "cpu")
    if name not in BACKENDS:
        raise ValueError(_unknown(name))
    needed = BACKENDS[name].device
    if kind not in ("auto", needed):
        raise ValueError(f"backend {name!r} runs on {needed}, not on device {device!r}")
    device = needed if kind == "auto" else device
    if fault := _fault(name, device):
        raise RuntimeError(f"backend {name!r} {fault}")
    return Choice(name, device, "asked for")


@cache
def _fastest(device: str) -> Choice:
    """Measure what the device can run."""
    speeds, faults = {}, []
    for name, backend in BACKENDS.items():
        if not backend.automatic or backend.device != device.partition(":")[0]:
            continue
        if fault := _fault(name, device):
            faults.append(f"{name} {fault}")
        else:
            speeds[name] = _speed(name, device)
    if not speeds:
        raise RuntimeError(f"no backend runs on {device}: {'; '.join(faults)}")
    chosen = max(speeds, key=lambda name: speeds[name] / (_OPENS_MORE if _is_coarse(name) else 1))
    measured = ", ".join(f"{name} {speed / 1e9:,.0f}" for name, speed in speeds.items())
    where = "a core" if device == "cpu" else "a GPU"
    return Choice(chosen, device, "; ".join([f"GFLOP/s {where}: {measured}", *faults]))


def _is_coarse(name: str) -> bool:
    return name.endswith(("-bf16", "-int8"))


@cache
def _fault(name: str, device: str) -> str:
    """Why a backend can't be used, continuing a sentence; empty if it can."""
    backend = BACKENDS[name]
    if backend.device == "cuda" and _cuda_devices() <= int(device.partition(":")[2] or 0):
        return f"needs CUDA device {device!r}, torch sees {_cuda_devices()}"
    if backend.instructions and not set(backend.instructions) & _processor_flags():
        return f"needs a processor with {' or '.join(backend.instructions)}"
    if backend.package:
        try:
            importlib.import_module(backend.package)
        except ImportError as error:
            return f"needs the package {backend.package} ({error})"
    return _self_test(name, device)


def make_scanner(
    name: str, device: str, queries_MD: Rows, threshold_M: Floats, offsets_S1: Ints, *, k: int
) -> Any:
    """What does the work of a `kernels.Scanner`: checked arguments, a backend that was chosen."""
    module = importlib.import_module(BACKENDS[name].module)
    if not hasattr(module, "places"):
        return module.Scanner(queries_MD, threshold_M, offsets_S1, k=k)
    from kernels import grouped

    places = module.places(name, device)
    return grouped.Scanner(queries_MD, threshold_M, offsets_S1, k=k, places=places)


def find_duplicates(name: str, device: str, rows_ND: Rows, threshold: float) -> Any:
    """What does the work of `kernels.duplicates`."""
    module = importlib.import_module(BACKENDS[name].module)
    if not hasattr(module, "places"):
        return module.duplicates(rows_ND, threshold=threshold)
    from kernels import grouped

    return grouped.duplicates(rows_ND, threshold=threshold, place=module.places(name, device)[0])


def _self_test(name: str, device: str) -> str:
    """Compare with the reference on a small case with ties, and rows that are hard to quantise."""
    if not BACKENDS[name].automatic:
        return ""
    rng = np.random.default_rng(0)
    row_RD = rng.standard_normal((500, 128))
    row_RD[::3] = np.sign(row_RD[::3])
    row_RD[1::9, 5] *= 50
    row_RD /= np.linalg.norm(row_RD, axis=1, keepdims=True)
    pool_ND, queries_MD = np.split(row_RD.astype(np.float16), [300])
    queries_MD[10:20] = pool_ND[:10]
    threshold_M = (pool_ND[30].astype(np.float64) @ queries_MD.T.astype(np.float64)) + 0.0
    offsets_S1 = np.array([0, 50, 60, 200])
    found = []
    for which in ("reference", name):
        try:
            scanner = make_scanner(which, device, queries_MD, threshold_M, offsets_S1, k=7)
            rows = scanner.add(pool_ND, 0, lambda done, rows: None)
        except Exception as error:  # whatever it is, this backend can't be used
            return f"failed its self-test: {type(error).__name__}: {error}"
        found.append({**vars(rows), **vars(scanner.finish()[0])})
    wrong = [key for key in found[0] if not np.array_equal(found[0][key], found[1][key])]
    return f"failed its self-test: {', '.join(wrong)} differ from the reference" if wrong else ""


def _speed(name: str, device: str) -> float:
    """Floating-point operations a second of one worker of a backend, the best of three."""
    import torch

    place = importlib.import_module(BACKENDS[name].module).places(name, device)[0]
    rows, queries = (512, 4096) if place.device.type == "cpu" else (16_384, 65_536)
    generator = torch.Generator().manual_seed(0)
    row_RD = torch.randn(queries, 640, generator=generator)
    row_RD = torch.nn.functional.normalize(row_RD).half().to(place.device)
    threads = torch.get_num_threads()
    seconds = []
    try:
        torch.set_num_threads(1)
        with torch.inference_mode(), threadpool_limits(1, user_api="blas"):
            engine = place.make_engine(row_RD.view(-1, place.width, 640))
            for _ in range(4):
                started = time.perf_counter()
                engine.upper_bounds(row_RD[:rows])
                if place.device.type == "cuda":
                    torch.cuda.synchronize(place.device)
                seconds.append(time.perf_counter() - started)
    finally:
        torch.set_num_threads(threads)
    return 2 * rows * queries * 640 / min(seconds[1:])


@cache
def _processor_flags() -> frozenset[str]:
    try:
        with open("/proc/cpuinfo") as lines:
            flags = next((line for line in lines if line.startswith("flags")), "")
    except OSError:
        return frozenset()
    return frozenset(flags.partition(":")[2].split())


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
