"""Checkpoints on their way into a model: what open_clip gets to see, and what it does not."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from PIL import Image

from pipeline.checkpoints import CodeError, UnreadableError
from pipeline.models import Embedder, encode_images, load_embedder, register_model
from pipeline.training.options import model_arguments
from pipeline.weights import OtherModelError

MODEL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1},
}
NAME = "weights-test-vit"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model") / f"{NAME}.json"
    path.write_text(json.dumps(MODEL))
    register_model(str(path))
    return str(path)


@pytest.fixture(scope="module")
def weights(config: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    made: dict[str, torch.Tensor] = open_clip.create_model(NAME).state_dict()
    return made


def load(config: str, checkpoint: Path, options: dict[str, object] | None = None) -> Embedder:
    return load_embedder(config, str(checkpoint), precision="fp32", device="cpu", options=options)


def trained(folder: Path, **arguments: Any) -> tuple[torch.nn.Module, Any, Path]:
    """A model as open_clip_train makes it, its preprocessing, and its checkpoint."""
    torch.manual_seed(1)
    model, _, preprocess = open_clip.create_model_and_transforms(NAME, **arguments)
    torch.save({"epoch": 1, "state_dict": model.state_dict()}, folder / "trained.pt")
    return model.eval(), preprocess, folder / "trained.pt"


# What is refused


class Program:
    """A pickle that writes a file when it is loaded."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.mknod, (str(self.target),)


@pytest.mark.parametrize("old_format", [False, True])
def test_pickled_code_is_refused_and_does_not_run(
    config: str, weights: dict[str, torch.Tensor], tmp_path: Path, old_format: bool
) -> None:
    trap, path = tmp_path / "written", tmp_path / "evil.pt"
    content = {"state_dict": weights, "name": Program(trap)}
    torch.save(content, path, _use_new_zipfile_serialization=not old_format)
    with pytest.raises(CodeError, match=r"evil\.pt: not loaded, because that would run code"):
        load(config, path)
    assert not trap.exists()
    pickle.loads(pickle.dumps(Program(trap)))
    assert trap.exists()  # or the test would show nothing


