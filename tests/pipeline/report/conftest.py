"""A small finished run: real tars, images and artefacts, with embeddings drawn from a seed."""

from __future__ import annotations

import colorsys
import io
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from pipeline import artifacts
from pipeline.artifacts import Array, encode_text
from pipeline.experiment.load import from_values
from pipeline.experiment.sections import Experiment
from pipeline.layout import POOL, REFERENCE, Layout
from tests.pipeline.small import write_tar

CLASSES = {"ids": ["n01", "n02", "n03"], "names": ["star", "Gürkchen", "fish & chips"]}
EVIL = '"><script>alert(1)</script> \'onerror="x" & Käse\n\x00\u202egnirts'
DIMENSIONS = 12
SPLITS = {
    "full": "all",
    "sketch-pruned": {"near": ["sketch"]},
    "sketch-control": {"random": {"like": "sketch-pruned", "seed": 1}},
}
CHANCE = {"full": 0.85, "sketch-pruned": 0.4, "sketch-control": 0.8}


@dataclass
class Study:
    """What to fabricate."""

    folder: Path
    tests: dict[str, Any] = field(default_factory=lambda: {"photo": {}, "sketch": {}})
    splits: dict[str, Any] = field(default_factory=lambda: dict(SPLITS))
    trained: list[str] | None = None
    seeds: tuple[int, ...] = (0, 1, 2)
    per_class: int = 20
    """Images of each class in a test set."""
    per_tar: int = 30
    tars: int = 3
    """The first embeddings file of the pool holds two tars, each other one."""
    gallery: int = 4
    chance: dict[str, float] = field(default_factory=lambda: dict(CHANCE))
    """How often the models of each split are right."""
    baselines: Path | None = None
    evaluation: dict[str, Any] = field(default_factory=dict)
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(7))

    @property
    def experiment(self) -> Experiment:
        """The experiment that the run belongs to."""
        tests = {name: {"images": str(self.folder / name), **more} for name, more in
                 self.tests.items()}  # fmt: skip
        return from_values(
            {
                "name": "fabricated",
                "runs": str(self.folder / "runs"),
                "pool": {"shards": str(self.folder / "pool" / "*.tar"), "shards_per_file": 2},
                "reference": {"images": str(self.folder / REFERENCE), "files": 2},
                "tests": tests,
                "embedder": {"model": "ViT-B-32", "pretrained": "laion2b"},
                "splits": self.splits,
                "training": {
                    "model": "ViT-B-32",
                    "epochs": 2,
                    "batch_size": 8,
                    "seeds": list(self.seeds),
                    "splits": self.trained,
                },
                "evaluation": self.evaluation,
                "report": {
                    "title": "A <small> study",
                    "gallery": self.gallery,
                    "baselines": self.baselines and str(self.baselines),
                },
            }
        )

    @property
    def layout(self) -> Layout:
        """The run."""
        return Layout(self.experiment.run)

    def make(self) -> Study:
        """Write data and artefacts."""
        reference = [self._image_set(REFERENCE, index, "photo") for index in range(2)]
        queries = {test: self._image_set(test, 0, test) for test in self.tests}
        taus = {test: self._reference(test, rows, reference) for test, rows in queries.items()}
        near = [self._scan(index, self._pool_file(index), queries, taus)
                for index in range(self.tars - 1)]  # fmt: skip
        self._masks(near)
        for split in self.experiment.trained_splits:
            for seed in self.seeds:
                for test in self.tests:
                    self._evaluation(split, seed, test)
        return self

    def _vector(self, style: str, label: int) -> Array:
        """A unit row near to others of its style and class."""
        centre = np.random.default_rng([len(style), label]).normal(size=DIMENSIONS)
        other = np.random.default_rng([label]).normal(size=DIMENSIONS)
        blur = self.random.normal(size=DIMENSIONS) * self.random.uniform(0.1, 1)
        row = centre + other + blur
        return row / np.linalg.norm(row)

    def _image_set(self, name: str, index: int, style: str) -> Array:
        """Images of all classes, and their embeddings file."""
        labels = np.repeat(np.arange(3, dtype=np.int32), self.per_class)
        keys = [f"{CLASSES['ids'][label]}/{index}-{i} ä.jpg" for i, label in enumerate(labels)]
        for key, label in zip(keys, labels.tolist(), strict=True):
            path = self.folder / name / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture(style, label, self.random))
        rows = np.stack([self._vector(style, label) for label in labels.tolist()])
        sources = [{"path": str(self.folder / name)}]
        return self._embeddings(name, index, rows, keys, labels, sources)

    def _embeddings(
        self, name: str, index: int, rows: Array, keys: list[str], labels: Array | None,
        sources: list[Any], shards: Array | None = None, skipped: tuple[tuple[str, str], ...] = (),
        faults: tuple[str, ...] = (),
    ) -> Array:  # fmt: skip
        arrays = {
            "embedding": rows.astype(np.float16),
            "key": encode_text(keys),
            "shard": np.zeros(len(keys), np.int32) if shards is None else shards,
            "skipped_key": encode_text([key for key, _ in skipped]),
            "skipped_reason": encode_text([reason for _, reason in skipped]),
        }
        if labels is not None:
            arrays["label"] = labels
        attributes = {
            "model": "ViT-B-32", "pretrained": "laion2b", "precision": "fp32 on cpu",
            "preprocessing": "224 px", "sources": sources, "faults": list(faults),
            "classes": None if labels is None else CLASSES, "read": len(keys) + len(skipped),
        }  # fmt: skip
        path = self.layout.embeddings(name, index)
        artifacts.write(path, artifacts.EMBEDDINGS, "d", arrays, attributes)
        return arrays["embedding"].astype(np.float64)

    def _pool_file(self, index: int) -> Array:
        tars = range(2) if index == 0 else [index + 1]
        rows, keys, shards, sources = [], [], [], []
        for place, tar in enumerate(tars):
            path = self.folder / "pool" / f"{tar:05d}.tar"
            path.parent.mkdir(exist_ok=True)
            members = []
            for i in range(self.per_tar):
                style, label = ("sketch" if i % 3 == 0 else "photo"), i % 2 + tar % 2
                keys.append(f"{tar:05d}{i:04d}")
                shards.append(place)
                rows.append(self._vector(style, label))
                members.append((f"{keys[-1]}.jpg", picture(style, label, self.random)))
                members.append((f"{keys[-1]}.txt", EVIL.encode()))
            write_tar(path, members)
            sources.append({"path": str(path), "identity": [1, 2]})
        skipped = ((f"{tars[0]:05d}.tar:<b>lonely</b>", "no caption"),)
        return self._embeddings(
            POOL, index, np.stack(rows), keys, None, sources, np.array(shards, np.int32),
            skipped, (f"{tars[0]:05d}.tar: torn at byte 123",),
        )  # fmt: skip

    def _reference(self, test: str, queries: Array, files: list[Array]) -> Array:
        similarity = queries @ np.concatenate(files).T
        order = np.argsort(-similarity, axis=1, kind="stable")[:, :2]
        best = np.take_along_axis(similarity, order, axis=1)
        origin = self.experiment.tests[test].threshold
        tau = best[:, 0].copy() if origin == "reference" else np.full(len(queries), float(origin))
        names = [self.layout.embeddings(REFERENCE, index) for index in range(2)]
        listed = [
            {"file": str(path.relative_to(self.layout.run)), "rows": len(rows)}
            for path, rows in zip(names, files, strict=True)
        ]
        arrays = {"threshold": tau, "neighbour_similarity": best, "neighbour_row": order}
        attributes = {"test": test, "threshold_from": origin, "backend": "reference",
                      "reference_files": listed}  # fmt: skip
        path = self.layout.reference(test)
        artifacts.write(path, artifacts.REFERENCE, "d", arrays, attributes)
        return tau

    def _scan(self, index: int, pool: Array, queries: dict[str, Array], taus: Any) -> Array:
        similarity = [pool @ rows.T for rows in queries.values()]
        above = [one > tau for one, tau in zip(similarity, taus.values(), strict=True)]
        everything = np.concatenate(similarity, axis=1).T
        order = np.argsort(-everything, axis=1, kind="stable")[:, :2]
        near = np.stack([one.any(axis=1) for one in above], axis=1)
        arrays = {
            "near": near,
            "best_similarity": np.stack([s.max(axis=1) for s in similarity], axis=1, dtype="f4",
                                        casting="same_kind"),
            "best_query": np.stack([s.argmax(axis=1) for s in similarity], axis=1).astype("i4"),
            "above_threshold": np.concatenate([one.sum(axis=0) for one in above]),
            "neighbour_similarity": np.take_along_axis(everything, order, axis=1),
            "neighbour_row": order,
        }  # fmt: skip
        offsets = np.cumsum([0, *map(len, queries.values())]).tolist()
        used = {"backend": "cpu-float32", "rechecked": 5, "epsilon": 3.9e-5}
        attributes = {"tests": list(queries), "offsets": offsets, **used}
        path = self.layout.similarity(index)
        artifacts.write(path, artifacts.SIMILARITY, "d", arrays, attributes)
        return near

    def _masks(self, near: list[Array]) -> None:
        total = sum(map(len, near))
        for name in self.splits:
            split = self.experiment.splits[name]
            while split.random and split.random.like:
                split = self.experiment.splits[split.random.like]
            columns = [list(self.tests).index(test) for test in split.pruned_for]
            keep = np.concatenate([~one[:, columns].any(axis=1) for one in near])
            if size := (split.cut or split.random):  # any so many do here
                keep[size.keep :] = False
            rows = np.array([len(one) for one in near], dtype=np.int64)
            arrays: dict[str, Array] = {"keep": np.packbits(keep), "rows": rows}
            attributes = {"split": name, "definition": f"the definition of {name}",
                          "rows_total": total, "kept": int(keep.sum()), "plus_reference": None}  # fmt: skip
            artifacts.write(self.layout.mask(name), artifacts.MASK, "d", arrays, attributes)

    def _evaluation(self, split: str, seed: int, test: str) -> None:
        """Predictions; the first image of the set could not be read."""
        found = artifacts.read(self.layout.embeddings(test, 0), artifacts.EMBEDDINGS)
        keys, labels = found.text("key"), np.array(found["label"])[1:]
        hit = self.random.random(len(labels)) < self.chance.get(split, 0.7)
        guess = np.where(hit, labels, (labels + 1) % 3)
        order = self.random.permutation(len(labels))
        by_class = [float(hit[labels == label].mean()) for label in range(3)]
        arrays = {
            "key": encode_text([keys[1:][i] for i in order]),
            "label": labels[order],
            "logits": np.eye(3, dtype=np.float32)[guess[order]],
            "class_accuracy": np.array(by_class),
            "skipped_key": encode_text(keys[:1]),
            "skipped_reason": encode_text(["file is missing"]),
        }
        attributes = {"split": split, "seed": seed, "test": test, "classes": CLASSES,
                      "model": "ViT-B-32", "pretrained": f"{split}/seed-{seed}",
                      "templates": "openai", "accuracy": float(hit.mean()), "top5": 1.0,
                      "mean_per_class": float(np.mean(by_class)), "read": len(keys),
                      "ignored_folders": 0}  # fmt: skip
        path = self.layout.evaluation(split, seed, test)
        artifacts.write(path, artifacts.EVALUATION, "d", arrays, attributes)


def picture(style: str, label: int, random: np.random.Generator) -> bytes:
    """A JPEG of a polygon; sketches are lines on white."""
    hue = colorsys.hsv_to_rgb(float(random.random()), 0.6, 0.9)
    colour = tuple(int(255 * part) for part in hue)
    image = Image.new("RGB", (200, 120), "white" if style == "sketch" else colour)
    box = (60 + int(random.integers(-20, 20)), 60, 40)
    fill = None if style == "sketch" else "#222222"
    ImageDraw.Draw(image).regular_polygon(box, label + 3, outline="black", fill=fill, width=3)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", comment=b"<script>comment</script>")
    return buffer.getvalue()


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """The run that most tests look at; none changes it."""
    return Study(tmp_path_factory.mktemp("study")).make()


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Study]:
    """Fabricate another run."""
    return lambda **changes: Study(tmp_path, **changes).make()


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """No figures, which take most of a page's time, where a test looks at none."""
    monkeypatch.setattr("pipeline.report.page.draw_all", lambda *_: defaultdict(list))
