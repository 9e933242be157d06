"""Models by name and by file: what is refused, what is loaded, and what embeddings are."""

import io
import json
import os
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from pipeline.data.loader import Source, load_images
from pipeline.data.tars import index_shard
from pipeline.models import (
    PRECISIONS,
    Embedder,
    check_model,
    encode_images,
    known_models,
    load_embedder,
    register_model,
    resolve_device,
    zero_shot_classifier,
)

MINI: dict[str, Any] = {
    "embed_dim": 64,
    "vision_cfg": {
        "image_size": 48,
        "timm_model_name": "test_efficientnet",
        "timm_model_pretrained": False,
        "timm_pool": "avg",
        "timm_proj": "linear",
    },
    "text_cfg": {
        "context_length": 16, "vocab_size": 49408, "width": 32, "heads": 1, "layers": 1
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's description and two checkpoints: of open_clip_train, and weights alone."""
    folder = tmp_path_factory.mktemp("model")
    path = folder / "models-test-mini.json"
    path.write_text(json.dumps(MINI))
    name = register_model(str(path))
    torch.manual_seed(0)
    model = open_clip.create_model(name)
    optimizer = torch.optim.AdamW(model.parameters())
    checkpoint = {
        "epoch": 1,
        "name": "run",
        "state_dict": {f"module.{key}": value for key, value in model.state_dict().items()},
        "optimizer": optimizer.state_dict(),
    }
    torch.save(checkpoint, folder / "epoch_1.pt")
    torch.save(model.state_dict(), folder / "weights.pt")
    return folder


def load(folder: Path, precision: str = "fp32", checkpoint: str = "epoch_1.pt") -> Embedder:
    return load_embedder(
        str(folder / "models-test-mini.json"),
        str(folder / checkpoint),
        precision=precision,
        device="cpu",
    )


def pictures(count: int) -> list[Image.Image]:
    noise = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    return [Image.fromarray(one).resize((60, 50)) for one in noise]


# Names


def test_known_models_are_open_clips() -> None:
    names = known_models()
    assert set(names) == {p.stem for p in _builtin_configs()}
    assert {"ViT-B-32", "ViT-B-16-plus-240"} <= set(names) <= set(open_clip.list_models())


def _builtin_configs() -> list[Path]:
    return list((Path(open_clip.__file__).parent / "model_configs").glob("*.json"))


def test_names_are_checked_without_torch() -> None:
    code = (
        "import sys; from pipeline.models import check_model, known_models, resolve_device\n"
        "check_model('ViT-B-32'); known_models(); resolve_device('cpu')\n"
        "assert not {'torch', 'open_clip', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("wrong", ["ViT-B/32", "vit-b-32", "ViT-B-32x"])
def test_an_unknown_model_is_named_with_the_nearest(wrong: str) -> None:
    with pytest.raises(ValueError, match=f"no model '{wrong}'; did you mean 'ViT-B-32") as error:
        check_model(wrong)
    assert ".json" in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "a JSON object"),
        ('{"embed_dim": 1, "vision_cfg": {}}', "'text_cfg' is missing"),
    ],
)
def test_a_bad_configuration_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "m.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"m.json: .*{message}"):
        check_model(str(path))


def test_a_missing_configuration_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no\.json"):
        check_model(str(tmp_path / "no.json"))


def test_a_configuration_is_registered_once(tmp_path: Path, folder: Path) -> None:
    path = folder / "models-test-mini.json"
    assert register_model(str(path)) == register_model(str(path)) == "models-test-mini"
    (tmp_path / path.name).write_text(json.dumps(MINI, indent=2))
    assert register_model(str(tmp_path / path.name)) == "models-test-mini"


@pytest.mark.parametrize("stem", ["models-test-mini", "ViT-B-32"])
def test_one_name_is_one_model(tmp_path: Path, folder: Path, stem: str) -> None:
    path = tmp_path / f"{stem}.json"
    path.write_text(json.dumps({**MINI, "embed_dim": 32}))
    with pytest.raises(ValueError, match=f"another model by the name '{stem}'; rename the file"):
        register_model(str(path))


