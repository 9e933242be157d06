"""open_clip models: by name, or by the path of a JSON file that describes one."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.training.options import model_arguments
from pipeline.weights import create_with_weights, find_checkpoint, nearest_name

if TYPE_CHECKING:  # login nodes check names and must not wait for torch
    import numpy as np
    import torch

PRECISIONS = ("fp32", "amp", "amp_bf16", "amp_bfloat16", "fp16", "bf16", "pure_fp16", "pure_bf16")
_CONFIG_KEYS = ("embed_dim", "vision_cfg", "text_cfg")


@cache
def known_models() -> tuple[str, ...]:
    """The names of open_clip's own models, without importing torch."""
    configs = config_path("any").parent.glob("*.json")
    return tuple(sorted(path.stem for path in configs))


def check_model(model: str) -> None:
    """Check a model's name or the path of its JSON file, without importing torch.

    Raises:
        ValueError: if open_clip has no such model, with the nearest name, or if the file is not
            a model description.
        FileNotFoundError: if there is no such file.
    """
    if model.endswith(".json"):
        _read_config(Path(model))
    elif model not in known_models():
        raise ValueError(
            f"open_clip has no model {model!r}{nearest_name(model, known_models())} "
            "(or give the path of a .json model configuration)"
        )


def config_path(model: str) -> Path:
    """The JSON file that describes a model, without importing torch."""
    if model.endswith(".json"):
        return Path(model)
    spec = importlib.util.find_spec("open_clip")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("open_clip is not installed: pip install open_clip_torch")
    return Path(spec.origin).parent / "model_configs" / f"{model}.json"


def register_model(model: str) -> str:
    """Make a model known to open_clip.

    Returns:
        Its name there: `model`, or for a path the file's name without ".json".

    Raises:
        ValueError: as `check_model`, or if another model has that name.
    """
    check_model(model)
    if not model.endswith(".json"):
        return model
    import open_clip

    path = Path(model)
    known = open_clip.get_model_config(path.stem)
    if known is None:
        open_clip.add_model_config(path.resolve())
    elif known != _read_config(path):
        raise ValueError(
            f"{path}: open_clip already knows another model by the name {path.stem!r}; "
            "rename the file"
        )
    return path.stem


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such model configuration")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path}: expected an open_clip model configuration, a JSON object")
    missing = [key for key in _CONFIG_KEYS if key not in config]
    if missing:
        raise ValueError(f"{path}: not an open_clip model configuration: {missing[0]!r} is missing")
    return config


def resolve_device(requested: str) -> str:
    """Choose a device: "auto" (a GPU if there is one), "cpu", "cuda" or "cuda:N".

    Returns:
        "cpu", "cuda" or "cuda:N".

    Raises:
        RuntimeError: if a GPU is asked for and absent; never a slow run on the CPU instead.
        ValueError: if the request is none of the above.
    """
    kind, _, index = requested.partition(":")
    if requested == "cpu":
        return "cpu"
    if requested != "auto" and (kind != "cuda" or not (requested == kind or index.isdecimal())):
        raise ValueError(f"unknown device {requested!r}, expected auto, cpu, cuda or cuda:N")
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if requested == "auto":
        return "cuda" if count else "cpu"
    if int(index or 0) >= count:
        raise RuntimeError(f"device {requested!r} asked for, but this machine has {count} GPUs")
    return requested


def dimensions_of(model: str) -> int:
    """D of a model's embeddings, without loading it; errors as `register_model`."""
    import open_clip

    return int(open_clip.get_model_config(register_model(model))["embed_dim"])


def job_device(requested: str, gpus: int) -> str:
    """The device of a job: one that was given a GPU uses it, and fails if it does not work.

    Args:
        requested: as for `resolve_device`, which has the errors.
        gpus: how many GPUs the job was given.
    """
    return resolve_device("cuda" if requested == "auto" and gpus else requested)


@dataclass(frozen=True)
class Embedder:
    """A model that is ready to embed.

    Attributes:
        model: the open_clip model, in evaluation mode, on `device`.
        preprocess: PIL image -> (3, H, W) float32, with conversion to RGB.
        tokenizer: texts -> (n, context) int64.
        device: "cpu", "cuda" or "cuda:N".
        precision: open_clip's name. "fp32" computes in float32; "amp..." keeps float32 weights
            under autocast; "fp16" and "bf16" have weights of that type but layer norms in
            float32; "pure_..." everything.
        dimensions: D, the length of an embedding.
        preprocessing: a description of `preprocess` that is the same in every process.
    """

    model: torch.nn.Module
    preprocess: Callable[[Any], torch.Tensor]
    tokenizer: Callable[[list[str]], torch.Tensor]
    device: str
    precision: str
    dimensions: int
    preprocessing: str


def load_embedder(
    model: str,
    pretrained: str,
    *,
    precision: str,
    device: str,
    options: Mapping[str, object] | None = None,
) -> Embedder:
    """Load a model with its weights; the one loaded last is kept, for the next task of a job.

    Args:
        model: open_clip's name, or the path of a JSON configuration.
        pretrained: one of open_clip's tags for that model, or the path of a checkpoint
            (of open_clip_train with its optimizer, or of weights alone).
        precision: one of PRECISIONS.
        device: as for `resolve_device`.
        options: open_clip_train's options that the model was trained with: some change the model,
            or how images reach it (`training_options.model_arguments`).

    Raises:
        ValueError: for an unknown model, tag or precision, or a checkpoint that is cut off, would
            run code, or is of another model (`checkpoints.CheckpointError`).
        FileNotFoundError: if there is no such checkpoint.
        RuntimeError: if the device is absent, or the weights of a tag can't be downloaded.
    """
    if precision not in PRECISIONS:
        raise ValueError(
            f"unknown precision {precision!r}{nearest_name(precision, PRECISIONS)}, "
            f"expected one of {', '.join(PRECISIONS)}"
        )
    name = register_model(model)
    checkpoint = find_checkpoint(name, pretrained)
    version = None if checkpoint is None else _version(checkpoint)
    arguments = tuple(sorted(model_arguments(options or {}).items()))
    return _load(name, pretrained, version, precision, resolve_device(device), arguments)


