"""open_clip's models with weights that are read as data, by `pipeline.checkpoints`.

open_clip makes the model and fits the weights into it (names of other libraries, old layouts), but
never opens a file of torch's: it falls back to a load that runs code when a careful one fails.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.checkpoints import CheckpointError, weights_of
from pipeline.training.options import replaced

if TYPE_CHECKING:
    import torch

_NUMPY = (".npz", ".npy")  # big_vision's weights: arrays, which open_clip reads without pickle
_CHECKPOINTS = (".pt", ".pth", ".bin", ".safetensors", *_NUMPY)
_RESHAPED = ("logit_scale", "logit_bias")  # one number, with or without a dimension


class OtherModelError(CheckpointError):
    """A whole checkpoint, but not of the model that it was to be loaded into."""


def find_checkpoint(name: str, pretrained: str) -> Path | None:
    """The file that `pretrained` means, or None if it is a tag of the model.

    Args:
        name: the model's name in open_clip.
        pretrained: one of open_clip's tags for it, or the path of a checkpoint.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is neither, with the nearest tag.
    """
    import open_clip

    if open_clip.is_pretrained_cfg(name, pretrained):
        return None
    path = Path(pretrained)
    if pretrained and path.is_file():
        return path
    if "/" in pretrained or path.suffix in _CHECKPOINTS:
        raise FileNotFoundError(f"{pretrained}: no such checkpoint for the model {name!r}")
    tags = open_clip.list_pretrained_tags_by_model(name)
    expected = f"a tag ({', '.join(tags)}) or a checkpoint" if tags else "a checkpoint's path"
    raise ValueError(
        f"no weights {pretrained!r} for the model {name!r}{nearest_name(pretrained, tags)}; "
        f"expected {expected}"
    )


def nearest_name(name: str, known: Sequence[str]) -> str:
    """`; did you mean 'x'?`, whatever the case; nothing if no known name is near."""
    spelled = {one.lower(): one for one in known}
    near = get_close_matches(name.lower(), spelled, n=1, cutoff=0.5)
    return f"; did you mean {spelled[near[0]]!r}?" if near else ""


def create_with_weights(
    name: str, pretrained: str, *, precision: str, device: str, arguments: Mapping[str, Any]
) -> tuple[torch.nn.Module, Any]:
    """A model with its weights, and its preprocessing.

    Args:
        name: the model's name in open_clip.
        pretrained: a tag, whose file open_clip downloads, or the path of a checkpoint.
        precision, device: as open_clip takes them.
        arguments: more of open_clip's (`training_options.model_arguments`).

    Raises:
        FileNotFoundError: there is no such checkpoint.
        CheckpointError: it is cut off, would run code, or is of another model.
        RuntimeError: the weights of a tag can't be downloaded.
    """
    path = find_checkpoint(name, pretrained)
    if path is None or path.suffix in _NUMPY:
        return _create(name, pretrained, None, precision, device, arguments)
    weights = weights_of(path)
    try:
        model, preprocess = _create(name, pretrained, weights, precision, device, arguments)
    except Exception as error:  # open_clip fails in many ways on weights of another model
        _refuse_other(path, name, weights, _without_weights(name, arguments), error)
        raise
    if any(key not in _RESHAPED for key in _resized(weights, model)):
        _refuse_other(path, name, weights, model, None)
    return model, preprocess


def _create(
    name: str,
    pretrained: str,
    weights: Mapping[str, torch.Tensor] | None,
    precision: str,
    device: str,
    arguments: Mapping[str, Any],
) -> tuple[torch.nn.Module, Any]:
    """What open_clip makes of weights that are read already, or of a tag's file, read with care."""
    import open_clip
    from open_clip import factory

    def read(path: str, **_: Any) -> dict[str, torch.Tensor]:
        return weights_of(Path(path)) if weights is None else dict(weights)

    with replaced(factory, "load_state_dict", read):
        made: tuple[torch.nn.Module, Any] = open_clip.create_model_from_pretrained(
            name, pretrained, precision=precision, device=device, **arguments
        )
    return made


def _without_weights(name: str, arguments: Mapping[str, Any]) -> torch.nn.Module:
    import open_clip

    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)  # that it has no weights is no news
    try:
        model: torch.nn.Module = open_clip.create_model_and_transforms(
            name, load_weights=False, pretrained_text=False, **arguments
        )[0]
    finally:
        logging.disable(disabled)
    return model


def _resized(weights: Mapping[str, torch.Tensor], model: torch.nn.Module) -> list[str]:
    """The weights that open_clip has stretched until they fitted, as it does with positions."""
    wanted = model.state_dict()
    return [key for key in wanted if key in weights and wanted[key].shape != weights[key].shape]


def _refuse_other(
    path: Path,
    name: str,
    weights: Mapping[str, torch.Tensor],
    model: torch.nn.Module,
    cause: Exception | None,
) -> None:
    """Raise if a checkpoint's weights are not those of the model; else return."""
    found = {key: tuple(value.shape) for key, value in weights.items()}
    wanted = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    different = [key for key in wanted | found if wanted.get(key) != found.get(key)]
    if not different:
        return
    key = different[0]
    raise OtherModelError(
        f"{path}: not a checkpoint of the model {name!r}: {len(different)} of "
        f"{len(wanted | found)} weights differ; the first, {key!r}, has shape "
        f"{found.get(key, 'none')} in the checkpoint, {wanted.get(key, 'none')} in the model"
    ) from cause