# Devices


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    found = {one: resolve_device(one) for one in ("auto", "cpu", "cuda", "cuda:1")}
    assert found == {"auto": "cuda", "cpu": "cpu", "cuda": "cuda", "cuda:1": "cuda:1"}
    with pytest.raises(RuntimeError, match="'cuda:2' asked for, but this machine has 2 GPUs"):
        resolve_device("cuda:2")
    for wrong in ("gpu", "cuda:", "cuda:x", "cpu:0", ""):
        with pytest.raises(ValueError, match="expected auto, cpu, cuda or cuda:N"):
            resolve_device(wrong)


def test_a_gpu_that_is_absent_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == "cpu"
    for request in ("cuda", "cuda:0"):
        with pytest.raises(RuntimeError, match="has 0 GPUs"):
            resolve_device(request)


# Weights


@pytest.mark.parametrize("checkpoint", ["epoch_1.pt", "weights.pt"])
def test_checkpoints_are_loaded(folder: Path, checkpoint: str) -> None:
    embedder = load(folder, checkpoint=checkpoint)
    saved = torch.load(folder / "weights.pt")
    assert all(torch.equal(saved[k], v) for k, v in embedder.model.state_dict().items())
    assert not embedder.model.training
    assert (embedder.dimensions, embedder.device, embedder.precision) == (64, "cpu", "fp32")
    described = json.loads(embedder.preprocessing)
    assert described["size"] in (48, [48, 48]) and "mean" in described


def test_the_last_model_is_kept_until_its_checkpoint_changes(folder: Path) -> None:
    embedder = load(folder)
    assert load(folder) is embedder
    path = folder / "epoch_1.pt"
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert load(folder) is not embedder