def _version(path: Path) -> tuple[int, int]:
    """Size and modification time: a checkpoint written anew is loaded anew."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


@lru_cache(maxsize=1)
def _load(
    name: str,
    pretrained: str,
    version: tuple[int, int] | None,
    precision: str,
    device: str,
    arguments: tuple[tuple[str, Any], ...],
) -> Embedder:
    import open_clip

    model, preprocess = create_with_weights(
        name, pretrained, precision=precision, device=device, arguments=dict(arguments)
    )
    model.eval()
    described = json.dumps(open_clip.get_model_preprocess_cfg(model), sort_keys=True, default=str)
    context_length = dict(arguments).get("force_context_length")
    return Embedder(
        model,
        preprocess,
        open_clip.get_tokenizer(name, context_length=context_length),
        device,
        precision,
        int(open_clip.get_model_config(name)["embed_dim"]),
        described,
    )


def _autocast(embedder: Embedder) -> AbstractContextManager[Any]:
    """Mixed precision for "amp..." and nothing else, as in open_clip_train's evaluation."""
    import torch
    from open_clip_train.precision import get_autocast

    autocast = get_autocast(embedder.precision, device_type=torch.device(embedder.device).type)
    context: AbstractContextManager[Any] = autocast()
    return context


def image_features(embedder: Embedder, images: torch.Tensor) -> torch.Tensor:
    """Embed preprocessed images, at full precision.

    Args:
        embedder: the model.
        images: (b, 3, H, W) float32.

    Returns:
        (b, D) float64 on the embedder's device, rows of length one.

    Raises:
        ValueError: if the model gives a row that is not finite, or zero.
    """
    import open_clip
    import torch

    if not len(images):
        return torch.empty((0, embedder.dimensions), dtype=torch.float64, device=embedder.device)
    dtype = open_clip.get_input_dtype(embedder.precision)
    with torch.inference_mode(), _autocast(embedder):
        batch = images.to(device=embedder.device, dtype=dtype, non_blocking=True)
        features = embedder.model.encode_image(batch)  # type: ignore[operator]
    return _checked(embedder, features, "embeddings", lambda row: f"in row {row} of the batch")


def text_features(embedder: Embedder, texts: Sequence[str]) -> torch.Tensor:
    """Embed texts, at full precision; longer ones are cut to the model's context.

    Returns:
        (b, D) float64 on the embedder's device, rows of length one.

    Raises:
        ValueError: if the model gives a row that is not finite, or zero; names the text.
    """
    import torch

    with torch.inference_mode(), _autocast(embedder):
        tokens = embedder.tokenizer(list(texts)).to(embedder.device)
        features = embedder.model.encode_text(tokens)  # type: ignore[operator]
    return _checked(embedder, features, "text embeddings", lambda row: f"of {texts[row]!r}")


def _checked(
    embedder: Embedder, features: torch.Tensor, noun: str, name: Callable[[int], str]
) -> torch.Tensor:
    """Rows of length one, or what is wrong with them; `name` says which one a row is."""
    rows, _ = unit_rows(features)
    bad = (~rows.isfinite().all(dim=1)).nonzero().flatten().tolist()
    if bad:
        raise ValueError(
            f"{len(bad)} of {len(rows)} {noun} are not finite or zero, the first {name(bad[0])} "
            f"(precision {embedder.precision!r})"
        )
    return rows


def unit_rows(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalise rows, whoever computed them.

    Args:
        features: (b, D) floats.

    Returns:
        (b, D) float64 rows of length one, not finite where a row is zero or not finite; and the
        (b,) float64 lengths that they had.
    """
    features = features.double()
    lengths = features.norm(dim=1)
    return features / lengths[:, None], lengths


def stored_rows(rows: torch.Tensor) -> np.ndarray:
    """Round (b, D) rows to float16, as they are stored."""
    stored: np.ndarray = rows.half().cpu().numpy()
    return stored


def encode_images(embedder: Embedder, images: torch.Tensor) -> np.ndarray:
    """Embed preprocessed images, in the form in which embeddings are stored.

    Args:
        embedder: the model.
        images: (b, 3, H, W) float32.

    Returns:
        (b, D) float16: rows of length one in float64, rounded to float16.

    Raises:
        ValueError: if the model gives a row that is not finite, or zero.
    """
    return stored_rows(image_features(embedder, images))


def zero_shot_classifier(
    embedder: Embedder,
    class_names: Sequence[str],
    templates: Sequence[str] | Sequence[Callable[[str], str]],
) -> torch.Tensor:
    """Average the text embeddings of a class over caption templates.

    Args:
        embedder: the model.
        class_names: C names.
        templates: captions with `{}` for the name, or functions of the name.

    Returns:
        (D, C) float32 on the embedder's device, columns of length one.
    """
    import open_clip

    with _autocast(embedder):
        classifier: torch.Tensor = open_clip.build_zero_shot_classifier(
            embedder.model, embedder.tokenizer, class_names, templates, device=embedder.device
        )
    return classifier.float()
