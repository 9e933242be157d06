"""The styles: what the same object looks like in each."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pipeline.data.world.drawing import (
    HUES,
    SIZE,
    TEXTURES,
    Colour,
    Pixels,
    Pose,
    Rng,
    background,
    blotches,
    coverage,
    develop,
    hsv,
    line_drawing,
    nearest_hue_name,
    texture,
    to_colour,
)
from pipeline.data.world.plan import CLASSES


@dataclass(frozen=True, kw_only=True)
class _Camera:
    """How photographs of a style are taken.

    Attributes:
        degrees: largest rotation.
        scale: range of the object's size.
        shift: largest displacement, in half images.
        habit: how often the object has its class's habitual colour and texture.
        habitat: how often it stands before its class's habitual background.
        deceive: whether habits are those of another class.
        clutter: largest number of other things.
        contrast: range.
        studio: how often the ground is plain and light.
        cover: how opaque the object is.
        hide: largest number of patches in front of it.
    """

    degrees: float = 7
    scale: tuple[float, float] = (0.82, 0.96)
    shift: float = 0.04
    habit: float = 0.45
    habitat: float = 0.5
    deceive: bool = False
    clutter: int = 3
    contrast: tuple[float, float] = (0.85, 1.1)
    studio: float = 0.15
    cover: float = 1.0
    hide: int = 0


_CAMERAS = {
    "photo": _Camera(),
    "v2": _Camera(
        degrees=14,
        scale=(0.72, 0.92),
        shift=0.09,
        habit=0.35,
        habitat=0.35,
        clutter=4,
        contrast=(0.7, 1.1),
    ),
    "adversarial": _Camera(
        degrees=16,
        scale=(0.66, 0.92),
        shift=0.11,
        habit=1,
        habitat=0.8,
        deceive=True,
        clutter=5,
        contrast=(0.5, 0.9),
        studio=0,
        cover=0.85,
        hide=1,
    ),
    "objectnet": _Camera(
        degrees=60, scale=(0.66, 0.92), shift=0.11, habit=0.3, habitat=0, clutter=5, studio=0
    ),
}


def render(style: str, rng: Rng, label: int) -> tuple[np.ndarray, str | None]:
    """Draw an object.

    Args:
        style: one of photo, v2, adversarial, objectnet, sketch, lineart, rendition; or unrelated,
            which shows no object.
        rng: generator; it decides everything else.
        label: class, a position in CLASSES.

    Returns:
        (SIZE, SIZE, 3) uint8, and the name of the object's colour for photographs.
    """
    if style in _CAMERAS:
        return _photo(rng, label, _CAMERAS[style])
    if style == "unrelated":
        return develop(rng, background(rng, rng.random(), clutter=6)), None
    if style == "sketch":
        return _sketch(rng, CLASSES[label]), None
    draw = {"lineart": _LINEART, "rendition": _RENDITIONS}[style]
    return draw[rng.integers(len(draw))](rng, CLASSES[label]), None


def _photo(rng: Rng, label: int, camera: _Camera) -> tuple[np.ndarray, str]:
    hidden = int(rng.integers(0, camera.hide + 1)) if camera.hide else 0
    like = (label + int(rng.integers(1, len(CLASSES)))) % len(CLASSES) if camera.deceive else label
    habit = rng.random() < camera.habit
    hue = float(HUES[like * 5 % 8]) if habit else rng.random()
    surface = TEXTURES[like // 8 % 3 if habit else int(rng.integers(3))]
    image = _ground(rng, like, camera)
    pose = Pose.draw(rng, camera.degrees, camera.scale, camera.shift)
    image = _with_object(rng, image, coverage(CLASSES[label], pose), hue, surface, camera.cover)
    for _ in range(hidden):
        _hide(rng, image)
    return develop(rng, image, contrast=camera.contrast), nearest_hue_name(hue)


def _ground(rng: Rng, like: int, camera: _Camera) -> Pixels:
    hue = float(HUES[(like * 7 + 3) % 8]) if rng.random() < camera.habitat else rng.random()
    if rng.random() < camera.studio:
        return np.full((SIZE, SIZE, 3), rng.uniform(0.85, 1.0), dtype=np.float32)
    return background(rng, hue, camera.clutter)


def _with_object(
    rng: Rng, image: Pixels, tones: list[np.ndarray], hue: float, surface: str, cover: float
) -> Pixels:
    """Lay the object's three tones over the image, lit from a random side."""
    hue = (hue + rng.normal(0, 0.015)) % 1
    colours = [
        hsv(hue, rng.uniform(0.65, 0.95), rng.uniform(0.7, 1)),
        hsv(hue, 0.3, rng.uniform(0.85, 1)),
        hsv(hue, 0.7, rng.uniform(0.2, 0.4)),
    ]
    pattern = texture(surface, rng)[..., None]
    angle = rng.uniform(0, 6.28)
    y, x = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j].astype(np.float32)
    light = (1 + 0.28 * (x * math.cos(angle) + y * math.sin(angle)))[..., None]
    for number, (tone, colour) in enumerate(zip(tones, colours, strict=True)):
        opacity = tone[..., None] * cover
        shade = colour * (pattern if number == 0 else 1) * light
        image = image * (1 - opacity) + shade * opacity
    return image


