"""One training in several processes: what open_clip_train needs to be joined to others, and left.

Which process this is says the environment (RANK, LOCAL_RANK, WORLD_SIZE), as open_clip_train reads
it.
"""

from __future__ import annotations

import gc
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from pipeline.training.options import replaced


def place() -> tuple[int, int]:
    """Rank of this process, and number of processes: (0, 1) if it trains alone."""
    from open_clip_train.distributed import is_using_distributed, world_info_from_env

    _, rank, world = world_info_from_env()
    return (rank, world) if is_using_distributed() else (0, 1)


def check_device(device: str) -> None:
    """Check that a GPU is there for this process: open_clip_train takes that of its local rank.

    Raises:
        RuntimeError: there is none.
    """
    if device == "cpu" or place()[1] == 1:
        return
    import torch
    from open_clip_train.distributed import world_info_from_env

    local, count = world_info_from_env()[0], torch.cuda.device_count()
    if local >= count:
        raise RuntimeError(
            f"process {local} of this node sees {count} GPUs: expected one for each process of "
            "the node, and that each process sees all (no --gpus-per-task, no --gpu-bind)"
        )


@contextmanager
def joined(device: str) -> Iterator[None]:
    """Let open_clip_train join the processes; at the end, leave them so that it can join again."""
    if place()[1] == 1:
        yield
        return
    excepthook = sys.excepthook  # torch wraps it each time it joins
    try:
        with _parallel_on_cpu() if device == "cpu" else nullcontext(), _agreed_checkpoint():
            yield
        _wait_for_all()
    except BaseException as error:
        _forget(error)
        raise
    finally:
        _leave()
        sys.excepthook = excepthook


@contextmanager
def _parallel_on_cpu() -> Iterator[None]:
    """open_clip_train names a device to DistributedDataParallel, which refuses a CPU."""
    from torch.nn import parallel

    class OnCpu(parallel.DistributedDataParallel):
        def __init__(self, module: Any, device_ids: Any = None, **options: Any) -> None:
            super().__init__(module, **options)

    with replaced(parallel, "DistributedDataParallel", OnCpu):
        yield


@contextmanager
def _agreed_checkpoint() -> Iterator[None]:
    """Go on from a checkpoint of any number of processes, and only if all read the same one.

    A file system may show a node the checkpoint before the last for a while; the processes would
    then train different models together, or wait for each other for ever.
    """
    import open_clip_train.main

    original = open_clip_train.main.pt_load

    def load(path: str, map_location: Any = None) -> dict[str, Any]:
        content: dict[str, Any] = original(path, map_location=map_location)
        _check_epochs(path, int(content["epoch"]))
        weights = content["state_dict"].items()
        content["state_dict"] = {f"module.{_bare(name)}": one for name, one in weights}
        return content

    with replaced(open_clip_train.main, "pt_load", load):
        yield


def _bare(name: str) -> str:
    return name.removeprefix("module.")  # which DistributedDataParallel puts before all


def _check_epochs(path: str, epoch: int) -> None:
    from torch import distributed

    epochs: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(epochs, epoch)
    if len(set(epochs)) > 1:
        raise RuntimeError(
            f"{path}: ranks 0, 1, ... read it as of epochs {epochs}, expected the same: does the "
            "file system show old content? the same training can be started again"
        )


def _wait_for_all() -> None:
    """Until every process has closed its files, so that rank 0 may move or remove the folder."""
    from torch import distributed

    gc.collect()  # ends the data loader's processes, which hold the log open
    if distributed.is_initialized():
        distributed.barrier()


def _forget(error: BaseException | None) -> None:
    """Let go of what failed: its frames hold the connections on which other processes wait."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _leave() -> None:
    from torch import distributed

    gc.collect()  # the model holds the process group, and the group its port
    if distributed.is_initialized():
        distributed.destroy_process_group()
    gc.collect()
