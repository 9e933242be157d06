"""The means of drawing: colours, poses, coverage, textures, backgrounds, lines.

Images are (SIZE, SIZE, 3) float32 from 0 to 1 until `develop` makes them uint8.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from pipeline.data.world.shapes import DARK, LIGHT, MAIN, SHAPES, Polygon

SIZE = 48
"""Width and height of an image, in pixels."""
_FINE = 4
"""Shapes are drawn this many times larger, then averaged."""

HUES = np.array([0.0, 0.08, 0.15, 0.33, 0.48, 0.60, 0.72, 0.87])
HUE_NAMES = ("red", "orange", "yellow", "green", "teal", "blue", "violet", "pink")
TEXTURES = ("plain", "striped", "dotted")

Rng = np.random.Generator
Pixels = np.ndarray
Colour = tuple[int, int, int]


def hsv(hue: float, saturation: float, value: float) -> np.ndarray:
    """Convert a colour (hue from 0 to below 1) to (3,) float32 red, green, blue."""
    sector, part = int(hue * 6), hue * 6 - int(hue * 6)
    low = value * (1 - saturation)
    falling = value * (1 - part * saturation)
    rising = value * (1 - (1 - part) * saturation)
    return np.array(
        [
            (value, rising, low),
            (falling, value, low),
            (low, value, rising),
            (low, falling, value),
            (rising, low, value),
            (value, low, falling),
        ][sector % 6],
        dtype=np.float32,
    )


def to_colour(values: Sequence[float] | np.ndarray) -> Colour:
    """Convert red, green, blue from 0 to 1 to whole numbers up to 255."""
    red, green, blue = (int(value) for value in np.asarray(values) * 255)
    return red, green, blue


def nearest_hue_name(hue: float) -> str:
    """The name of the habitual hue nearest on the colour circle."""
    return HUE_NAMES[int(np.argmin(np.abs((HUES - hue + 0.5) % 1 - 0.5)))]


@dataclass(frozen=True)
class Pose:
    """Where and how an object is placed: corners @ turn.T + shift, in units of half an image."""

    turn: np.ndarray
    shift: np.ndarray

    @classmethod
    def draw(cls, rng: Rng, degrees: float, scale: tuple[float, float], shift: float) -> Pose:
        """Draw a rotation up to `degrees` either way, a scale, a little squeeze, a mirroring."""
        angle = math.radians(rng.uniform(-degrees, degrees))
        size = rng.uniform(*scale)
        wide, high = (size * (1 + rng.uniform(-0.08, 0.08)) for _ in range(2))
        cos, sin = math.cos(angle), math.sin(angle)
        turn = np.array([[cos * wide, -sin * high], [sin * wide, cos * high]])
        if rng.random() < 0.5:
            turn = turn @ np.diag([-1, 1])
        return cls(turn, rng.uniform(-shift, shift, 2))

    def apply(self, polygon: Polygon) -> list[float]:
        """Pixel coordinates x, y, x, y, ... on the fine canvas."""
        corners = polygon @ self.turn.T + self.shift
        placed: list[float] = ((corners * 0.5 + 0.5) * SIZE * _FINE).ravel().tolist()
        return placed


def coverage(name: str, pose: Pose) -> list[np.ndarray]:
    """How much of each pixel a shape's MAIN, LIGHT and DARK tones cover, each (SIZE, SIZE)."""
    canvas = Image.new("L", (SIZE * _FINE, SIZE * _FINE), 0)
    pen = ImageDraw.Draw(canvas)
    for polygon, tone in SHAPES[name]:
        pen.polygon(pose.apply(polygon), fill=tone)
    tones = np.asarray(canvas).reshape(SIZE, _FINE, SIZE, _FINE)
    return [(tones == tone).mean((1, 3), dtype=np.float32) for tone in (MAIN, LIGHT, DARK)]


