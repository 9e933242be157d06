"""A very small study on real parts: tars, image folders, an open_clip model, all made in a second."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image, ImageDraw

CLASSES = ("disc", "square", "cross")
TESTS = ("photo", "sketch")
MODEL = {
    "embed_dim": 32,
    "vision_cfg": {
        "image_size": 32,
        "timm_model_name": "test_efficientnet",
        "timm_model_pretrained": False,
        "timm_pool": "avg",
        "timm_proj": "linear",
    },
    "text_cfg": {
        "context_length": 8,
        "vocab_size": 49408,
        "width": 16,
        "heads": 1,
        "layers": 1,
    },
}


def picture(style: str, label: int, seed: int) -> Image.Image:
    """A shape in a style, drawn from a seed."""
    random = np.random.default_rng([len(style), label, seed])
    ground = (250, 250, 250) if style == "sketch" else tuple(random.integers(0, 120, 3).tolist())
    ink = (20, 20, 20) if style == "sketch" else tuple(random.integers(130, 256, 3).tolist())
    image = Image.new("RGB", (32, 32), ground)
    draw = ImageDraw.Draw(image)
    x, y = random.integers(4, 10, 2).tolist()
    box = (x, y, x + 18, y + 18)
    fill = None if style == "sketch" else ink
    if CLASSES[label] == "disc":
        draw.ellipse(box, fill, ink, width=2)
    elif CLASSES[label] == "square":
        draw.rectangle(box, fill, ink, width=2)
    else:
        draw.line((x, y, x + 18, y + 18), ink, width=4)
        draw.line((x, y + 18, x + 18, y), ink, width=4)
    noise = random.integers(-6, 7, (32, 32, 3))
    return Image.fromarray((np.asarray(image, np.int16) + noise).clip(0, 255).astype(np.uint8))


def jpeg(style: str, label: int, seed: int) -> bytes:
    """A picture as a file."""
    buffer = io.BytesIO()
    picture(style, label, seed).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    """A plain tar of files, in order."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def uid(key: str) -> str:
    """A sample's name in DataComp: 128 bits as hexadecimal digits."""
    return hashlib.md5(key.encode()).hexdigest()


def sample(
    key: str, style: str, label: int, seed: int, caption: str = ""
) -> list[tuple[str, bytes]]:
    """The members of a good sample."""
    caption = caption or f"a {style} of a {CLASSES[label]}"
    meta = json.dumps({"key": key, "caption": caption, "uid": uid(key)}).encode()
    return [
        (f"{key}.jpg", jpeg(style, label, seed)),
        (f"{key}.txt", caption.encode()),
        (f"{key}.json", meta),
    ]


def shard(index: int, count: int = 24) -> list[tuple[str, bytes]]:
    """The members of a shard of the pool: photos and sketches of all classes."""
    members = []
    for number in range(count):
        seed = index * 1000 + number
        style = "sketch" if number % 3 == 0 else "photo"
        members += sample(f"{index:05d}{number:04d}", style, number % len(CLASSES), seed)
    return members


@dataclass(frozen=True)
class SmallStudy:
    """The study's folder, and its command."""

    folder: Path

    @property
    def run(self) -> Path:
        """Its run."""
        return self.folder / "runs" / "small"

    @property
    def experiment(self) -> Path:
        """Its YAML."""
        return self.folder / "small.yaml"

    def simgap(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Type a simgap command."""
        command = [sys.executable, "-m", "pipeline", *words]
        return subprocess.run(command, cwd=self.folder, capture_output=True, text=True)

    def submit(self, *words: str) -> str:
        """Submit, expecting success; returns what was printed."""
        done = self.simgap("submit", str(self.experiment), *words)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def markers(self) -> dict[str, Any]:
        """Every task's marker by `stage/task`."""
        done = self.run / "done"
        markers = {}
        for path in sorted(done.rglob("*.json")):
            marker = json.loads(path.read_text())
            markers[f"{path.relative_to(done).parts[0]}/{marker['task']}"] = marker
        return markers


def make(folder: Path) -> SmallStudy:
    """Make the data and the experiment of a small study."""
    import open_clip
    import torch

    (folder / "pool").mkdir(parents=True)
    for index in range(3):
        write_tar(folder / "pool" / f"{index:05d}.tar", shard(index))
    for name, count, base in (
        ("reference", 8, 50_000),
        ("photo", 3, 60_000),
        ("sketch", 3, 70_000),
    ):
        for label, class_name in enumerate(CLASSES):
            place = folder / name / class_name
            place.mkdir(parents=True)
            for number in range(count):
                style = "sketch" if name == "sketch" else "photo"
                (place / f"{number}.jpg").write_bytes(jpeg(style, label, base + number))
    (folder / "small-model.json").write_text(json.dumps(MODEL))
    open_clip.add_model_config(folder / "small-model.json")
    torch.manual_seed(0)
    model = open_clip.create_model("small-model")
    torch.save({"epoch": 0, "state_dict": model.state_dict()}, folder / "embedder.pt")
    study = SmallStudy(folder)
    study.experiment.write_text(yaml.safe_dump(_experiment(), sort_keys=False))
    return study


def _experiment() -> dict[str, Any]:
    return {
        "name": "small",
        "pool": {"shards": "pool/*.tar", "max_bad_fraction": 0.5},
        "reference": {"images": "reference", "files": 2},
        "tests": {name: {"images": name} for name in TESTS},
        "embedder": {"model": "small-model.json", "pretrained": "embedder.pt", "batch_size": 16},
        "similarity": {"neighbours": 3},
        "splits": {
            "full": "all",
            "sketch-pruned": {"near": ["sketch"]},
            "photo-pruned": {"near": ["photo"]},
            "sketch-control": {"random": {"like": "sketch-pruned", "seed": 1}},
        },
        "training": {
            "model": "small-model.json",
            "splits": ["full", "sketch-pruned", "sketch-control"],
            "epochs": 2,
            "samples_per_epoch": 32,
            "batch_size": 16,
            "samples_per_shard": 20,
            "options": {
                "lr": 1e-3,
                "warmup": 1,
                "precision": "fp32",
                "device": "cpu",
                "log-every-n-steps": 1,
            },
        },
        "evaluation": {"templates": ["a photo of a {}"]},
        "report": {"gallery": 2},
    }
