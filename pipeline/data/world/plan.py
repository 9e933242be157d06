"""What a world consists of: its parameters, its sets and their files. Imports no numpy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CLASSES = (
    *("star", "heart", "ring", "arrow", "house", "tree", "fish", "mushroom"),
    *("cup", "boat", "umbrella", "key", "bottle", "crown", "hammer", "butterfly"),
)
REFERENCE = "reference"
POOL = "pool"
MODEL = "mini-effnet-48.json"
EMBEDDER = "embedder.pt"
EMBEDDER_TRAINING = "embedder-training"
TEST_STYLES = {
    "val": "photo",
    "v2": "v2",
    "sketch": "sketch",
    "a": "adversarial",
    "r": "rendition",
    "objectnet": "objectnet",
}
"""The test sets and the style of each."""
POOL_MIX = {
    "photo": 0.44,
    "rendition": 0.13,
    "sketch": 0.09,
    "lineart": 0.11,
    "objectnet": 0.09,
    "adversarial": 0.08,
    "unrelated": 0.06,
}
"""How often a pool image has a style."""
LEAKED = 0.01
"""The fraction of the pool that are test images."""
REPOSTED = 0.03
"""The fraction of the pool that are earlier pool images again."""
BATCH_SIZE = 64
"""Of the embedder's training."""
EPOCHS = 4
"""Of the embedder's training."""


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """What decides every byte of a world (the embedder's also depend on the versions of torch).

    Attributes:
        seed: of all images and of the embedder's training.
        pool: number of pool images.
        per_shard: pool images in a tar.
        reference_per_class: reference images of each class.
        test_per_class: images of each class in each test set.
        embedder_samples: samples seen while the embedder is trained; 0 for no embedder.
    """

    seed: int = 0
    pool: int = 6000
    per_shard: int = 500
    reference_per_class: int = 300
    test_per_class: int = 25
    embedder_samples: int = 24_576

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed: got {self.seed}, expected 0 or more")
        for name in ("pool", "per_shard", "reference_per_class", "test_per_class"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected 1 or more")
        if self.embedder_samples and self.embedder_samples < BATCH_SIZE * EPOCHS:
            raise ValueError(
                f"embedder_samples: got {self.embedder_samples}, expected 0 or at least "
                f"{BATCH_SIZE * EPOCHS}: {EPOCHS} epochs of one batch of {BATCH_SIZE}"
            )
        if self.embedder_samples and self.pool < BATCH_SIZE:
            raise ValueError(f"pool: got {self.pool}, but the embedder needs {BATCH_SIZE} or more")

    @property
    def shards(self) -> int:
        """Number of pool tars."""
        return -(-self.pool // self.per_shard)


@dataclass(frozen=True)
class Part:
    """What one process renders in one go: a tar of the pool, or a class folder of an image set.

    Attributes:
        set: POOL, REFERENCE or a test set.
        number: of the tar, or the label of the class.
        indices: which images of the set.
    """

    set: str
    number: int
    indices: range

    def path(self, root: Path) -> Path:
        """The tar, or the folder."""
        if self.set == POOL:
            return root / POOL / f"{self.number:05d}.tar"
        parent = root / REFERENCE if self.set == REFERENCE else root / "tests" / self.set
        return parent / CLASSES[self.number]

    def statistics(self, root: Path) -> Path:
        """The file beside a tar that img2dataset writes when the tar is whole."""
        return root / POOL / f"{self.number:05d}_stats.json"

    def is_whole(self, root: Path) -> bool:
        """Tell whether it is there; tars and folders appear by rename only."""
        return self.path(root).exists() and (self.set != POOL or self.statistics(root).exists())


def parts(parameters: Parameters) -> Iterator[Part]:
    """All parts of a world, the largest first.

    The images of an image set take turns through the classes: image i is of class i % 16, and the
    file <class>/<i>.jpg.
    """
    for number in range(parameters.shards):
        first = number * parameters.per_shard
        last = min(first + parameters.per_shard, parameters.pool)
        yield Part(POOL, number, range(first, last))
    for name in (REFERENCE, *TEST_STYLES):
        each = parameters.reference_per_class if name == REFERENCE else parameters.test_per_class
        for label in range(len(CLASSES)):
            yield Part(name, label, range(label, each * len(CLASSES), len(CLASSES)))
