"""The sections of an experiment: frozen models of its YAML, one a key.

Types, ranges and what a section can say of itself are checked here; what needs the whole experiment
or the file system is checked in `pipeline.experiment.checks`. Splits: `pipeline.experiment.splits`.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from pipeline.experiment.fields import (
    AbsolutePath,
    Device,
    Fraction,
    Name,
    NameOrFile,
    Positive,
    Section,
    Seed,
    absolute_patterns,
)
from pipeline.experiment.images import Data as Data
from pipeline.experiment.images import ImageSet as ImageSet
from pipeline.experiment.images import SetSize as SetSize
from pipeline.experiment.probes import FewShot, Retrieval
from pipeline.experiment.splits import Split

if TYPE_CHECKING:
    from pipeline.data.precomputed import PrecomputedFile


class PoolSize(Section):
    """How large the pool is: for `--dry-run`, before the data is there or has been read."""

    shards: Positive
    samples: Positive
    bytes: Positive


class Precomputed(Section):
    """Embeddings of the pool that were made elsewhere, by the model that embeds the test sets."""

    files: Annotated[str | list[str], AfterValidator(absolute_patterns)]
    """A folder of clip-retrieval, or .npy or .h5 files: paths, globs or ranges."""
    model: NameOrFile
    """What made them; has to be the embedder's model."""
    pretrained: NameOrFile
    """What made them; have to be the embedder's weights."""
    metadata: Annotated[str | list[str], AfterValidator(absolute_patterns)] | None = None
    """Parquet files that go with .npy files, one for each, in their order."""
    key: str | None = None
    """Column of the keys; `image_path` in Parquet, `key` in HDF5 if not given."""
    uid: str | None = None
    """Column of 128-bit identifiers; `uid`, if there is one, if not given."""
    shard: str | None = None
    """Column that names the tar of each row, by file name or number."""

    @property
    def sources(self) -> list[PrecomputedFile]:
        """Every file with its partner; looked for once.

        Raises:
            FileNotFoundError: a pattern matches nothing, or a partner is missing.
            ValueError: the files can't be paired.
        """
        from pipeline.data.precomputed import find_files

        patterns = str((self.files, self.metadata))
        if patterns not in self.listings:
            self.listings[patterns] = find_files(self.files, self.metadata)
        return self.listings[patterns]

    @cached_property
    def listings(self) -> dict[str, list[PrecomputedFile]]:
        """What was found, by patterns; a copy of a section may have other patterns."""
        return {}


class Pool(Data):
    """The image-text pool: WebDataset tars in img2dataset's layout, embeddings of them, or both."""

    shards: Annotated[str | list[str], AfterValidator(absolute_patterns)] | None = None
    """Paths, globs (`pool/*.tar`) or ranges (`pool/{00000..00011}.tar`)."""
    shards_per_file: Positive = 1
    """Shards that share an embeddings file; one file is one task."""
    max_bad_fraction: Fraction = 0.1
    """A task fails if more than this share of its samples can't be used."""
    size: PoolSize | None = None
    embeddings: Precomputed | None = None
    """Embeddings that were made elsewhere; each of their files is one task."""

    @model_validator(mode="after")
    def _something(self) -> Pool:
        if self.shards is None and self.embeddings is None:
            raise ValueError("expected shards, embeddings, or both")
        if self.embeddings is not None and self.shards_per_file != 1:
            raise ValueError("shards_per_file has no effect: embeddings come in files of their own")
        return self

    @property
    def paths(self) -> list[Path]:
        """Every tar, in natural order; looked for once, because there may be tens of thousands.

        Raises:
            FileNotFoundError: a pattern matches nothing.
            ValueError: the braces of a pattern are not balanced; or the pool is only planned, and
                its patterns name another number of tars than declared.
        """
        from pipeline.data.patterns import declared_shards, expand_shards

        if self.shards is None:
            return []
        patterns = str(self.shards)
        if patterns not in self.listings:
            self.listings[patterns] = (
                declared_shards(self.shards, self.size.shards)
                if self.planned and self.size
                else expand_shards(self.shards)
            )
        return self.listings[patterns]

    @cached_property
    def identities(self) -> dict[str, str]:
        """A hash of all tars, by patterns, taken once."""
        return {}

    @cached_property
    def listings(self) -> dict[str, list[Path]]:
        """What was found, by patterns; a copy of a pool may have other patterns."""
        return {}


class ReferenceSet(ImageSet):
    """The labelled training set that sets the thresholds, such as ImageNet-Train."""

    files: Positive = 1
    """Embeddings files to spread its classes over; one file is one task."""


class TestSet(ImageSet):
    """A benchmark."""

    __test__ = False
    threshold: Annotated[float, Field(ge=-1, le=1, strict=True)] | Literal["reference"] = (
        "reference"
    )
    """tau: the similarity to each image's nearest neighbour in the reference, or one number."""


class Embedder(Section):
    """The fixed CLIP model whose image embeddings define similarity."""

    model: NameOrFile
    """An open_clip model name, or the path of an open_clip model config (.json)."""
    pretrained: NameOrFile
    """An open_clip pretrained tag, or the path of a checkpoint."""
    precision: str = "fp32"
    batch_size: Positive = 256
    workers: Annotated[int, Field(ge=0)] = 1
    """Processes that decode images while the model runs."""
    device: Device = "auto"


