"""What a model costs: operations for an image and a text, and parameters; without torch.

Transformers are counted from open_clip's model configs: a layer of width w over n tokens takes
4 w^2 + 2 r w^2 multiply-adds a token for attention and the MLP of ratio r, and 2 n^2 w for the
attention itself; an operation is one multiplication or one addition. Others are as
open_clip has profiled them (docs/model_profile.csv there).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_PROFILED = {  # GFLOP an image, GFLOP a text, million parameters
    "RN50": (12.22, 5.96, 102.01),
    "RN50-quickgelu": (12.22, 5.96, 102.01),
    "RN101": (19.54, 5.96, 119.69),
    "RN50x4": (42.56, 9.27, 178.3),
    "RN50x16": (149.39, 13.3, 290.98),
    "RN50x64": (529.11, 23.55, 623.26),
    "convnext_base": (30.71, 5.96, 151.52),
    "convnext_base_w": (40.11, 9.27, 179.39),
    "convnext_base_w_320": (62.67, 9.27, 179.39),
    "convnext_large_d": (89.76, 17.73, 351.77),
    "convnext_large_d_320": (140.25, 17.73, 351.77),
    "convnext_xxlarge": (395.94, 47.09, 1200.58),
    "EVA02-B-16": (35.13, 5.96, 149.69),
    "EVA02-L-14": (162.0, 13.3, 427.76),
    "EVA02-L-14-336": (381.86, 13.3, 428.08),
    "ViT-B-16-SigLIP": (35.42, 11.02, 203.16),
    "ViT-B-16-SigLIP-256": (46.82, 11.02, 203.2),
    "ViT-L-16-SigLIP-256": (162.56, 39.06, 652.15),
    "ViT-L-16-SigLIP-384": (383.85, 39.06, 652.48),
    "ViT-SO400M-14-SigLIP": (220.35, 13.19, 877.36),
    "ViT-SO400M-14-SigLIP-384": (670.35, 53.13, 877.96),
}
_CHANNELS = 3


@dataclass(frozen=True)
class ModelCosts:
    """Of one forward pass. None where it is not known."""

    dimensions: int
    """Of an embedding (D)."""
    image_flops: float | None
    text_flops: float | None
    parameters: float | None


@dataclass(frozen=True)
class _Tower:
    flops: float
    parameters: float


def model_costs(model: str) -> ModelCosts:
    """The costs of a model that `pipeline.models.check_model` accepts.

    Args:
        model: open_clip's name, or the path of a model config.
    """
    config = _config(model)
    if model in _PROFILED:
        image, text, millions = _PROFILED[model]
        return ModelCosts(config["embed_dim"], image * 1e9, text * 1e9, millions * 1e6)
    seen, read = _vision(config), _text(config)
    return ModelCosts(
        dimensions=config["embed_dim"],
        image_flops=seen.flops if seen else None,
        text_flops=read.flops if read else None,
        parameters=seen.parameters + read.parameters + 1 if seen and read else None,
    )


def _config(model: str) -> Mapping[str, Any]:
    from pipeline.models import config_path

    found: Mapping[str, Any] = json.loads(config_path(model).read_text(encoding="utf-8"))
    return found


def _vision(config: Mapping[str, Any]) -> _Tower | None:
    """The vision transformer; None for anything else."""
    vision = config["vision_cfg"]
    layers, patch = vision.get("layers"), vision.get("patch_size")
    if "timm_model_name" in vision or not isinstance(layers, int) or not patch:
        return None
    if "multimodal_cfg" in config:
        return None
    width, sides = vision["width"], _sides(vision["image_size"])
    patches = (sides[0] // patch) * (sides[1] // patch)
    blocks = _blocks(patches + 1, width, layers, vision.get("mlp_ratio", 4.0))
    embedding, projection = _CHANNELS * patch**2 * width, width * config["embed_dim"]
    return _Tower(
        blocks.flops + 2 * (patches * embedding + projection),
        blocks.parameters + embedding + (patches + 2) * width + 4 * width + projection,
    )


def _text(config: Mapping[str, Any]) -> _Tower | None:
    """The text transformer; None for one of Hugging Face's."""
    text = config["text_cfg"]
    if "hf_model_name" in text or "multimodal_cfg" in config:
        return None
    width, tokens = text.get("width", 512), text.get("context_length", 77)
    blocks = _blocks(tokens, width, text.get("layers", 12), text.get("mlp_ratio", 4.0))
    projection = width * config["embed_dim"]
    words = text.get("vocab_size", 49408) * width
    return _Tower(
        blocks.flops + 2 * projection,
        blocks.parameters + words + tokens * width + 2 * width + projection,
    )


def _blocks(tokens: int, width: int, layers: int, ratio: float) -> _Tower:
    weights = (4 + 2 * ratio) * width**2
    biases_and_norms = (4 + ratio + 1 + 4) * width
    flops = 2 * layers * (tokens * weights + 2 * tokens**2 * width)
    return _Tower(flops, layers * (weights + biases_and_norms))


def _sides(size: int | list[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])
