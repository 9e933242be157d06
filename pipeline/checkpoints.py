"""Checkpoints, read as data: a checkpoint is a pickle, and a pickle may be a program.

Nothing in here runs what a file says: torch unpickles weights only (from 2.6 on; earlier releases
run code in spite of `weights_only` in files of the format before 1.6), and safetensors hold no
code. Files are mapped into memory, so that looking at one costs what is looked at.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

SAFETENSORS = ".safetensors"
_PARALLEL = "module."  # DistributedDataParallel puts it before all names
# How torch's unpickler words that a file wants to call something not known to be harmless.
_WANTS_CODE = re.compile(r"[Uu]nsupported (?:global: )?GLOBAL ([\w.]+)|(Trying to (?!load)[^\n.]+)")


class CheckpointError(ValueError):
    """A checkpoint that is not used; the message names the file and says why."""


class UnreadableError(CheckpointError):
    """Cut off, or not a checkpoint at all."""


class CodeError(CheckpointError):
    """It would run code to be loaded, and was not."""


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What a checkpoint holds, its tensors on the CPU and mapped from the file.

    Args:
        path: a file of torch.save, or safetensors by its suffix. A file that is overwritten in
            place while its tensors are in use changes them.

    Returns:
        Of open_clip_train: epoch, name, state_dict, optimizer (and scaler); of weights alone, and
        of safetensors: names and tensors.

    Raises:
        FileNotFoundError: there is no such file.
        UnreadableError: it is cut off, or no checkpoint.
        CodeError: it is a TorchScript archive, or has pickled code.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    content = _safetensors(path) if path.suffix == SAFETENSORS else _torch(path)
    if not isinstance(content, Mapping):
        raise UnreadableError(
            f"{path}: no checkpoint: expected a dict of weights, found {_article(content)}"
        )
    return dict(content)


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    """A model's weights by name, without the `module.` that training in parallel puts before them.

    Raises:
        FileNotFoundError, UnreadableError, CodeError: as `read_checkpoint`; a file without weights
            is unreadable.
    """
    import torch

    content = read_checkpoint(path)
    weights = content.get("state_dict", content)
    if not isinstance(weights, Mapping) or not weights:
        raise UnreadableError(f"{path}: no checkpoint: its state_dict is {_article(weights)}")
    other = [name for name, one in weights.items() if not isinstance(one, torch.Tensor)]
    if other:
        raise UnreadableError(
            f"{path}: no checkpoint: expected a state_dict, or weights by name, found "
            f"{other[0]!r}, {_article(weights[other[0]])}"
        )
    parallel = all(str(name).startswith(_PARALLEL) for name in weights)
    return {str(name)[len(_PARALLEL) if parallel else 0 :]: one for name, one in weights.items()}


def check_finite(path: Path, weights: Mapping[str, torch.Tensor]) -> None:
    """Read every weight.

    Raises:
        UnreadableError: one is infinite or no number.
    """
    broken = [name for name, one in weights.items() if not bool(one.isfinite().all())]
    if broken:
        others = f" and {len(broken) - 1} others are" if len(broken) > 1 else " is"
        raise UnreadableError(f"{path}: {broken[0]}{others} not finite")


def _article(value: object) -> str:
    return "empty" if isinstance(value, Mapping) and not value else f"a {type(value).__name__}"


def _safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: dict[str, Any] = load_file(path, device="cpu")
    except SafetensorError as error:
        raise UnreadableError(
            f"{path}: no whole safetensors: {error}; cut off while it was written or copied?"
        ) from error
    return tensors


def _torch(path: Path) -> Any:
    import torch

    in_zip = _refuse_scripts(path)
    try:
        # Only torch's own zip can be mapped; the format before torch 1.6 is read.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=in_zip or None)
    except Exception as error:  # torch has no one error for a file that it can't read
        if wanted := _WANTS_CODE.search(str(error)):
            raise CodeError(
                f"{path}: not loaded, because that would run code ({wanted[1] or wanted[2]}). If "
                "you trust where it is from, save its weights alone: "
                "torch.save(model.state_dict(), path)"
            ) from error
        if not in_zip:
            raise UnreadableError(f"{path}: no checkpoint: {_start(path)}") from error
        raise UnreadableError(f"{path}: no readable checkpoint: {error}") from error


def _start(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(12)
    return f"not made by torch.save, or cut off; it starts with {start!r}" if start else "empty"


def _refuse_scripts(path: Path) -> bool:
    """Whether it is a zip; a cut-off one and a TorchScript archive are refused."""
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return False
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile as error:
        size = path.stat().st_size
        raise UnreadableError(
            f"{path}: cut off: {size:,} bytes without the end of the archive; was it cut off while "
            "it was written or copied?"
        ) from error
    if any(name.endswith("/constants.pkl") for name in names):
        raise CodeError(
            f"{path}: not loaded: a TorchScript archive, which is a program. Save its weights "
            "alone: torch.save(torch.jit.load(path).state_dict(), path)"
        )
    return True
