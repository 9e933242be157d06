"""Embeddings as CLIP makes them, as far as it matters here: clustered, in a cone, with duplicates.

A common direction with a few large coordinates, 200 themes of 8,000 clusters of uneven size, and
noise with a power-law spectrum. Test sets are drawn from 1,000 of the clusters, three of them in a
style of their own. A tenth of the pool shares clusters and styles with them; some pool rows are
near-duplicates of test images or of each other. The reference has the clusters of the test sets.

Shapes: N pool rows, M queries, R any rows, D dimensions, C clusters, S test sets (S1 = S + 1).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.float16]
Float32 = npt.NDArray[np.float32]

TEST_SETS = {  # images of the paper's six
    "val": 50_000, "v2": 10_000, "sketch": 50_889, "a": 7_500, "r": 30_000, "objectnet": 18_574,
}  # fmt: skip
_STYLES = {"sketch": (0, 0.5), "r": (1, 0.4), "objectnet": (2, 0.3)}
_THEMES, _CLUSTERS, _TEST_CLUSTERS = 200, 8_000, 1_000
_ENERGY = {"cone": 0.20, "theme": 0.15, "cluster": 0.33, "image": 0.32}
_AT_ONCE = 32_768


class World:
    """What all embeddings have in common; the same seed gives the same rows in every process."""

    def __init__(self, dimensions: int = 640, seed: int = 0) -> None:
        self._seed = seed
        rng = np.random.default_rng(seed)
        axes_DD = np.linalg.qr(rng.standard_normal((dimensions, dimensions)))[0]
        variance_D = (np.arange(dimensions) + 8.0) ** -1
        self._colour_DD = (axes_DD * np.sqrt(variance_D / variance_D.sum())).T.astype(np.float32)
        cone_D = rng.standard_normal(dimensions)
        cone_D[rng.integers(0, dimensions, 3)] *= 12
        self._centre_CD = self._noise(rng, _CLUSTERS, _ENERGY["cluster"])
        theme_D = self._noise(rng, _THEMES, _ENERGY["theme"])
        self._centre_CD += theme_D[rng.integers(0, _THEMES, _CLUSTERS)]
        self._centre_CD += np.sqrt(_ENERGY["cone"]) * cone_D / np.linalg.norm(cone_D)
        self._style_LD = self._noise(rng, len(_STYLES), 1.0)
        self._share_C = rng.dirichlet(np.full(_CLUSTERS, 0.5))

    def _noise(self, rng: np.random.Generator, rows: int, energy: float) -> Float32:
        row_RD = rng.standard_normal((rows, len(self._colour_DD)), dtype=np.float32)
        return row_RD @ self._colour_DD * np.float32(np.sqrt(energy))

    def _images(
        self, rng: np.random.Generator, rows: int, test: bool, style: str | None = None
    ) -> Float32:
        cluster_R = (
            rng.integers(0, _TEST_CLUSTERS, rows)
            if test
            else rng.choice(_CLUSTERS, rows, p=self._share_C)
        )
        image_RD = self._centre_CD[cluster_R] + self._noise(rng, rows, _ENERGY["image"])
        if style in _STYLES:
            number, weight = _STYLES[style]
            image_RD += weight * self._style_LD[number]
        return _unit(image_RD)

    def queries(self, count: int) -> tuple[Rows, npt.NDArray[np.int64]]:
        """About `count` test images of six sets in the paper's proportions: (M, D), (S1,)."""
        rng = np.random.default_rng((self._seed, 1))
        total = sum(TEST_SETS.values())
        sizes = {name: max(1, round(count * size / total)) for name, size in TEST_SETS.items()}
        rows = [self._images(rng, size, True, name) for name, size in sizes.items()]
        return _stored(np.concatenate(rows)), np.cumsum([0, *sizes.values()], dtype=np.int64)

    def reference(self, rows: int, queries_MD: Rows) -> Rows:
        """Reference images (R, D); one in 2,000 is nearly a test image, some are one."""
        rng = np.random.default_rng((self._seed, 2))
        image_RD = self._images(rng, rows, True)
        _copy(rng, image_RD, queries_MD, max(8, rows // 2000), least=0.9)
        return _stored(image_RD)

    def pool(self, rows: int, queries_MD: Rows) -> Iterator[Rows]:
        """Pool images, (R, D) at a time."""
        for part, first in enumerate(range(0, rows, _AT_ONCE)):
            rng = np.random.default_rng((self._seed, 3, part))
            count = min(_AT_ONCE, rows - first)
            image_RD = self._images(rng, count, False)
            twentieth = count // 20
            for place, style in enumerate(("sketch", "r")):
                some = slice(place * twentieth, (place + 1) * twentieth)
                image_RD[some] = self._images(rng, twentieth, True, style)
            _copy(rng, image_RD, queries_MD, count // 400, least=0.85)
            _copy(rng, image_RD, image_RD.copy(), count // 50, least=0.95)
            yield _stored(rng.permutation(image_RD))


def _copy(
    rng: np.random.Generator,
    into_RD: Float32,
    from_RD: npt.NDArray[np.floating],
    count: int,
    least: float,
) -> None:
    """Replace some rows by rows of similarity `least` to 1 to a row of `from_RD`."""
    source_CD = from_RD[rng.integers(0, len(from_RD), count)].astype(np.float32)
    similarity = rng.uniform(least, 1.0, (count, 1)).astype(np.float32)
    similarity[: count // 5] = 1.0
    other_CD = rng.standard_normal(source_CD.shape, dtype=np.float32)
    other_CD -= (other_CD * source_CD).sum(1, keepdims=True) * source_CD
    place = rng.choice(len(into_RD), count, replace=False)
    into_RD[place] = similarity * source_CD + np.sqrt(1 - similarity**2) * _unit(other_CD)


def _unit(row_RD: Float32) -> Float32:
    return row_RD / np.linalg.norm(row_RD, axis=1, keepdims=True)


def _stored(row_RD: Float32) -> Rows:
    return _unit(row_RD).astype(np.float16)