def test_open_clips_second_try_runs_no_code_either(
    config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """open_clip loads without care once torch raises a TypeError on a careful load."""
    trap, path = tmp_path / "written", tmp_path / "evil.pt"
    torch.save({"state_dict": Program(trap)}, path)
    careful = torch.load

    def confused(*args: Any, weights_only: bool = False, **kwargs: Any) -> Any:
        if weights_only:
            raise TypeError("as some checkpoints make torch raise")
        return careful(*args, weights_only=False, **kwargs)

    monkeypatch.setattr(torch, "load", confused)
    with pytest.raises(UnreadableError):
        load(config, path)
    assert not trap.exists()


def test_a_tags_file_is_read_with_the_same_care(
    config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trap, path = tmp_path / "written", tmp_path / "open_clip_model.pt"
    torch.save({"state_dict": Program(trap)}, path)
    tags = {"tag": {"url": "https://example.org/open_clip_model.pt"}}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, NAME, tags)
    monkeypatch.setattr(open_clip.factory, "download_pretrained", lambda *_, **__: str(path))
    with pytest.raises(CodeError, match=r"open_clip_model\.pt: not loaded"):
        load_embedder(config, "tag", precision="fp32", device="cpu")
    assert not trap.exists()


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
def test_a_program_of_torchscript_is_refused(
    config: str, weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "script.pt"))
    with pytest.raises(CodeError, match=r"script\.pt: not loaded: a TorchScript archive"):
        load(config, tmp_path / "script.pt")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_cut_off_checkpoint_is_refused(
    config: str, weights: dict[str, torch.Tensor], tmp_path: Path, share: float
) -> None:
    torch.save(weights, tmp_path / "whole.pt")
    data = (tmp_path / "whole.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(data[: int(share * len(data))])
    with pytest.raises(UnreadableError, match=r"cut\.pt: cut off"):
        load(config, tmp_path / "cut.pt")


def test_another_architecture_is_refused_by_its_first_weight(
    config: str, weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "wider.json"
    path.write_text(json.dumps({**MODEL, "embed_dim": 24}))
    torch.save(weights, tmp_path / "narrow.pt")
    with pytest.raises(OtherModelError) as error:
        load(str(path), tmp_path / "narrow.pt")
    assert "narrow.pt: not a checkpoint of the model 'wider'" in str(error.value)
    assert "the first, 'text_projection', has shape (16, 16) in the checkpoint, (16, 24)" in str(
        error.value
    )


def test_positions_are_not_stretched_in_silence(
    config: str, weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    checkpoint = trained(tmp_path, force_image_size=64)[2]
    with pytest.raises(OtherModelError, match=r"'visual.positional_embedding', has shape \(17, 64"):
        load(config, checkpoint)


# What is loaded


@pytest.mark.parametrize("form", ["weights", "epoch", "parallel", "safetensors"])
def test_every_form_of_a_checkpoint_gives_the_same_weights(
    config: str, weights: dict[str, torch.Tensor], tmp_path: Path, form: str
) -> None:
    path = tmp_path / ("a.safetensors" if form == "safetensors" else "a.pt")
    if form == "safetensors":
        from safetensors.torch import save_file

        save_file({name: one.contiguous() for name, one in weights.items()}, path)
    else:
        prefix = "module." if form == "parallel" else ""
        named = {prefix + name: one for name, one in weights.items()}
        torch.save(named if form == "weights" else {"epoch": 1, "state_dict": named}, path)
    loaded = load(config, path).model.state_dict()
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[name], one) for name, one in weights.items())


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        ({"force-quick-gelu": True}, {"force_quick_gelu": True}),
        ({"force-image-size": [64]}, {"force_image_size": 64}),
        ({"force-custom-text": True}, {"force_custom_text": True}),
        ({"force-context-length": 12}, {"force_context_length": 12}),
        ({"image-mean": [0, 0, 0], "image-std": [1, 1, 1]}, {"image_mean": (0, 0, 0), "image_std": (1, 1, 1)}),
        ({"image-resize-mode": "squash"}, {"image_resize_mode": "squash"}),
        ({"siglip": True}, {"init_logit_scale": 2.302585, "init_logit_bias": -10}),
        ({"force-patch-dropout": 0.5, "lr": 0.1}, {"force_patch_dropout": 0.5}),
    ],
)  # fmt: skip
def test_a_model_is_loaded_as_it_was_trained(
    config: str, tmp_path: Path, options: dict[str, object], arguments: dict[str, Any]
) -> None:
    model, preprocess, checkpoint = trained(tmp_path, **arguments)
    embedder = load(config, checkpoint, options)
    image = Image.effect_noise((50, 40), 80).convert("RGB")
    assert torch.equal(embedder.preprocess(image), preprocess(image))
    batch = preprocess(image)[None]
    with torch.no_grad():
        expected = model.encode_image(batch, normalize=True)  # type: ignore[operator]
        texts = embedder.tokenizer(["a photo of a cat and of more things than fit"])
        assert texts.shape[1] == arguments.get("force_context_length", 8)
        captions = model.encode_text(texts)  # type: ignore[operator]
        assert torch.equal(embedder.model.encode_text(texts), captions)  # type: ignore[operator]
    found = torch.from_numpy(encode_images(embedder, batch)).float()
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)


def test_options_that_act_in_training_only_change_no_model() -> None:
    assert model_arguments({"lr": 1e-3, "aug-cfg": {"scale": "(0.9, 1.0)"}, "wd": 0.2}) == {}


def test_open_clip_is_left_as_it_was(config: str, tmp_path: Path) -> None:
    before = open_clip.factory.load_state_dict
    (tmp_path / "bad.pt").write_bytes(b"nothing")
    with pytest.raises(UnreadableError):
        load(config, tmp_path / "bad.pt")
    assert open_clip.factory.load_state_dict is before
