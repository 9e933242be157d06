"""The sections of an experiment that ask more of trained models than zero-shot accuracy."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, field_validator

from pipeline.experiment.fields import Fraction, Positive, Section, Seed, absolute_patterns
from pipeline.experiment.images import ImageSet


class FewShot(Section):
    """Classifiers on frozen image features: k-shot, linear probe and nearest neighbours."""

    tests: list[str] | None = None
    """Test sets to ask; all of them if not given."""
    train: ImageSet | None = None
    """Images to train on, with the classes of the test sets; the reference if not given."""
    images_per_class: Positive | None = None
    """Training images that features are computed of; all of them if not given."""
    shots: list[Positive] = [1, 2, 4, 8, 16]
    """Training images of each class; none at all for no k-shot."""
    draws: Positive = 5
    """How often the training images of each number of shots are drawn."""
    seed: Seed = 0
    """Of the drawn images."""
    linear_probe: bool = False
    """Whether to train on all of them, too."""
    knn: Positive | None = None
    """Neighbours that vote; not asked if not given."""
    c: Annotated[float, Field(gt=0)] = 1.0
    """Of scikit-learn's LogisticRegression: the inverse of the strength of regularisation."""
    iterations: Positive = 1000
    """Of scikit-learn's LogisticRegression, at most."""

    @field_validator("shots")
    @classmethod
    def _rising(cls, shots: list[int]) -> list[int]:
        if sorted(set(shots)) != shots:
            raise ValueError(f"expected rising numbers, found {shots}")
        return shots


class Retrieval(Section):
    """Images with captions in WebDataset tars: which captions does a model find, which images?"""

    shards: Annotated[str | list[str], AfterValidator(absolute_patterns)]
    """Paths, globs or ranges; a line of a caption file is a caption."""
    max_bad_fraction: Fraction = 0.0
    """A task fails if more than this share of its samples can't be used."""

    @property
    def paths(self) -> list[Path]:
        """Every tar, in natural order; looked for once.

        Raises:
            FileNotFoundError: a pattern matches nothing.
            ValueError: the braces of a pattern are not balanced.
        """
        return self._paths

    @cached_property
    def _paths(self) -> list[Path]:
        from pipeline.data.patterns import expand_shards

        return expand_shards(self.shards)
