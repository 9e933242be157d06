"""Sections of an experiment whose data lies in files: what that means, and labelled images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field, PrivateAttr

from pipeline.data.classes import BuiltIn
from pipeline.experiment.fields import AbsolutePath, Fraction, Positive, Section

if TYPE_CHECKING:
    from typing_extensions import Self


class SetSize(Section):
    """How large an image set is: for `--dry-run`, before the data is there or has been read."""

    images: Positive
    bytes: Positive
    classes: Positive | None = None
    """Needed where no class list says it."""


class Data(Section):
    """A section whose data lies in files.

    It is *planned* if they are not there and only its declared size counts: good enough to say
    what a study would take, and refused by everything that would run it
    (`pipeline.experiment.planned`).
    """

    _planned: bool = PrivateAttr(default=False)

    @property
    def planned(self) -> bool:
        """Whether the data is not there."""
        return self._planned

    def as_planned(self) -> Self:
        """The same without its data."""
        planned = self.model_copy()
        planned._planned = True
        return planned


class ImageSet(Data):
    """Labelled images: a folder with one sub-folder a class."""

    images: AbsolutePath
    classes: BuiltIn | AbsolutePath | None = None
    """A built-in list, or a file (`folder<TAB>name` a line); if not given, every sub-folder."""
    border: Annotated[int, Field(ge=0, strict=True)] = 0
    """Pixels cut off each side of every image before anything else."""
    max_bad_fraction: Fraction = 0.0
    """A task fails if more than this share of its images can't be used."""
    size: SetSize | None = None
