"""The 16 objects, as polygons.

Coordinates run from -1 to 1, x to the right and y down. Later polygons cover earlier ones.
"""

from __future__ import annotations

import math

import numpy as np

HOLE, MAIN, LIGHT, DARK = 0, 1, 2, 3
"""Tones: the background shows through a hole, the others are shades of the object's colour."""

Polygon = np.ndarray
"""(n, 2) float64 corners."""
Shape = tuple[tuple[Polygon, int], ...]
"""Polygons with their tones."""


def _corners(*points: tuple[float, float]) -> Polygon:
    return np.array(points, dtype=np.float64)


def _box(left: float, top: float, right: float, bottom: float) -> Polygon:
    return _corners((left, top), (right, top), (right, bottom), (left, bottom))


def _ellipse(x: float, y: float, width: float, height: float, corners: int = 20) -> Polygon:
    angle = np.linspace(0, 2 * math.pi, corners, endpoint=False)
    return np.stack([x + width * np.cos(angle), y + height * np.sin(angle)], axis=1)


def _dome(x: float, y: float, width: float, height: float, corners: int) -> Polygon:
    """The upper half of an ellipse."""
    angle = np.linspace(math.pi, 2 * math.pi, corners)
    return np.stack([x + width * np.cos(angle), y + height * np.sin(angle)], axis=1)


def _star(points: int, outer: float, inner: float) -> Polygon:
    angle = np.arange(2 * points) * math.pi / points - math.pi / 2
    radius = np.where(np.arange(2 * points) % 2 == 0, outer, inner)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def _heart() -> Polygon:
    t = np.linspace(0, 2 * math.pi, 28, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([x / 17, -y / 16 - 0.08], axis=1)


_ARROW = ((-1, -0.22), (0.15, -0.22), (0.15, -0.65), (1, 0), (0.15, 0.65), (0.15, 0.22), (-1, 0.22))
_BOTTLE = (
    *((-0.15, -1), (0.15, -1), (0.15, -0.45), (0.42, -0.1)),
    *((0.42, 1), (-0.42, 1), (-0.42, -0.1), (-0.15, -0.45)),
)
_CROWN = (
    *((-0.9, 0.7), (-0.95, -0.55), (-0.45, 0.05), (0, -0.8)),
    *((0.45, 0.05), (0.95, -0.55), (0.9, 0.7)),
)

SHAPES: dict[str, Shape] = {
    "star": ((_star(5, 1.0, 0.42), MAIN),),
    "heart": ((_heart(), MAIN),),
    "ring": (
        (_ellipse(0, 0.12, 0.8, 0.8), MAIN),
        (_ellipse(0, 0.12, 0.52, 0.52), HOLE),
        (_corners((-0.25, -0.7), (0.25, -0.7), (0.4, -1), (-0.4, -1)), LIGHT),
    ),
    "arrow": ((_corners(*_ARROW), MAIN),),
    "house": (
        (_box(-0.7, -0.1, 0.7, 0.9), MAIN),
        (_corners((-0.95, -0.1), (0, -0.95), (0.95, -0.1)), DARK),
        (_box(-0.15, 0.35, 0.2, 0.9), LIGHT),
    ),
    "tree": (
        (_box(-0.12, 0.5, 0.12, 1), DARK),
        (_corners((-0.75, 0.55), (0, -0.35), (0.75, 0.55)), MAIN),
        (_corners((-0.55, 0), (0, -1), (0.55, 0)), MAIN),
    ),
    "fish": (
        (_ellipse(-0.15, 0, 0.72, 0.45), MAIN),
        (_corners((0.4, 0), (1, -0.5), (1, 0.5)), MAIN),
        (_ellipse(-0.5, -0.1, 0.09, 0.09, 8), DARK),
    ),
    "mushroom": (
        (_box(-0.22, 0, 0.22, 0.95), LIGHT),
        (_dome(0, 0.02, 0.92, 0.85, 16), MAIN),
    ),
    "cup": (
        (_ellipse(0.55, 0, 0.42, 0.42), MAIN),
        (_ellipse(0.55, 0, 0.22, 0.22), HOLE),
        (_corners((-0.8, -0.65), (0.55, -0.65), (0.4, 0.75), (-0.65, 0.75)), MAIN),
    ),
    "boat": (
        (_corners((-1, 0.4), (1, 0.4), (0.6, 0.95), (-0.6, 0.95)), MAIN),
        (_corners((-0.05, -1), (-0.05, 0.3), (-0.8, 0.3)), LIGHT),
        (_corners((0.08, -0.75), (0.08, 0.3), (0.7, 0.3)), LIGHT),
    ),
    "umbrella": (
        (_box(-0.06, -0.2, 0.06, 0.85), DARK),
        (_corners((0.06, 0.72), (0.3, 0.72), (0.3, 0.95), (-0.06, 0.95)), DARK),
        (_dome(0, 0.1, 1, 1, 18), MAIN),
    ),
    "key": (
        (_ellipse(-0.55, 0, 0.45, 0.45), MAIN),
        (_ellipse(-0.55, 0, 0.2, 0.2, 12), HOLE),
        (_box(-0.15, -0.12, 1, 0.12), MAIN),
        (_box(0.5, 0.1, 0.65, 0.45), MAIN),
        (_box(0.82, 0.1, 0.97, 0.45), MAIN),
    ),
    "bottle": ((_corners(*_BOTTLE), MAIN), (_box(-0.42, 0.2, 0.42, 0.65), LIGHT)),
    "crown": ((_corners(*_CROWN), MAIN), (_box(-0.9, 0.45, 0.9, 0.7), LIGHT)),
    "hammer": (
        (_box(-0.12, -0.5, 0.12, 1), LIGHT),
        (_corners((-0.75, -0.95), (0.55, -0.95), (0.85, -0.45), (-0.75, -0.45)), MAIN),
    ),
    "butterfly": (
        (_ellipse(-0.52, -0.4, 0.45, 0.5), MAIN),
        (_ellipse(0.52, -0.4, 0.45, 0.5), MAIN),
        (_ellipse(-0.42, 0.45, 0.35, 0.42), LIGHT),
        (_ellipse(0.42, 0.45, 0.35, 0.42), LIGHT),
        (_ellipse(0, 0, 0.1, 0.75), DARK),
    ),
}
