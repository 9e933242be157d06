"""Recall of retrieval: is an image's caption among the first, is a caption's image?

Letters in shapes: I images, C captions, U different captions, D dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

RANKS = (1, 5)
_NUMBERS_AT_ONCE = 2**25


def captions_in(text: str) -> list[str]:
    """The captions of an image: the lines of its file that are not blank."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def recalls(
    image_ID: Array, text_UD: Array, caption_C: Array, image_C: Array
) -> dict[str, dict[str, float]]:
    """Shares of images and of captions that find a match among the first 1 and 5.

    An image finds its match if any of its captions is among the first; a caption if its image is.
    Of equally similar ones the one that comes first in the data is ranked first.

    Args:
        image_ID: features of length one.
        text_UD: features of length one of each different caption.
        caption_C: (C,) which of these each caption is.
        image_C: (C,) which image each caption belongs to; every image has one.

    Returns:
        `image_to_text` and `text_to_image`: rank as text -> recall from 0 to 1.
    """
    first_I = _caption_ranks(image_ID, text_UD, caption_C, image_C)
    rank_C = _image_ranks(image_ID, text_UD, caption_C, image_C)
    return {
        "image_to_text": {str(rank): float((first_I < rank).mean()) for rank in RANKS},
        "text_to_image": {str(rank): float((rank_C < rank).mean()) for rank in RANKS},
    }


def _caption_ranks(image_ID: Array, text_UD: Array, caption_C: Array, image_C: Array) -> Array:
    """(I,): captions that come before the best of an image's own."""
    best_I = np.full(len(image_ID), len(caption_C))
    order_C = np.argsort(image_C, kind="stable")
    starts = np.searchsorted(image_C[order_C], np.arange(len(image_ID) + 1))
    for images in _blocks(len(image_ID), len(caption_C)):
        similarity_BC = (_double(image_ID[images]) @ _double(text_UD).T)[:, caption_C]
        for place, image in enumerate(range(images.start, images.stop)):
            for own in order_C[starts[image] : starts[image + 1]].tolist():
                before = _before(similarity_BC[place], own)
                best_I[image] = min(best_I[image], before)
    return best_I


def _image_ranks(image_ID: Array, text_UD: Array, caption_C: Array, image_C: Array) -> Array:
    """(C,): images that come before a caption's own."""
    rank_C = np.empty(len(caption_C), dtype=np.int64)
    for captions in _blocks(len(caption_C), len(image_ID)):
        similarity_BI = _double(text_UD[caption_C[captions]]) @ _double(image_ID).T
        for place, own in enumerate(image_C[captions].tolist()):
            rank_C[captions.start + place] = _before(similarity_BI[place], own)
    return rank_C


def _before(similarity: Array, own: int) -> int:
    """How many are more similar than `own`, or as similar and before it."""
    more = int((similarity > similarity[own]).sum())
    return more + int((similarity[:own] == similarity[own]).sum())


def _double(rows: Array) -> Array:
    return np.asarray(rows, dtype=np.float64)


def _blocks(rows: int, columns: int) -> Iterator[slice]:
    step = max(1, _NUMBERS_AT_ONCE // max(1, columns))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def distinct(texts: Sequence[str]) -> tuple[list[str], Array]:
    """Different texts by first appearance, and which of them each text is."""
    places = {text: place for place, text in enumerate(dict.fromkeys(texts))}
    return list(places), np.array([places[text] for text in texts], dtype=np.int64)