def line_drawing(
    rng: Rng,
    name: str,
    paper: Colour,
    ink: Colour | range,
    width: tuple[float, float] = (0.024, 0.042),
    fills: Sequence[Colour] | None = None,
) -> Pixels:
    """Draw the wobbly outlines of a shape.

    Args:
        rng: generator.
        name: of the shape.
        paper: background colour.
        ink: colour of the lines, or the range to draw a grey from.
        width: range of the line width, as a fraction of the image.
        fills: colours by tone; if None, outlines only, with a dark part blackened now and then.
    """
    pose = Pose.draw(rng, 7, (0.82, 0.96), 0.04)
    canvas = Image.new("RGB", (SIZE * _FINE, SIZE * _FINE), paper)
    pen = ImageDraw.Draw(canvas)
    line = max(2, round(rng.uniform(*width) * SIZE * _FINE))
    colour = (int(rng.integers(ink.start, ink.stop)),) * 3 if isinstance(ink, range) else ink
    for polygon, tone in SHAPES[name]:
        points = pose.apply(_wobbly(rng, polygon))
        if fills is not None:
            fill = fills[tone]
        else:
            fill = colour if tone == DARK and rng.random() < 0.35 else paper
        pen.polygon(points, fill=fill)
        pen.line(points + points[:4], fill=colour, width=line, joint="curve")
    return np.asarray(canvas.reduce(_FINE), dtype=np.float32) / 255


def _wobbly(rng: Rng, polygon: Polygon) -> Polygon:
    """A polygon by an unsteady hand, which also bends long straight lines."""
    if len(polygon) < 12:
        middles = (polygon + np.roll(polygon, -1, axis=0)) / 2
        polygon = np.stack([polygon, middles], axis=1).reshape(-1, 2)
    return polygon + rng.normal(0, 0.025, polygon.shape)


def blotches(rng: Rng, count: int) -> Pixels:
    """Smooth random colours, `count` blotches a side."""
    coarse = (rng.random((count, count, 3)) * 255).astype(np.uint8)
    smooth = Image.fromarray(coarse).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    return np.asarray(smooth, dtype=np.float32) / 255


def texture(kind: str, rng: Rng) -> np.ndarray:
    """Brightness of an object's surface, (SIZE, SIZE) float32; `kind` is one of TEXTURES."""
    if kind == "plain":
        return np.ones((SIZE, SIZE), dtype=np.float32)
    y, x = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) / SIZE
    waves = rng.uniform(5.0, 7.0) * 6.28
    phase = rng.uniform(0, 6.28, 2)
    if kind == "striped":
        angle = rng.uniform(0, math.pi)
        height = np.sin((x * math.cos(angle) + y * math.sin(angle)) * waves + phase[0])
    else:
        height = np.sin(x * waves + phase[0]) * np.sin(y * waves + phase[1]) * 1.6 - 0.2
    return np.where(height > 0, 1.0, 0.42).astype(np.float32)


def background(rng: Rng, hue: float, clutter: int) -> Pixels:
    """A blotchy ground of about that hue, with up to `clutter` random things on it."""
    hue = (hue + rng.normal(0, 0.03)) % 1
    base = hsv(hue, rng.uniform(0.25, 0.6), rng.uniform(0.45, 0.9))
    ground = base + (blotches(rng, int(rng.integers(3, 7))) - 0.5) * rng.uniform(0.25, 0.6)
    canvas = Image.fromarray((np.clip(ground, 0, 1) * 255).astype(np.uint8))
    pen = ImageDraw.Draw(canvas)
    for _ in range(rng.integers(0, clutter + 1)):
        _add_thing(rng, pen)
    return np.asarray(canvas, dtype=np.float32) / 255


def _add_thing(rng: Rng, pen: ImageDraw.ImageDraw) -> None:
    red, green, blue = (int(value) for value in rng.integers(30, 226, 3))
    x, y = rng.uniform(-0.1, 1.1, 2) * SIZE
    radius = rng.uniform(0.05, 0.18) * SIZE
    kind = rng.integers(3)
    if kind == 0:
        box = (x - radius, y - radius, x + radius, y + radius)
        pen.ellipse(box, fill=(red, green, blue))
    elif kind == 1:
        box = (x - radius, y - radius * 0.6, x + radius, y + radius * 0.6)
        pen.rectangle(box, fill=(red, green, blue))
    else:
        end = rng.uniform(0, 1, 2) * SIZE
        pen.line((x, y, *end), fill=(red, green, blue), width=max(1, SIZE // 32))


def develop(
    rng: Rng,
    image: Pixels,
    noise: float = 0.03,
    contrast: tuple[float, float] = (0.85, 1.1),
    brightness: float = 0.06,
) -> np.ndarray:
    """Finish an image: contrast, brightness up or down, grain; (SIZE, SIZE, 3) uint8."""
    image = (image - 0.5) * rng.uniform(*contrast) + 0.5 + rng.uniform(-brightness, brightness)
    if noise:
        image = image + rng.normal(0, noise, image.shape)
    return (np.clip(image, 0, 1) * 255).astype(np.uint8)
