"""The embedder of a world: the counterpart of the published CLIP weights of a real study."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from hpc.files import atomic_path
from pipeline.data.world.plan import (
    BATCH_SIZE,
    EMBEDDER,
    EMBEDDER_TRAINING,
    EPOCHS,
    MODEL,
    POOL,
    Parameters,
    parts,
)

_THREADS = 2
"""Fixed, so that the number of cores does not change the weights; so small a model needs few."""


def train_embedder(
    root: Path, parameters: Parameters, on_progress: Callable[[int, int], None]
) -> Path:
    """Train CLIP on the whole pool, or go on with it, and write the weights.

    Args:
        root: of the world, with its pool and model configuration.
        parameters: of the world.
        on_progress: called with (samples seen, samples in all).

    Returns:
        A checkpoint for open_clip: epoch, name and state_dict.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is first imported
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing of this model is on the hub
    import torch

    from pipeline.training.train import train

    checkpoint = train(
        model=str(root / MODEL),
        shards=[part.path(root) for part in parts(parameters) if part.set == POOL],
        folder=root / EMBEDDER_TRAINING,
        options=_options(parameters),
        threads=_THREADS,
        on_progress=on_progress,
    )
    content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    weights = {key: content[key] for key in ("epoch", "name", "state_dict")}
    with atomic_path(root / EMBEDDER) as temporary, temporary.open("wb") as file:
        torch.save(weights, file)  # given a path, torch would write the temporary name into it
    shutil.rmtree(root / EMBEDDER_TRAINING)
    return root / EMBEDDER


def _options(parameters: Parameters) -> dict[str, object]:
    samples = parameters.embedder_samples // EPOCHS
    steps = EPOCHS * -(-samples // BATCH_SIZE)
    return {
        "epochs": EPOCHS,
        "train-num-samples": samples,
        "batch-size": BATCH_SIZE,
        "lr": 4e-3,
        "beta1": 0.9,
        "beta2": 0.98,
        "eps": 1e-6,
        "wd": 0.2,
        "warmup": min(50, steps // 5),
        "precision": "fp32",
        "device": "cpu",
        "workers": 1,
        "seed": parameters.seed,
        "log-every-n-steps": 10,
    }