def _hide(rng: Rng, image: Pixels) -> None:
    width, height = rng.uniform(0.2, 0.45, 2) * SIZE
    left, top = rng.uniform(0, SIZE - width), rng.uniform(0, SIZE - height)
    image[int(top) : int(top + height), int(left) : int(left + width)] = rng.random(3)


def _sketch(rng: Rng, name: str) -> np.ndarray:
    """Pencil on white paper, now and then with shading."""
    white = int(rng.integers(236, 256))
    image = line_drawing(rng, name, (white,) * 3, range(0, 70))
    if rng.random() < 0.3:
        image = image - rng.uniform(0.02, 0.1) * blotches(rng, 5)[..., :1]
    return develop(rng, image, noise=0.015, contrast=(0.9, 1.05), brightness=0.02)


def _chalk(rng: Rng, name: str) -> np.ndarray:
    dark = rng.uniform(0.08, 0.25)
    tint = np.array([0.75, 1, 0.85] if rng.random() < 0.5 else [1, 1, 1])
    chalk = to_colour(hsv(rng.random(), rng.uniform(0, 0.3), rng.uniform(0.8, 1)))
    image = line_drawing(rng, name, to_colour(dark * tint), chalk, (0.025, 0.045))
    return develop(rng, image, noise=0.05)


def _blueprint(rng: Rng, name: str) -> np.ndarray:
    paper = hsv(rng.uniform(0.55, 0.65), rng.uniform(0.6, 0.9), rng.uniform(0.4, 0.75))
    image = line_drawing(rng, name, to_colour(paper), (235, 240, 255), (0.018, 0.03))
    step = int(rng.integers(6, 10))
    image[::step] += 0.1
    image[:, ::step] += 0.1
    return develop(rng, image, noise=0.015)


def _marker(rng: Rng, name: str) -> np.ndarray:
    paper = to_colour(hsv(rng.random(), rng.uniform(0.05, 0.25), rng.uniform(0.85, 1)))
    ink = to_colour(hsv(rng.random(), rng.uniform(0.7, 1), rng.uniform(0.4, 0.9)))
    return develop(rng, line_drawing(rng, name, paper, ink, (0.035, 0.06)), noise=0.01)


def _neon(rng: Rng, name: str) -> np.ndarray:
    tube = to_colour(hsv(rng.random(), 0.8, 1))
    image = line_drawing(rng, name, (8, 6, 14), tube, (0.03, 0.05))
    small = Image.fromarray((image * 255).astype(np.uint8)).reduce(4)
    glow = np.asarray(small.resize((SIZE, SIZE), Image.Resampling.BICUBIC), dtype=np.float32) / 255
    return develop(rng, image + 0.7 * glow, noise=0.01)


def _paint(rng: Rng, low: float = 0.5, high: float = 1) -> Colour:
    """A bright colour with a saturation of that range."""
    return to_colour(hsv(rng.random(), rng.uniform(low, high), rng.uniform(0.75, 1)))


def _cartoon(rng: Rng, name: str) -> np.ndarray:
    """Flat colours, a thick outline, a pastel ground."""
    paper = _paint(rng, 0.08, 0.35)
    fills = (paper, _paint(rng), _paint(rng, 0.2, 0.5), _paint(rng, 0.6, 1))
    image = line_drawing(rng, name, paper, range(0, 30), (0.035, 0.055), fills)
    return develop(rng, image, noise=0.01)


def _painting(rng: Rng, name: str) -> np.ndarray:
    """Blotchy and posterised, with the figure darker or lighter than its ground."""
    tones = coverage(name, Pose.draw(rng, 7, (0.8, 0.96), 0.04))
    dark = rng.random() < 0.5
    ground, figure = ((0.75, 1), (0.25, 0.55)) if dark else ((0.25, 0.5), (0.75, 1))
    hue = rng.random()
    image = hsv(hue, rng.uniform(0.1, 0.45), rng.uniform(*ground))
    image = image + (blotches(rng, 8) - 0.5) * 0.3
    for tone in tones:
        other = (hue + rng.uniform(0.2, 0.8)) % 1
        colour = hsv(other, rng.uniform(0.4, 0.9), rng.uniform(*figure))
        paint = colour + (blotches(rng, 8) - 0.5) * 0.3
        image = image * (1 - tone[..., None]) + paint * tone[..., None]
    return develop(rng, np.round(np.clip(image, 0, 1) * 5) / 5, noise=0)


def _woodcut(rng: Rng, name: str) -> np.ndarray:
    """Two colours, dark on light or the other way round."""
    dark = np.asarray(_paint(rng, 0.5, 1), dtype=np.float32) / 255 * 0.45
    light = np.asarray(_paint(rng, 0.05, 0.3), dtype=np.float32) / 255
    main, pale, deep = coverage(name, Pose.draw(rng, 7, (0.8, 0.96), 0.04))
    cut = (main + pale * 0.55 + deep * 0.8)[..., None]
    if rng.random() < 0.5:
        dark, light = light, dark
    return develop(rng, light * (1 - cut) + dark * cut, noise=0.015)


_LINEART = (_chalk, _blueprint, _marker, _neon)
_RENDITIONS = (_cartoon, _painting, _woodcut)
