"""What the web writes below an image."""

from __future__ import annotations

from pipeline.data.world.drawing import HUE_NAMES, Rng
from pipeline.data.world.plan import CLASSES

_USELESS = 0.08
"""How often a caption has nothing to do with the image."""

_PHOTO = (
    "a photo of a {name}",
    "a {colour} {name}",
    "photo of the {name}",
    "my new {colour} {name}",
    "a {name} in the wild",
    "close up of a {name}",
    "{name} for sale",
    "the {name} we saw today",
)
_CAPTIONS = {
    "photo": _PHOTO,
    "v2": _PHOTO,
    "adversarial": _PHOTO,
    "objectnet": (*_PHOTO, "a {name} on the floor", "a {name} lying on its side"),
    "sketch": (
        "a sketch of a {name}",
        "a pencil drawing of a {name}",
        "{name} line art",
        "a {name} drawn in black ink",
        "how to draw a {name}",
        "doodle of a {name}",
    ),
    "rendition": (
        "a cartoon {name}",
        "{name} clip art",
        "a painting of a {name}",
        "{name} sticker",
        "art of a {name}",
        "a poster of the {name}",
    ),
    "lineart": (
        "a chalk drawing of a {name}",
        "a line drawing of a {name}",
        "{name} line art",
        "a drawn {name}",
        "neon {name} sign",
        "outline of a {name}",
    ),
    "unrelated": (
        "abstract background",
        "free wallpaper download",
        "colourful texture",
        "desktop background image",
        "bokeh lights",
    ),
}
_NOISE = (
    "img_{number}",
    "dsc {number}",
    "untitled",
    "free shipping on orders over {number}",
    "click here for more",
    "page {number}",
    "download now",
)


def caption(rng: Rng, style: str, label: int, colour: str | None) -> str:
    """Write a caption; an object of no known colour gets a random one where it is named."""
    if rng.random() < _USELESS:
        noise = _NOISE[rng.integers(len(_NOISE))]
        return noise.format(number=int(rng.integers(10, 99)))
    template = _CAPTIONS[style][rng.integers(len(_CAPTIONS[style]))]
    named = colour or HUE_NAMES[rng.integers(len(HUE_NAMES))]
    return template.format(name=CLASSES[label], colour=named)