class Dedup(Section):
    """Deduplication of the pool: of images that are very similar, only the first counts."""

    clusters: Positive = 50_000
    """Rows are compared with rows of their own cluster only."""
    threshold: Annotated[float, Field(ge=-1, le=1, strict=True)] = 0.876
    """A row is a duplicate of an earlier one if their similarity is strictly above."""
    seed: Seed = 333
    """Of the rows that k-means is trained on, and of its first centres."""
    rows_per_cluster: Positive = 64
    """Rows that k-means is trained on, for each cluster; all rows where there are fewer."""
    iterations: Positive = 20
    """Of k-means."""
    files: Positive = 1
    """Files of duplicates; one is one task, and has its share of the clusters."""

    @model_validator(mode="after")
    def _no_empty_file(self) -> Dedup:
        if self.files > self.clusters:
            raise ValueError(
                f"expected no more files than clusters, found {self.files} files of "
                f"{self.clusters} clusters"
            )
        return self


class Similarity(Section):
    """Nearest-neighbour search."""

    neighbours: Positive = 10
    """Nearest images kept for each test image (K)."""
    backend: str = "auto"
    device: Device = "auto"


class Training(Section):
    """CLIP training by open_clip_train, once for each split and seed."""

    model: NameOrFile
    """An open_clip model name, or the path of an open_clip model config (.json)."""
    epochs: Positive
    samples_per_epoch: Positive | None = None
    """Samples seen in an epoch; the size of the split if not given."""
    batch_size: Positive | None = None
    """Per process (GPU); the share of `global_batch` if not given."""
    global_batch: Positive | None = None
    """Samples in one step of all processes: nodes x processes x batch_size x accum-freq."""
    checkpoint_every: Positive | None = None
    """Samples between checkpoints, if an epoch takes too long for one."""
    workers: Positive = 1
    """Data loading processes per GPU."""
    seeds: Annotated[list[Seed], Field(min_length=1)] = [0]
    splits: list[str] | None = None
    """Splits to train on; all of them if not given."""
    data: Literal["tars", "live"] = "tars"
    """Train on tars rewritten for each split, or on the pool's own, filtered as they are read."""
    samples_per_shard: Positive = 10_000
    """Samples at most in each tar written for a split."""
    files_per_task: Positive = 1
    """Embeddings files whose kept samples one task writes; its tars are as even as can be."""
    options: dict[str, Any] = {}
    """Anything else that open_clip_train takes, by its own names."""

    @model_validator(mode="after")
    def _a_batch(self) -> Training:
        if self.batch_size is None and self.global_batch is None:
            raise ValueError("expected batch_size (of one process), or global_batch (of all)")
        return self


class Evaluation(Section):
    """Zero-shot classification, and what else trained models are asked for."""

    templates: Literal["openai", "simple"] | Annotated[list[str], Field(min_length=1)] = "openai"
    """Captions with `{}` for the class name; or one of open_clip's lists."""
    precision: str = "fp32"
    batch_size: Positive = 256
    workers: Annotated[int, Field(ge=0)] = 1
    device: Device = "auto"
    few_shot: FewShot | None = None
    """Classifiers on frozen features; without it none are trained."""
    retrieval: dict[Name, Retrieval] = {}
    """Image-caption sets by name."""


class Report(Section):
    """The page at the end."""

    title: str | None = None
    gallery: Annotated[int, Field(ge=0)] = 8
    """Test images shown for each test set beside their nearest neighbours."""
    baselines: AbsolutePath | None = None
    """CSV of other models' accuracies (model,test,accuracy): the line of effective robustness."""
    standard_test: str | None = None
    """The test set on the x axis of effective robustness; `val`, or the first, if not given."""


class Experiment(Section):
    """A whole study."""

    name: Name
    runs: AbsolutePath = Path("runs")
    """Folder for runs; this study's is `runs/name`."""
    get_data: str = ""
    """How to get the data, shown when a path does not exist."""
    pool: Pool
    reference: ReferenceSet
    tests: Annotated[dict[Name, TestSet], Field(min_length=1)]
    embedder: Embedder
    dedup: Dedup | None = None
    """Without it nothing is looked for."""
    similarity: Similarity = Similarity()
    splits: Annotated[dict[Name, Split], Field(min_length=1)]
    training: Training | None = None
    """Absent if the pool has no tars: the study then ends at the masks."""
    evaluation: Evaluation = Evaluation()
    report: Report = Report()

    @property
    def run(self) -> Path:
        """The run's folder."""
        return self.runs / self.name

    @property
    def seeds(self) -> list[int]:
        """One training of each split for each; none if the study ends at the masks."""
        return [] if self.training is None else list(self.training.seeds)

    @property
    def standard_test(self) -> str:
        """The test set that effective robustness is measured against."""
        return self.report.standard_test or (
            "val" if "val" in self.tests else next(iter(self.tests))
        )

    @property
    def trained_splits(self) -> list[str]:
        """The splits to train on, in order; none if the study ends at the masks."""
        if self.training is None:
            return []
        return list(self.splits) if self.training.splits is None else list(self.training.splits)

    @property
    def probed_tests(self) -> list[str]:
        """The test sets on which classifiers are trained on frozen features."""
        section = self.evaluation.few_shot
        if section is None:
            return []
        return list(self.tests) if section.tests is None else list(section.tests)

    @property
    def retrieval_sets(self) -> list[str]:
        """The image-caption sets, in order."""
        return list(self.evaluation.retrieval)
