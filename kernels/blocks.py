"""A pool in blocks of rows, brought to where work is done and worked on in threads.

Shapes: N pool rows, D dimensions, B the rows of a block.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Protocol, TypeVar

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from kernels.engine import Place
from kernels.exact import Progress, Rows, check_squares
from kernels.results import Effort


class _HasPlace(Protocol):
    @property
    def place(self) -> Place: ...


S = TypeVar("S", bound=_HasPlace)


def in_blocks(
    pool_ND: Rows,
    sides: Sequence[S],
    work: Callable[[S, int, Tensor], Effort],
    progress: Progress,
) -> Effort:
    """Call `work(side, first_row, rows_BD)` for all blocks, in threads; whoever is free takes one.

    Raises:
        ValueError: rows are not finite or not of length one.
        Exception: whatever `work` raised first.
    """
    workers = [side for side in sides for _ in range(side.place.workers)]
    size = min(sides[0].place.block_rows, -(-len(pool_ND) // len(workers)))
    firsts = iter(range(0, len(pool_ND), size))  # threads share it: its `next` is atomic
    reports: SimpleQueue[Effort | BaseException] = SimpleQueue()
    stop = threading.Event()

    def run(side: S) -> None:
        try:
            with torch.inference_mode(), _own_stream(side.place.device):
                load = _Loader(side.place.device, size, pool_ND.shape[1])
                for first in firsts:
                    if stop.is_set():
                        return
                    rows_BD, loading = load(pool_ND[first : first + size])
                    squares_B = rows_BD.float().square_().sum(1, dtype=torch.float64)
                    check_squares("pool_ND", squares_B.cpu().numpy(), first)
                    effort = work(side, first, rows_BD)
                    reports.put(effort + loading)
        except BaseException as error:
            reports.put(error)

    total = Effort()
    with _one_thread_each(sides[0].place.device):
        threads = [threading.Thread(target=run, args=(side,), daemon=True) for side in workers]
        try:
            for thread in threads:
                thread.start()
            while total.rows < len(pool_ND):
                report = reports.get()
                if isinstance(report, BaseException):
                    raise report
                total += report
                progress(total.rows, len(pool_ND))
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    return total


class Watch:
    """Seconds between laps, of finished work: on a GPU it waits for the stream."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._last = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last lap."""
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()
        last, self._last = self._last, time.perf_counter()
        return self._last - last


class _Loader:
    """Brings pool rows to a device, through memory that it can copy from by itself."""

    def __init__(self, device: torch.device, rows: int, dimensions: int) -> None:
        self._device = device
        shape, on_gpu = (rows, dimensions), device.type == "cuda"
        self._buffer = torch.empty(shape, dtype=torch.float16, pin_memory=True) if on_gpu else None

    def __call__(self, rows_BD: Rows) -> tuple[Tensor, Effort]:
        watch = Watch(self._device)
        if self._buffer is None:
            in_memory_BD = torch.from_numpy(np.array(rows_BD))
            return in_memory_BD, Effort(rows=len(rows_BD), reading=watch.lap())
        host_BD = self._buffer[: len(rows_BD)]
        np.copyto(host_BD.numpy(), rows_BD)
        reading = watch.lap()
        on_device_BD = host_BD.to(self._device, non_blocking=True)
        return on_device_BD, Effort(rows=len(rows_BD), reading=reading, copying=watch.lap())


@contextmanager
def _own_stream(device: torch.device) -> Iterator[None]:
    """What a thread launches is ordered by itself, beside that of other threads."""
    if device.type == "cpu":
        yield
        return
    with torch.cuda.device(device), torch.cuda.stream(torch.cuda.Stream(device)):
        yield


@contextmanager
def _one_thread_each(device: torch.device) -> Iterator[None]:
    """Switch off the threads inside operations, for there is one worker for each core."""
    if device.type == "cuda":
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(before)
