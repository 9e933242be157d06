"""The reference's images as training samples: their bytes, and a caption from the class's name."""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from functools import cached_property
from pathlib import Path
from typing import Any

import xxhash

from pipeline import artifacts
from pipeline.data.tars import CAPTION_SUFFIX, IMAGE_SUFFIXES
from pipeline.experiment.sections import ReferenceSet
from pipeline.layout import REFERENCE, Layout

KEYS = "simgap-reference-"
"""What the key of each such sample begins with, and no key of the pool may."""
_GOLDEN = 0.6180339887498949


def name_of(template: str) -> str:
    """A name for the tars of the reference with this template; never that of a split."""
    return f"_reference-{xxhash.xxh3_64_hexdigest(template.encode())[:8]}"


def refuse_such_keys(keys: Any, place: str) -> None:
    """Make sure that no key of the pool is taken for one of the reference.

    Args:
        keys: (n,) bytes.
        place: named in the error.

    Raises:
        ValueError: one begins with KEYS.
    """
    import numpy as np

    if len(keys) and (taken := np.char.startswith(keys, KEYS.encode())).any():
        first = keys[taken.argmax()].decode("utf-8", "replace")
        raise ValueError(
            f"{place}: the key {first!r} begins with {KEYS!r}, which marks the reference's samples "
            "in splits with plus_reference"
        )


class ReferenceSamples:
    """The embedded images of the reference, in an order that mixes its classes."""

    def __init__(self, layout: Layout, reference: ReferenceSet, files: int, template: str) -> None:
        paths = [layout.embeddings(REFERENCE, index) for index in range(files)]
        self._files = [artifacts.read(path, artifacts.EMBEDDINGS) for path in paths]
        self._starts = [0]
        for file in self._files:
            self._starts.append(self._starts[-1] + len(file["key"]))
        self._root: Path = reference.images
        self._template = template

    def __len__(self) -> int:
        return self._starts[-1]

    @cached_property
    def _step(self) -> int:
        """Coprime with the number of images, near the golden section of it.

        Rows 0, step, 2 step, ... are each row once, and any run of them is spread evenly.
        """
        step = max(1, round(len(self) * _GOLDEN))
        while math.gcd(step, len(self)) > 1:
            step += 1
        return step

    def members(self, position: int) -> list[tuple[str, bytes]]:
        """Names and contents of the files of one sample.

        Args:
            position: 0 <= position < len(self).

        Raises:
            ValueError: open_clip_train does not read such images.
            OSError: the image is gone, or can't be read.
        """
        row = position * self._step % len(self)
        number = bisect_right(self._starts, row) - 1
        file, row = self._files[number], row - self._starts[number]
        (image,) = file.text("key", slice(row, row + 1))
        suffix = image.rpartition(".")[2].lower()
        if suffix not in IMAGE_SUFFIXES:
            raise ValueError(
                f"{self._root / image}: plus_reference can't use it: open_clip_train reads "
                f"{', '.join(IMAGE_SUFFIXES)}"
            )
        label, classes = int(file["label"][row]), file.attributes["classes"]
        key = f"{KEYS}{number:05d}-{row:07d}"
        caption = self._template.format(classes["names"][label])
        about = {"key": key, "caption": caption, "reference": image, "class": classes["ids"][label]}
        return [
            (f"{key}.{suffix}", (self._root / image).read_bytes()),
            (f"{key}.{CAPTION_SUFFIX}", caption.encode()),
            (f"{key}.json", json.dumps(about, ensure_ascii=False).encode()),
        ]
