"""Test images beside their nearest neighbours, as small pictures inside the page.

Pictures and captions of the pool come from the web. A picture is decoded and encoded again, never
passed on; a caption is text, which the page escapes.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from pipeline import artifacts
from pipeline.artifacts import Artifact
from pipeline.data.tars import Sample, index_shard, read_caption, read_span
from pipeline.experiment.sections import Experiment
from pipeline.experiment.sources import tars_of
from pipeline.layout import POOL, REFERENCE, Layout
from pipeline.report.similarity import Queries, Searched, column_of
from pipeline.report.statistics import spread_over

THUMBNAIL = 160
"""Pixels of the longer side, at most."""
_CAPTION = 240


@dataclass(frozen=True)
class Picture:
    """An image of a set, small."""

    key: str
    says: str
    """Its class, or its caption from the web."""
    source: str | None
    """A data URI; None if it can't be shown."""
    fault: str = ""
    """Why it can't be shown."""
    width: int = 0
    height: int = 0


@dataclass(frozen=True)
class Card:
    """A test image and its nearest neighbours; None where there is no neighbour."""

    query: Picture
    reference: Picture | None
    reference_similarity: float
    pool: Picture | None
    pool_similarity: float
    near: bool
    """Whether the pool image is near to the test set, so that pruning for it removes the image."""


def build_gallery(experiment: Experiment, run: Layout, searched: Searched) -> dict[str, list[Card]]:
    """For each test set, some images at even quantiles of their similarity to the pool.

    Files of embeddings and tars are opened only where a card needs them.
    """
    count = experiment.report.gallery
    shelf = _Shelf(run, searched.reference_files, experiment)
    return {
        name: [_card(shelf, queries, row) for row in spread_over(queries.pool.similarity, count)]
        for name, queries in searched.queries.items()
    }


class _Shelf:
    """Opens what cards need; each embeddings file once."""

    def __init__(
        self, run: Layout, reference_files: Sequence[Path], experiment: Experiment
    ) -> None:
        self.run = run
        self.pool = experiment.pool
        self.folders = {REFERENCE: experiment.reference.images}
        self.folders |= {name: test.images for name, test in experiment.tests.items()}
        self.reference_files = reference_files
        self._opened: dict[Path, Artifact] = {}
        self.samples = lru_cache(maxsize=4)(_samples_of)

    def embeddings(self, path: Path) -> Artifact:
        """An embeddings file."""
        if path not in self._opened:
            self._opened[path] = artifacts.read(path, artifacts.EMBEDDINGS)
        return self._opened[path]

    def is_near(self, file: int, row: int, test: str) -> bool:
        """Whether a pool image is near to a test set."""
        found = artifacts.read(self.run.similarity(file), artifacts.SIMILARITY)
        return bool(found["near"][row, column_of(found, test)])


def _samples_of(tar: Path) -> dict[str, Sample]:
    return {sample.key: sample for sample in index_shard(tar).samples}


def _card(shelf: _Shelf, queries: Queries, row: int) -> Card:
    reference, pool = queries.reference, queries.pool
    in_reference, in_pool = int(reference.file[row]), int(pool.file[row])
    pool_row = int(pool.row[row])
    return Card(
        _labelled(shelf.folders[queries.name], queries.embeddings, row),
        None
        if in_reference < 0
        else _labelled(
            shelf.folders[REFERENCE],
            shelf.embeddings(shelf.reference_files[in_reference]),
            int(reference.row[row]),
        ),
        float(reference.similarity[row]),
        None if in_pool < 0 else _captioned(shelf, in_pool, pool_row),
        float(pool.similarity[row]),
        in_pool >= 0 and shelf.is_near(in_pool, pool_row, queries.name),
    )


def _labelled(folder: Path, found: Artifact, row: int) -> Picture:
    """An image of a test set or of the reference."""
    (key,) = found.text("key", slice(row, row + 1))
    says = found.attributes["classes"]["names"][int(found["label"][row])]
    return _picture(key, says, (folder / key).read_bytes)


def _captioned(shelf: _Shelf, file: int, row: int) -> Picture:
    """An image of the pool."""
    found = shelf.embeddings(shelf.run.embeddings(POOL, file))
    (key,) = found.text("key", slice(row, row + 1))
    try:
        tars = tars_of(shelf.pool, file, found.attributes["sources"])
        tar = tars[int(found["shard"][row])]
    except (IndexError, FileNotFoundError):
        return Picture(key, "", None, "its tar can't be read: the pool has fewer tars by now")
    try:
        sample = shelf.samples(tar)[key]
        caption = _one_line(read_caption(tar, sample))
    except (OSError, ValueError) as error:
        return Picture(key, "", None, f"{tar.name} can't be read: {error}")
    except KeyError:
        return Picture(key, "", None, f"{tar.name} no longer has this sample")
    return _picture(key, caption, lambda: _read(tar, sample))


def _read(tar: Path, sample: Sample) -> bytes:
    descriptor = os.open(tar, os.O_RDONLY)
    try:
        return read_span(descriptor, sample.image)
    finally:
        os.close(descriptor)


def _one_line(caption: str) -> str:
    """Without line breaks and control characters, and not endless."""
    line = " ".join("".join(c if c.isprintable() else " " for c in caption).split())
    return line if len(line) <= _CAPTION else line[: _CAPTION - 1].rstrip() + "…"


def _picture(key: str, says: str, read: Callable[[], bytes]) -> Picture:
    try:
        source, width, height = _thumbnail(read())
    except MemoryError:
        raise
    # The image was read when it was embedded: it is gone or has changed since, and PIL's decoders
    # raise whatever a damaged file makes them stumble on. The page is worth more than one picture.
    except Exception as error:
        return Picture(key, says, None, f"can't be read: {error}")
    return Picture(key, says, source, "", width, height)


def _thumbnail(data: bytes) -> tuple[str, int, int]:
    """A data URI of an image, decoded, made small and encoded again; its width and height."""
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        image.draft("RGB", (2 * THUMBNAIL, 2 * THUMBNAIL))
        small = image.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    clean = Image.new("RGB", small.size)  # without the original's metadata
    clean.paste(small)
    buffer = io.BytesIO()
    clean.save(buffer, "JPEG", quality=85, optimize=True)
    encoded = base64.b64encode(buffer.getvalue()).decode()
    return f"data:image/jpeg;base64,{encoded}", *small.size
