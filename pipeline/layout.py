"""Every path of a run; nothing else joins paths.

The folders are numbered in the order of the flow: a stage reads folders with lower numbers than its
own and writes only its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

POOL = "pool"
REFERENCE = "reference"
PROBE_TRAINING = "_train"
"""The images that probes are trained on; no test set can have the name."""
SIZES = "sizes.json"
"""In a folder of tars: samples in each, the file that open_clip_train looks for."""


@dataclass(frozen=True)
class Layout:
    """The paths of one run."""

    run: Path

    @property
    def experiment(self) -> Path:
        """The resolved experiment of the latest submission."""
        return self.run / "experiment.yaml"

    @property
    def plans(self) -> Path:
        """Folder of what was submitted, one JSON a submission."""
        return self.run / "plans"

    @property
    def log(self) -> Path:
        """What submissions printed, as plain lines."""
        return self.run / "logs" / "submit.log"

    def embeddings(self, image_set: str, index: int) -> Path:
        """Embeddings file `index` of the pool, the reference or a test set."""
        return self.run / "1_embeddings" / image_set / f"{index:05d}.h5"

    @property
    def centroids(self) -> Path:
        """The centres of the pool's clusters."""
        return self.run / "2_dedup" / "centroids.h5"

    def assignment(self, index: int) -> Path:
        """The cluster of each row of the pool's embeddings file `index`."""
        return self.run / "2_dedup" / "assignment" / f"{index:05d}.h5"

    def duplicates(self, index: int) -> Path:
        """The duplicates in range `index` of the clusters."""
        return self.run / "2_dedup" / "duplicates" / f"{index:05d}.h5"

    def reference(self, test: str) -> Path:
        """Thresholds of a test set's images, and their neighbours in the reference."""
        return self.run / "3_reference" / f"{test}.h5"

    def similarity(self, index: int) -> Path:
        """The pool's embeddings file `index` against all test sets."""
        return self.run / "4_similarity" / f"{index:05d}.h5"

    def mask(self, split: str) -> Path:
        """Which pool rows a split keeps."""
        return self.run / "5_masks" / f"{split}.h5"

    def statistics(self, split: str) -> Path:
        """What a split keeps of the images that are near to the test sets, in numbers."""
        return self.run / "5_masks" / f"{split}.json"

    def subset(self, split: str) -> Path:
        """Folder of what a split is trained on; each task has a folder in it."""
        return self.run / "6_subsets" / split

    def subset_task(self, split: str, number: int) -> Path:
        """Folder of the tars that one task writes for a split, or of its spans."""
        return self.subset(split) / f"{number:05d}"

    def training(self, split: str, seed: int) -> Path:
        """Folder of one training."""
        return self.run / "7_training" / split / f"seed-{seed}"

    def checkpoint(self, split: str, seed: int) -> Path:
        """The trained model."""
        return self.training(split, seed) / "checkpoint.pt"

    def curve(self, split: str, seed: int) -> Path:
        """Loss and throughput of a training, over all its attempts."""
        return self.training(split, seed) / "curve.csv"

    def evaluation(self, split: str, seed: int, test: str) -> Path:
        """Predictions of one trained model on one test set."""
        return self.run / "8_evaluation" / split / f"seed-{seed}" / f"{test}.h5"

    def export(self, split: str, suffix: str) -> Path:
        """A split for other programs, unless the user says where."""
        return self.run / "exports" / f"{split}{suffix}"

    def features(self, split: str, seed: int, image_set: str) -> Path:
        """Frozen features of a test set, or of PROBE_TRAINING, by one trained model."""
        folder = self.run / "8_evaluation" / split / f"seed-{seed}" / "features"
        return folder / f"{image_set}.h5"

    def probes(self, split: str, seed: int) -> Path:
        """Folder with few-shot, linear probe and k-NN accuracies, one JSON a test set."""
        return self.run / "8_evaluation" / split / f"seed-{seed}" / "probe"

    def probe(self, split: str, seed: int, test: str) -> Path:
        """Few-shot, linear probe and k-NN accuracies on one test set."""
        return self.probes(split, seed) / f"{test}.json"

    def retrievals(self, split: str, seed: int) -> Path:
        """Folder with retrieval recalls, one JSON a data set."""
        return self.run / "8_evaluation" / split / f"seed-{seed}" / "retrieval"

    def retrieval(self, split: str, seed: int, name: str) -> Path:
        """Retrieval recalls on one data set."""
        return self.retrievals(split, seed) / f"{name}.json"

    @property
    def report(self) -> Path:
        """The page that the study ends in."""
        return self.run / "9_report" / "index.html"

    @property
    def figures(self) -> Path:
        """Folder of the page's figures and their data."""
        return self.report.parent / "figures"


def shipped(folder: str, name: str) -> Path:
    """A file that comes with simgap, in a checkout as well as installed.

    Args:
        folder: `experiments` or `slurm_templates`.
        name: the file, with or without `.yaml`.

    Returns:
        Its path; it may not exist.
    """
    package = Path(__file__).parent
    name = name if name.endswith(".yaml") else f"{name}.yaml"
    installed = package / folder / name
    return installed if installed.exists() else package.parent / folder / name


def find(folder: str, given: str) -> Path:
    """The file that a user means: a path, or the name of a shipped one.

    Args:
        folder: `experiments` or `slurm_templates`.
        given: what was typed.

    Raises:
        FileNotFoundError: neither exists; the message lists the shipped names.
    """
    path = Path(given)
    if path.is_file():
        return path.resolve()
    # `experiments/mini.yaml` works from any folder: it is the name of a shipped file as well.
    candidate = shipped(folder, path.name)
    if candidate.is_file() and path.parent in (Path(), Path(folder)):
        return candidate
    if path.is_dir():
        raise FileNotFoundError(f"{given} is a folder; expected a YAML file of {folder}")
    names = ", ".join(sorted(item.stem for item in shipped(folder, "x").parent.glob("*.yaml")))
    raise FileNotFoundError(f"{given}: no such file, and no shipped {folder}: {names}")