def test_weights_of_another_model_are_refused_by_both_names(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "models-test-wider.json"
    path.write_text(json.dumps({**MINI, "embed_dim": 96}))
    checkpoint = str(folder / "epoch_1.pt")
    with pytest.raises(ValueError) as error:
        load_embedder(str(path), checkpoint, precision="fp32", device="cpu")
    message = str(error.value)
    assert f"{checkpoint}: not a checkpoint of the model 'models-test-wider'" in message
    assert "64" in message and "96" in message


def test_a_torn_checkpoint_is_refused(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "epoch_1.pt"
    path.write_bytes((folder / "epoch_1.pt").read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"epoch_1\.pt: cut off"):
        load(folder, checkpoint=str(path))


def test_unknown_weights_are_named_with_the_nearest(folder: Path) -> None:
    def fail(model: str, pretrained: str, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            load_embedder(model, pretrained, precision="fp32", device="cpu")

    fail("ViT-B-32", "laion2b_s34b_b79", ValueError, "did you mean 'laion2b_s34b_b79k'")
    fail("ViT-B-32", "", ValueError, "no weights ''.*expected a tag")
    mini = str(folder / "models-test-mini.json")
    fail(mini, "openai", ValueError, "expected a checkpoint's path")
    fail(mini, str(folder / "epoch_9.pt"), FileNotFoundError, r"epoch_9\.pt: no such checkpoint")


def test_an_unknown_precision_is_named_with_the_nearest(folder: Path) -> None:
    with pytest.raises(ValueError, match="unknown precision 'amp_bf32'; did you mean 'amp_bf16'"):
        load(folder, precision="amp_bf32")


# Embeddings


def canonical(embedder: Embedder, images: list[Image.Image]) -> np.ndarray:
    """What open_clip's documentation does, with rows rounded to float16."""
    with torch.no_grad():
        batch = torch.stack([embedder.preprocess(image) for image in images])
        features = embedder.model.encode_image(batch)
    return (features / features.norm(dim=-1, keepdim=True)).half().numpy()


@pytest.mark.parametrize("workers", [0, 2])
def test_embeddings_of_a_tar_are_open_clips(folder: Path, tmp_path: Path, workers: int) -> None:
    embedder = load(folder)
    path = tmp_path / "0.tar"
    with tarfile.open(path, "w") as tar:
        for i, image in enumerate(pictures(10)):
            file = io.BytesIO()
            image.save(file, "JPEG")
            for suffix, data in (("jpg", file.getvalue()), ("txt", b"a picture")):
                info = tarfile.TarInfo(f"{i:05}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    sources = [Source(path, sample.image) for sample in index_shard(path).samples]
    batches = load_images(sources, embedder.preprocess, batch_size=4, workers=workers)
    rows = [encode_images(embedder, batch.images) for batch in batches]
    with tarfile.open(path) as tar:
        members = [tar.extractfile(name) for name in tar.getnames() if name.endswith("jpg")]
        images = [Image.open(io.BytesIO(member.read())) for member in members if member]
    expected = [canonical(embedder, images[i : i + 4]) for i in range(0, 10, 4)]
    assert np.array_equal(np.concatenate(rows), np.concatenate(expected))


def test_embeddings_hardly_depend_on_the_batch(folder: Path) -> None:
    embedder = load(folder)
    batch = torch.stack([embedder.preprocess(image) for image in pictures(9)])
    together = encode_images(embedder, batch)
    alone = np.concatenate([encode_images(embedder, one[None]) for one in batch])
    assert together.shape == (9, 64) and together.dtype == np.float16
    assert np.abs(together.astype(float) - alone).max() <= 2**-12  # a unit in the last place
    lengths = np.linalg.norm(together.astype(float), axis=1)
    assert np.abs(lengths - 1).max() < 2**-11


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_precision_embeds(folder: Path, precision: str) -> None:
    batch = torch.stack([load(folder).preprocess(image) for image in pictures(3)])
    exact = encode_images(load(folder), batch).astype(float)
    embedder = load(folder, precision=precision)
    rows = encode_images(embedder, batch)
    assert rows.dtype == np.float16
    assert ((exact * rows).sum(axis=1) > 0.999).all()
    classifier = zero_shot_classifier(embedder, ["cat", "dog"], ["a {}."])
    assert classifier.dtype == torch.float32 and classifier.shape == (64, 2)


def test_no_images_no_rows(folder: Path) -> None:
    rows = encode_images(load(folder), torch.empty((0, 3, 0, 0)))
    assert rows.shape == (0, 64) and rows.dtype == np.float16


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_a_row_that_is_not_finite_is_refused(folder: Path, value: float) -> None:
    class Broken:
        def encode_image(self, images: torch.Tensor) -> torch.Tensor:
            rows = torch.ones(len(images), 64)
            rows[1] = value
            return rows

    embedder: Embedder = replace(load(folder), model=Broken())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"1 of 3 embeddings .* the first in row 1 of the batch"):
        encode_images(embedder, torch.zeros(3, 3, 48, 48))


def test_the_classifier_is_the_mean_over_templates(folder: Path) -> None:
    embedder = load(folder)
    classifier = zero_shot_classifier(embedder, ["cat", "red fox"], ["a {}.", "my {}"])
    same = [lambda name: f"a {name}.", lambda name: f"my {name}"]
    assert torch.equal(zero_shot_classifier(embedder, ["cat", "red fox"], same), classifier)
    assert not classifier.requires_grad
    with torch.no_grad():
        texts = embedder.tokenizer(["a cat.", "my cat", "a red fox.", "my red fox"])
        features = embedder.model.encode_text(texts, normalize=True)
    mean = features.reshape(2, 2, 64).mean(dim=1)
    expected = (mean / mean.norm(dim=1, keepdim=True)).T
    assert torch.allclose(classifier, expected, atol=1e-6)
