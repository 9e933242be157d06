"""Checkpoints are read as data: what is whole is loaded, what has code is refused and never run."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from pipeline.checkpoints import (
    CodeError,
    UnreadableError,
    check_finite,
    read_checkpoint,
    weights_of,
)

WEIGHTS = {"visual.a": torch.arange(1000.0), "b": torch.ones(2, dtype=torch.int64)}


class Evil:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.trace),)


def of_training(path: Path) -> None:
    parallel = {f"module.{name}": one for name, one in WEIGHTS.items()}
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(3))])
    torch.save(
        {"epoch": 3, "name": "x", "state_dict": parallel, "optimizer": optimizer.state_dict()}, path
    )


def of_old_torch(path: Path) -> None:
    torch.save(WEIGHTS, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("training.pt", of_training),
        ("weights.pt", lambda path: torch.save(WEIGHTS, path)),
        ("old.pt", of_old_torch),
        ("weights.safetensors", lambda path: save_file(WEIGHTS, path)),
    ],
)
def test_weights_of_every_format(tmp_path: Path, name: str, write: Callable[[Path], None]) -> None:
    write(tmp_path / name)
    weights = weights_of(tmp_path / name)
    assert weights.keys() == WEIGHTS.keys()
    assert all(torch.equal(one, WEIGHTS[name]) for name, one in weights.items())
    check_finite(tmp_path / name, weights)


def test_all_of_a_training(tmp_path: Path) -> None:
    of_training(tmp_path / "one.pt")
    content = read_checkpoint(tmp_path / "one.pt")
    assert content["epoch"] == 3
    assert content.keys() == {"epoch", "name", "state_dict", "optimizer"}


@pytest.mark.parametrize("kept", [1, 150, 0.5, 0.99])
@pytest.mark.parametrize("name", ["training.pt", "old.pt", "weights.safetensors"])
def test_a_checkpoint_that_is_cut_off(tmp_path: Path, name: str, kept: float) -> None:
    path = tmp_path / name
    {"training.pt": of_training, "old.pt": of_old_torch}.get(
        name, lambda path: save_file(WEIGHTS, path)
    )(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept if kept >= 1 else kept * len(whole))])
    with pytest.raises(UnreadableError, match=f"{name}: .*cut off"):
        weights_of(path)


def with_code(path: Path) -> None:
    torch.save({"state_dict": WEIGHTS, "extra": Evil(path.with_name("ran"))}, path)


def with_code_of_old_torch(path: Path) -> None:
    content = {"a": Evil(path.with_name("ran"))}
    torch.save(content, path, _use_new_zipfile_serialization=False)


def pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps({"a": Evil(path.with_name("ran"))}))


def whole_model(path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), path)


def script(path: Path) -> None:
    class Doubled(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + x

    torch.jit.save(torch.jit.trace(Doubled(), torch.ones(2)), str(path))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("write", "error", "told"),
    [
        (with_code, CodeError, r"would run code \((posix|nt)\.mkdir\)"),
        (with_code_of_old_torch, CodeError, r"would run code \((posix|nt)\.mkdir\)"),
        (pickled, UnreadableError, "not made by torch.save"),
        (whole_model, CodeError, r"would run code \(torch\.nn\.modules\.linear\.Linear\)"),
        (script, CodeError, "a TorchScript archive, which is a program"),
    ],
)
def test_code_is_refused_and_never_run(
    tmp_path: Path, write: Callable[[Path], None], error: type[Exception], told: str
) -> None:
    write(tmp_path / "one.pt")
    with pytest.raises(error, match=told):
        weights_of(tmp_path / "one.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ([1, 2], "expected a dict of weights, found a list"),
        ({"epoch": 1}, "expected a state_dict, or weights by name, found 'epoch', a int"),
        ({"state_dict": {}}, "its state_dict is empty"),
    ],
)
def test_what_holds_no_weights(tmp_path: Path, content: Any, told: str) -> None:
    torch.save(content, tmp_path / "one.pt")
    with pytest.raises(UnreadableError, match=told):
        weights_of(tmp_path / "one.pt")


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pt: no such checkpoint"):
        weights_of(tmp_path / "nowhere.pt")
    (tmp_path / "page.pt").write_text("<html>not found</html>")
    with pytest.raises(UnreadableError, match=r"not made by torch\.save.*<html>"):
        weights_of(tmp_path / "page.pt")
    (tmp_path / "empty.pt").touch()
    with pytest.raises(UnreadableError, match="no checkpoint: empty"):
        weights_of(tmp_path / "empty.pt")


def test_weights_that_are_no_numbers(tmp_path: Path) -> None:
    broken = {"a": torch.ones(2), "b": torch.tensor([1.0, float("nan")])}
    with pytest.raises(UnreadableError, match=r"one\.pt: b is not finite"):
        check_finite(tmp_path / "one.pt", broken)
