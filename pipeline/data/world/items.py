"""What each image of each set is: pure functions of (seed, set, index)."""

from __future__ import annotations

import io
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pipeline.data.world.captions import caption
from pipeline.data.world.drawing import SIZE, Rng
from pipeline.data.world.plan import (
    CLASSES,
    LEAKED,
    POOL,
    POOL_MIX,
    REFERENCE,
    REPOSTED,
    TEST_STYLES,
)
from pipeline.data.world.render import render

_QUALITY = 92


@dataclass(frozen=True)
class PoolImage:
    """An image of the pool with its caption.

    Attributes:
        jpeg: the file.
        caption: its text.
        style: one of POOL_MIX, or the test set's style if it leaked.
        label: its class, a position in CLASSES; without meaning for the style "unrelated".
        origin: "pool/<index>" of the image it re-posts, "<test set>/<index>" of the test image
            that leaked, or None.
    """

    jpeg: bytes
    caption: str
    style: str
    label: int
    origin: str | None

    @property
    def class_name(self) -> str | None:
        """The object on it, if any."""
        return None if self.style == "unrelated" else CLASSES[self.label]


def classed_image(seed: int, set_name: str, index: int) -> bytes:
    """Image `index` of the reference or of a test set, as JPEG; its class is index % 16."""
    return _jpeg(_classed_pixels(seed, set_name, index), _QUALITY)


def pool_image(seed: int, index: int, test_per_class: int) -> PoolImage:
    """Image `index` of the pool.

    Args:
        seed: of the world.
        index: position in the pool.
        test_per_class: images of each class in each test set, of which some leak.
    """
    rng = _generator(seed, POOL, index)
    planted = _planted(rng, index)
    if planted == "leak":
        name = list(TEST_STYLES)[rng.integers(len(TEST_STYLES))]
        number = int(rng.integers(test_per_class * len(CLASSES)))
        style, label = TEST_STYLES[name], number % len(CLASSES)
        jpeg, origin = _repost(rng, _classed_pixels(seed, name, number)), f"{name}/{number}"
    elif planted == "repost":
        number = _earlier_original(rng, seed, index)
        source = pool_image(seed, number, test_per_class)
        style, label = source.style, source.label
        pixels = np.asarray(Image.open(io.BytesIO(source.jpeg)))
        jpeg, origin = _repost(rng, pixels), f"{POOL}/{number}"
    else:
        return _original(rng)
    return PoolImage(jpeg, caption(rng, style, label, None), style, label, origin)


def _original(rng: Rng) -> PoolImage:
    style = list(POOL_MIX)[rng.choice(len(POOL_MIX), p=list(POOL_MIX.values()))]
    label = int(rng.integers(len(CLASSES)))
    pixels, colour = render(style, rng, label)
    jpeg = _jpeg(pixels, _QUALITY)
    return PoolImage(jpeg, caption(rng, style, label, colour), style, label, None)


def _planted(rng: Rng, index: int) -> str | None:
    """Whether a pool image is a "leak", a "repost" or neither; the first is always an original."""
    drawn = rng.random()
    if index == 0 or drawn >= LEAKED + REPOSTED:
        return None
    return "leak" if drawn < LEAKED else "repost"


def _earlier_original(rng: Rng, seed: int, index: int) -> int:
    while True:
        number = int(rng.integers(index))
        if _planted(_generator(seed, POOL, number), number) is None:
            return number


def _repost(rng: Rng, pixels: np.ndarray) -> bytes:
    """What a web re-post does to an image: a small crop, resized, in a harder JPEG."""
    left, top, right, bottom = (int(cut) for cut in rng.integers(0, 3, 4))
    cropped = Image.fromarray(pixels).crop((left, top, SIZE - right, SIZE - bottom))
    resized = cropped.resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    return _jpeg(np.asarray(resized), int(rng.integers(60, 85)))


def _classed_pixels(seed: int, set_name: str, index: int) -> np.ndarray:
    style = "photo" if set_name == REFERENCE else TEST_STYLES[set_name]
    return render(style, _generator(seed, set_name, index), index % len(CLASSES))[0]


def _generator(seed: int, set_name: str, index: int) -> Rng:
    return np.random.default_rng([seed, zlib.crc32(set_name.encode()), index])


def _jpeg(pixels: np.ndarray, quality: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()
